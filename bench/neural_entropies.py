"""python bench/neural_entropies.py FASTA [--threads 1 2] [--bases 1000000]
python bench/neural_entropies.py --resets MODEL.safetensors FASTA [--region RECORD:FROM-TO]

Bases per second of the neural entropy models of configs/model, beside a plain Transformer of the same number of
weights; weights are random, which changes no time. On a busy machine, read the column of CPU time.

With --resets: what is lost where a stretch is read in windows without overlap, each of which starts blind, and where
the rows of a batch run into each other (as public code for entropy patches reads), against the full context of each
base. Run it with the settings of launch/env.sh: `(source launch/env.sh; python bench/neural_entropies.py ...)`.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.entropy_grid import on_grid
from hyena_blt_savanna.evaluation.bits_per_base import fasta_documents
from hyena_blt_savanna.nucleotides import BASE_CODE, END_OF_DOCUMENT, OTHER_CODE, UPPER, Bytes
from hyena_blt_savanna.patching.calibration import calibrate
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.entropy_models import load_entropy_model
from hyena_blt_savanna.patching.neural import NeuralConfig, NeuralModel, entropy_of
from hyena_blt_savanna.patching.rules import BudgetRule, EntropyRule

GOAL = 4 * 26_529
"""Bases per second: four times BLT's entropy model of 1.1 million weights in windows of 512, on two cores."""

CONFIGS = Path(__file__).parents[1] / "configs" / "model"
TRANSFORMER = {
    "kind": "isotropic",
    "stack": {
        "width": 128,
        "num_heads": 4,
        "blocks": ["attention"] * 4,
        "attention": {"window": 512, "output_bias": False},
        "mlp": {"activation": "silu", "width": 512},
    },
}
"""Of the size of BLT's entropy model in its own measurements; its windows slide."""

WINDOWS = (512, 8192)
ROW_BASES = 6000
DISTANCES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 8192)
MEAN_PATCH_BASES = 8.0


