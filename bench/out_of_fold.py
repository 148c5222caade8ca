"""python bench/out_of_fold.py GENOME.fa [--orders 4 8 12 16] [--neural RUN] [--mean 8] [--first N] [--json RESULT.json]

What a model that has seen its training data says of them, against one that has not. The first 0.88 of each record is
for training, the last tenth for the test. For each order of the `ngram` model, the rules entropy and budget are
calibrated on training bases, once in sample and once out of fold, and then cut those bases and the test, which the
model of all training data reads. A piece of each of eight folds stands for the training data. With --neural, the
models that launch/entropy_model.sh trained on this genome (prepared with configs/data/quickstart.yaml) are measured as
well, in their own folds. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.fasta import read_fasta
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, Bytes
from hyena_blt_savanna.patching.calibration import calibrate
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.entropy_models import load_entropy_model
from hyena_blt_savanna.patching.marks import BYTE_CLASS
from hyena_blt_savanna.patching.neural import NeuralModel
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.rules import BudgetRule, EntropyRule, PatchRuleConfig, PatchRuleError

_ORDERS = (4, 6, 8, 10, 11, 12, 13, 14, 16)
_FOLDS = 8
_PIECE_BASES = 500_000
_TRAINING_SHARE, _TEST_SHARE = 0.88, 0.1

Nats = NDArray[np.float32]


def read_split(fasta: Path, first_bases: int | None) -> tuple[Bytes, Bytes]:
    """Training and test stream of a FASTA file; of each record, `first_bases` after its leading unknown letters."""
    end = np.array([END_OF_DOCUMENT], dtype=np.uint8)
    parts: tuple[list[Bytes], list[Bytes]] = ([], [])
    for record in read_fasta(fasta):
        start = int((BYTE_CLASS[record.sequence] < 4).argmax())
        sequence = record.sequence[start:][:first_bases]
        parts[0].extend([sequence[: int(_TRAINING_SHARE * len(sequence))], end])
        parts[1].extend([sequence[len(sequence) - int(_TEST_SHARE * len(sequence)) :], end])
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def measure(order: int, train: Bytes, test: Bytes, mean_bases: float) -> dict[str, Any]:
    """All figures of one order."""
    start = time.process_time()
    edges = fold_edges(len(train), _FOLDS)
    model = NgramConfig(order=order).fit(train)
    pieces = [train[a : min(a + _PIECE_BASES, b)] for a, b in itertools.pairwise(edges)]
    unseen, out_of_fold_bits = [], []
    for piece, (a, b) in zip(pieces, itertools.pairwise(edges), strict=True):
        nats, log_probabilities = model.without(train, a, b).entropies_and_log_probabilities(piece)
        unseen.append(nats)
        out_of_fold_bits.append(_bits(log_probabilities))
    sample = np.concatenate(pieces)
    # Piece by piece, as out of fold, so that a piece's first bases lack the same context.
    in_sample = np.concatenate([model.entropies(piece) for piece in pieces])
    new, log_probabilities = model.entropies_and_log_probabilities(np.concatenate([test, sample]))
    found: dict[str, Any] = {
        "order": order,
        "bits_in_sample": _bits(log_probabilities[len(test) :]),
        "bits_out_of_fold": float(np.mean(out_of_fold_bits)),
        "bits_test": _bits(log_probabilities[: len(test)]),
        "table_megabytes": model.table.num_bytes / 1e6,
    }
    streams = {"in_sample": in_sample, "out_of_fold": np.concatenate(unseen)}
    return found | _by_rule(sample, streams, test, new[: len(test)], mean_bases, start)


def measure_neural(run: Path, train: Bytes, test: Bytes, mean_bases: float) -> dict[str, Any]:
    """All figures of the models in a folder of launch/entropy_model.sh."""
    start = time.process_time()
    whole = load_entropy_model(run / "whole.safetensors")
    models = [load_entropy_model(path) for path in sorted(run.glob("fold_*.safetensors"))]
    assert isinstance(whole, NeuralModel)
    edges = fold_edges(len(train), len(models))
    pieces = [train[a : min(a + _PIECE_BASES, b)] for a, b in itertools.pairwise(edges)]
    pairs = [(model, piece) for model, piece in zip(models, pieces, strict=True) if isinstance(model, NeuralModel)]
    found: dict[str, Any] = {
        "order": "neural",
        "bits_in_sample": float(np.mean([whole.bits_per_base(piece) for piece in pieces])),
        "bits_out_of_fold": float(np.mean([model.bits_per_base(piece) for model, piece in pairs])),
        "bits_test": whole.bits_per_base(test),
        "table_megabytes": sum(tensor.nbytes for tensor in whole.tensors().values()) / 1e6,
    }
    streams = {
        "in_sample": np.concatenate([whole.entropies(piece) for piece in pieces]),
        "out_of_fold": np.concatenate([model.entropies(piece) for model, piece in pairs]),
    }
    return found | _by_rule(np.concatenate(pieces), streams, test, whole.entropies(test), mean_bases, start)


def _by_rule(
    sample: Bytes, streams: dict[str, Nats], test: Bytes, new: Nats, mean_bases: float, start: float
) -> dict[str, Any]:
    found: dict[str, Any] = {
        rule.kind: compare(rule, sample, streams, test, new, mean_bases) for rule in (EntropyRule(), BudgetRule())
    }
    peak_gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return found | {"seconds": time.process_time() - start, "peak_gigabytes": peak_gigabytes}


def compare(
    rule: PatchRuleConfig, sample: Bytes, streams: dict[str, Nats], test: Bytes, new: Nats, mean_bases: float
) -> dict[str, Any]:
    """Patches of one rule, calibrated in sample and out of fold, and how many cuts of the two agree."""
    found: dict[str, Any] = {}
    starts = {}
    for name, nats in streams.items():
        try:
            calibrated = calibrate(rule, sample, nats, mean_bases)[0]
        except PatchRuleError as error:
            return {"not_calibrated": f"{name}: {error}"}
        lengths = cut(sample, nats, calibrated)
        starts[name] = np.zeros(len(sample), dtype=np.bool_)
        starts[name][np.cumsum(lengths)[:-1]] = True
        found[name] = {
            "limit_nats": calibrated.limit_nats,
            "training": describe(lengths, calibrated),
            "test": describe(cut(test, new, calibrated), calibrated),
        }
    seen, unseen = starts["in_sample"], starts["out_of_fold"]
    common, either = np.count_nonzero(seen & unseen), np.count_nonzero(seen | unseen)
    densities = seen.mean(), unseen.mean()
    return found | {
        "jaccard": common / either,
        "share_found": common / np.count_nonzero(unseen),
        "jaccard_of_random_cuts": densities[0] * densities[1] / (sum(densities) - densities[0] * densities[1]),
        "share_found_by_random_cuts": float(densities[0]),
    }


def describe(lengths: NDArray[np.int32], rule: PatchRuleConfig) -> dict[str, float]:
    """Mean and standard deviation of patch lengths, and the share of patches at the maximum."""
    longest = np.mean(lengths == rule.max_patch_bases)
    return {"mean_bases": float(lengths.mean()), "sd_bases": float(lengths.std()), "share_longest": float(longest)}


def _bits(log_probabilities: Nats) -> float:
    return float(-np.nanmean(log_probabilities.astype(np.float64)) / np.log(2.0))


def table(results: list[dict[str, Any]]) -> str:
    """The results as two Markdown tables."""
    lines = [
        "| order | bits per base: in sample | out of fold | test | table or weights, MB |",
        "|---|---|---|---|---|",
    ]
    for found in results:
        bits = (found[f"bits_{name}"] for name in ("in_sample", "out_of_fold", "test"))
        lines.append(f"| {found['order']} | {' | '.join(f'{x:.4f}' for x in bits)} | {found['table_megabytes']:,.1f} |")
    lines += [
        "",
        "Patch lengths: mean ± standard deviation (share of patches at the maximum). Cuts in common: those of the rule "
        "calibrated and read in sample, against out of fold, on the training data.",
        "",
        "| order | rule | in sample: training | test | out of fold: training | test | Jaccard (random) | "
        "out-of-fold cuts found (random) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found, kind in itertools.product(results, ("entropy", "budget")):
        of_rule = found[kind]
        if "not_calibrated" in of_rule:
            lines.append(f"| {found['order']} | {kind} | can't be calibrated | | | | | |")
            continue
        cells = [
            f"{x['mean_bases']:.2f} ± {x['sd_bases']:.2f} ({x['share_longest']:.1%})"
            for x in (of_rule[a][b] for a in ("in_sample", "out_of_fold") for b in ("training", "test"))
        ]
        lines.append(
            f"| {found['order']} | {kind} | {' | '.join(cells)} | {of_rule['jaccard']:.3f} "
            f"({of_rule['jaccard_of_random_cuts']:.3f}) | {of_rule['share_found']:.1%} "
            f"({of_rule['share_found_by_random_cuts']:.1%}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--orders", type=int, nargs="*", default=list(_ORDERS))
    parser.add_argument("--neural", type=Path, default=None, help="folder of launch/entropy_model.sh")
    parser.add_argument("--mean", type=float, default=8.0, help="mean patch length to calibrate to")
    parser.add_argument("--first", type=int, default=None, help="bases of each record, after its leading N")
    parser.add_argument("--json", type=Path, default=None, help="where to write all figures")
    options = parser.parse_args()
    train, test = read_split(options.fasta, options.first)
    results = []
    for order in [*options.orders, *([options.neural] if options.neural is not None else [])]:
        if isinstance(order, Path):
            results.append(measure_neural(order, train, test, options.mean))
        else:
            results.append(measure(order, train, test, options.mean))
        if options.json is not None:
            report = {"training_bytes": len(train), "test_bytes": len(test), "mean_bases": options.mean}
            options.json.write_text(json.dumps(report | {"folds": _FOLDS, "orders": results}, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
