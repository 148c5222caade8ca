"""python bench/patching.py GENOME.fa [--order 8 12]

Measures the patching room, single process: entropies and boundaries in bases per second, and what the `ngram`
model is worth. The first nine tenths of each record are for fitting, the last tenth is scored.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.fasta import read_fasta
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, Bytes
from hyena_blt_savanna.patching.adaptive import AdaptiveConfig, AdaptiveModel
from hyena_blt_savanna.patching.calibration import calibrate
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.rules import (
    BudgetRule,
    ByteRule,
    EntropyRule,
    JumpRule,
    MonotonicRule,
    PatchRuleConfig,
    StaticRule,
)

GOAL_ENTROPIES = 5e6
GOAL_BOUNDARIES = 100e6
_ORDERS = (4, 8, 12, 14, 16)
_MOST_BASES = 64_000_000
_MEAN_PATCH_BASES = 8.0
_FOLDS = 8


def rows(fasta: Path) -> list[tuple[str, float, float | None]]:
    """What was measured, bases per second, and the goal, for entropies and boundaries."""
    train, test = read_tenths(fasta)
    stream = np.concatenate([train, test])[:_MOST_BASES]
    start_of_stream = stream[:4_000_000]
    measured: list[tuple[str, float, float | None]] = []
    for order in _ORDERS:
        table = NgramConfig(order=order).fit(train).table
        rate = _rate(partial(table.entropies, stream), stream)
        measured.append((f"entropies, ngram of order {order}", rate, GOAL_ENTROPIES))
    rate = _rate(partial(AdaptiveModel(AdaptiveConfig()).entropies, start_of_stream), start_of_stream)
    measured.append(("entropies, adaptive of order 8", rate, None))
    nats = NgramConfig(order=8).fit(train).entropies(stream)
    uncalibrated = (EntropyRule(), MonotonicRule(), JumpRule(), BudgetRule())
    rules = [StaticRule(), ByteRule(), *(calibrate(rule, stream, nats, _MEAN_PATCH_BASES)[0] for rule in uncalibrated)]
    for rule in rules:
        rate = _rate(partial(cut, stream, nats, rule), stream)
        measured.append((f"boundaries from given entropies, {rule.kind}", rate, GOAL_BOUNDARIES))
    return measured


def read_tenths(fasta: Path) -> tuple[Bytes, Bytes]:
    """The first nine tenths of each record, and the last tenth, each as one stream of documents."""
    end = np.array([END_OF_DOCUMENT], dtype=np.uint8)
    parts: tuple[list[Bytes], list[Bytes]] = ([], [])
    for record in read_fasta(fasta):
        border = 9 * len(record.sequence) // 10
        for part, piece in zip(parts, (record.sequence[:border], record.sequence[border:]), strict=True):
            part += [piece, end]
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def describe_model(order: int, train: Bytes, test: Bytes) -> list[str]:
    """Bits per base, and mean patch lengths in and out of fold, of one order."""
    start = time.process_time()
    edges = fold_edges(len(train), _FOLDS)
    model, tables = NgramConfig(order=order).fit_out_of_fold(train, edges)
    seconds = time.process_time() - start
    seen, new = model.entropies(train), model.entropies(test)
    pieces = [table.entropies(train[a:b]) for table, a, b in zip(tables, edges[:-1], edges[1:], strict=True)]
    unseen = np.concatenate(pieces)
    lines = [
        f"order {order}: {model.bits_per_base(test):.4f} bits per base on the last tenth, "
        f"{model.bits_per_base(train):.4f} on its own training bases; fitted with {_FOLDS} folds in {seconds:.1f} s"
    ]
    for rule in (EntropyRule(), BudgetRule()):
        for name, entropies in (("out of fold", unseen), ("in sample", seen)):
            found = calibrate(rule, train, entropies, _MEAN_PATCH_BASES)[0]

            def mean(bases: Bytes, nats: NDArray[np.float32], found: PatchRuleConfig = found) -> float:
                return len(bases) / len(cut(bases, nats, found))

            lines.append(
                f"  {rule.kind:<8} calibrated {name:<12} {found.limit_nats:8.4f} nats; mean patch: training unseen "
                f"{mean(train, unseen):.3f}, seen {mean(train, seen):.3f}, last tenth {mean(test, new):.3f}"
            )
    return lines


def _rate(work: Callable[[], object], stream: Bytes, repeats: int = 3) -> float:
    """Bases per second of CPU time of the fastest of several runs, after one that compiles."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return len(stream) / min(times)


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("--order", type=int, nargs="*", default=[8, 12])
    options = parser.parse_args()
    print(f"{'':<58}{'Mb per second':>14}{'goal':>10}")
    for what, rate, goal in rows(options.fasta):
        print(f"{what:<58}{rate / 1e6:>14,.1f}{'' if goal is None else f'{goal / 1e6:,.0f}':>10}")
    train, test = read_tenths(options.fasta)
    for order in options.order:
        print("\n".join(describe_model(order, train, test)), flush=True)


if __name__ == "__main__":
    main()