def main() -> None:
    """Reads the command line and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bases", type=int, default=1_000_000)
    parser.add_argument("--resets", type=Path, metavar="MODEL", help="a stored entropy model of kind neural")
    parser.add_argument("--region", help="RECORD:FROM-TO, counted from 1")
    given = parser.parse_args()
    bases = next(fasta_documents(given.fasta, given.region))
    if given.resets is None:
        compare_speeds(bases[: given.bases], given.threads)
        return
    model = load_entropy_model(given.resets)
    if not isinstance(model, NeuralModel):
        parser.error(f"{given.resets} is no neural entropy model")
    compare_resets(model, UPPER[bases])


def compare_speeds(bases: Bytes, threads: list[int]) -> None:
    """Prints bases per second by model, precision and number of threads."""
    models: dict[str, Any] = {
        name: merge([CONFIGS / f"{name}.yaml"])["model"] for name in ("entropy", "entropy_kmers")
    } | {"Transformer, window 512": TRANSFORMER}
    print(f"goal: {GOAL:,} bases/s\n")
    print(f"{'model':<26}{'weights':>10}{'precision':>11}{'threads':>9}{'bases/s':>10}{'by CPU s':>10}{'ratio':>7}")
    for precision in ("fp32", "bf16"):
        for num_threads in threads:
            torch.set_num_threads(num_threads)
            rates: dict[str, tuple[float, float]] = {}
            sizes = {}
            for name, network in models.items():
                config = NeuralConfig.parse({"model": network, "precision": precision})
                torch.manual_seed(0)
                module = config.model.build()
                sizes[name] = sum(weight.numel() for weight in module.parameters())
                rates[name] = rate_of(NeuralModel(config, module.state_dict()), bases)
            slowest = rates["Transformer, window 512"][0]
            for name, (wall, cpu) in rates.items():
                print(
                    f"{name:<26}{sizes[name]:>10,}{precision:>11}{num_threads:>9}{wall:>10,.0f}{cpu:>10,.0f}"
                    f"{wall / slowest:>7.2f}",
                    flush=True,
                )
    print()
    for name, network in models.items():
        config = NeuralConfig.parse({"model": network})
        stepper = NeuralModel(config, config.model.build().state_dict()).stepper()
        print(f"{name}, one base at a time: {_step_rate(stepper.push, bases):,.0f} bases/s")


def rate_of(model: NeuralModel, bases: Bytes) -> tuple[float, float]:
    """Bases per second of wall time, and per second of CPU time of all threads."""
    model.entropies(bases[:20_000])
    wall, cpu = time.perf_counter(), time.process_time()
    model.entropies(bases)
    return len(bases) / (time.perf_counter() - wall), len(bases) / (time.process_time() - cpu)


def _step_rate(push: Callable[[int], None], bases: Bytes) -> float:
    begin = time.perf_counter()
    for base in bases[:500]:
        push(int(base))
    return min(500, len(bases)) / (time.perf_counter() - begin)


class Reading(NamedTuple):
    """What a way of reading says of each base.

    Attributes:
        nats: entropies, float32 [L].
        log_p: log-probability of each base, nats; NaN where it is none.
    """

    nats: NDArray[np.float32]
    log_p: NDArray[np.float32]


def compare_resets(model: NeuralModel, bases: Bytes) -> None:
    """Prints what blind windows and rows that run into each other cost, by distance from the last reset."""
    print(f"{len(bases):,} bases; each base is judged by the {model.context_bases:,} before it\n")
    whole = read(model, bases, [0])
    for window in WINDOWS:
        # The stream is an end-of-document byte and the bases; a window's first base is judged in the window before.
        starts = list(range(0, len(bases), window))
        blind = read(model, bases, starts)
        distance = np.arange(len(bases)) % window
        report(f"windows of {window:,}, each starting blind", bases, whole, blind, distance)
    # Rows of a batch, in any order but that of the sequence: each is a document, and the one before it is another.
    rows = [bases[start : start + ROW_BASES] for start in range(0, len(bases) - ROW_BASES + 1, ROW_BASES)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    if len(rows) > 1:
        end = np.array([END_OF_DOCUMENT], dtype=np.uint8)
        stream = np.concatenate([part for row in rows for part in (row, end)])[:-1]
        alone = read(model, stream, [0, *range(ROW_BASES, len(stream), ROW_BASES + 1)])
        together = read(model, stream, [0])
        distance = np.arange(len(stream)) % (ROW_BASES + 1)
        report(f"rows of {ROW_BASES:,} that run into each other", stream, alone, together, distance)


def read(model: NeuralModel, bases: Bytes, starts: list[int]) -> Reading:
    """Reads END_OF_DOCUMENT and the bases; at each of `starts`, a place of that stream, all before is forgotten."""
    stream = np.concatenate([np.array([END_OF_DOCUMENT], dtype=np.uint8), bases])[:-1].astype(np.int64)
    tokens = torch.from_numpy(stream)
    nats, log_p = np.empty(len(bases), np.float32), np.full(len(bases), np.nan, np.float32)
    chunk = model.config.chunk_bases
    for start, stop in zip(starts, [*starts[1:], len(bases)], strict=True):
        state: list[torch.Tensor] = []
        for begin in range(start, stop, chunk):
            end = min(begin + chunk, stop)
            found = model.log_probabilities_after(tokens[None, begin:end], state)
            nats[begin:end] = entropy_of(found)[0, 0].numpy()
            codes = BASE_CODE[bases[begin:end]]
            scored = (codes != OTHER_CODE).nonzero()[0]
            log_p[begin + scored] = found[:, 0].numpy()[codes[scored], scored]
    return Reading(on_grid(np.maximum(nats, 0)), log_p)


def report(what: str, bases: Bytes, ours: Reading, theirs: Reading, distance: NDArray[np.int64]) -> None:
    """Prints bits per base of both, how far entropies differ, and the share of patch starts that do."""
    differ = []
    for rule in (EntropyRule(), BudgetRule()):
        calibrated, _ = calibrate(rule, bases, ours.nats, MEAN_PATCH_BASES)
        first, second = (_starts(cut(bases, reading.nats, calibrated), len(bases)) for reading in (ours, theirs))
        differ.append((first, second))
    print(what)
    print(
        f"  {'from reset':>16}{'bases':>11}{'bits full':>11}{'bits reset':>11}{'|nats|':>9}{'entropy':>9}{'budget':>9}"
    )
    places = [("all", np.ones(len(bases), bool))] + [
        (f"{low:,} to {high - 1:,}", (distance >= low) & (distance < high))
        for low, high in itertools.pairwise(DISTANCES)
    ]
    for name, here in places:
        scored = here & ~np.isnan(ours.log_p)
        if not scored.any():
            continue
        bits = [-reading.log_p[scored].mean(dtype=np.float64) / np.log(2) for reading in (ours, theirs)]
        gap = np.abs(ours.nats[here] - theirs.nats[here]).mean(dtype=np.float64)
        shares = [
            f"{(first ^ second)[here].sum() / max((first | second)[here].sum(), 1):.2%}" for first, second in differ
        ]
        print(
            f"  {name:>16}{here.sum():>11,}{bits[0]:>11.4f}{bits[1]:>11.4f}{gap:>11.4f}{shares[0]:>11}{shares[1]:>11}"
        )
    print("  entropy, budget: patch starts that only one of both has, among those that either has\n")


def _starts(lengths: NDArray[np.int32], num_bases: int) -> NDArray[np.bool_]:
    starts = np.zeros(num_bases, bool)
    starts[np.cumsum(lengths)[:-1]] = True
    return starts


if __name__ == "__main__":
    main()
