"""Test figures: what the same held-out bases cost each contender, window by window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hyena_blt_savanna.data.batches import EvaluationWindows, collate
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.windows import Window
from hyena_blt_savanna.evaluation.native_checkpoint import NativeCheckpoint
from hyena_blt_savanna.model.hnet import HNet
from hyena_blt_savanna.nucleotides import BASES, Bytes
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.training.loss import NATS_PER_BIT, base_nats

_BATCH_WINDOWS = 4
_IS_BASE = np.isin(np.arange(256), list(BASES + BASES.lower()))


@dataclass(frozen=True)
class WindowScores:
    """What windows cost.

    Attributes:
        windows: their numbers in the stream.
        nats: of each window's scored bases.
        num_bases: scored bases of each window.
    """

    windows: list[int]
    nats: list[float]
    num_bases: list[int]

    @property
    def bits_per_base(self) -> float:
        """Over all windows; NaN without any."""
        return sum(self.nats) / max(1, sum(self.num_bases)) / NATS_PER_BIT if self.num_bases else math.nan


def score_checkpoint(
    checkpoint: NativeCheckpoint,
    prefix: Path,
    annotation: str | None,
    window_bases: int,
    windows: Sequence[int],
    skipped_bases: int,
) -> WindowScores:
    """Scores windows as validation does, and counts bases that all contenders score.

    Bases [kW + skipped, (k + 1)W) of window k count: whatever the patches are, and so whichever window the few bases
    around kW fall into, these are the same bases for everybody, each with at least `skipped` before it, but for the
    part of a patch that reaches over kW.

    Args:
        checkpoint: of the trained model.
        prefix: path of the dataset without its suffix.
        annotation: name of the patch boundaries; None: each base a patch.
        window_bases: W.
        windows: their numbers.
        skipped_bases: at the start of each, which are not counted.
    """
    reader = EvaluationWindows(prefix, annotation, "forward", window_bases)
    class_of_byte = checkpoint.module.class_of_byte
    assert isinstance(class_of_byte, torch.Tensor)
    nats: list[float] = []
    num_bases: list[int] = []
    for begin in range(0, len(windows), _BATCH_WINDOWS):
        chosen = windows[begin : begin + _BATCH_WINDOWS]
        rows = [reader[index] for index in chosen]
        batch = collate(rows)
        with torch.no_grad():
            logits = checkpoint.module(batch.bases, batch.patch_lengths)
        costs = base_nats(logits, batch.bases, class_of_byte).double().numpy()
        for index, row, cost in zip(chosen, rows, costs, strict=True):
            counts = _counted(row, index * window_bases + skipped_bases, (index + 1) * window_bases)
            nats.append(float(cost[: len(counts)][counts].sum()))
            num_bases.append(int(counts.sum()))
    return WindowScores(list(windows), nats, num_bases)


def measure_chunks(model: HNet, prefix: Path, window_bases: int, windows: Sequence[int]) -> tuple[float, float]:
    """Mean and standard deviation of the lengths of learned chunks.

    Args:
        model: finds chunks.
        prefix: path of the dataset without its suffix.
        window_bases: of a window.
        windows: their numbers.
    """
    reader = EvaluationWindows(prefix, None, "forward", window_bases)
    lengths = []
    for index in windows:
        batch = collate([reader[index]])
        with torch.no_grad():
            starts = model.chunk_starts(batch.bases)[0].nonzero()[:, 0]
        lengths.append(torch.diff(starts, append=torch.tensor([batch.bases.shape[1]])))
    joined = torch.cat(lengths).double()
    return float(joined.mean()), float(joined.std(correction=0))


def score_ngram(
    data: Path,
    orders: Sequence[int],
    window_bases: int,
    validation_windows: Sequence[int],
    test_windows: Sequence[int],
    skipped_bases: int,
) -> dict[str, Any]:
    """The count model's cost of the very bases that `score_checkpoint` counts.

    Args:
        data: folder of the dataset.
        orders: tried; the best one on the validation windows is scored on the test.
        window_bases: W.
        validation_windows: their numbers.
        test_windows: likewise.
        skipped_bases: at the start of each window, which are not counted.

    Returns:
        `order`, `validation_bits_per_base` by order, and `scores` of the test windows.
    """
    train = IndexedReader(data / "train").stream
    streams = {split: IndexedReader(data / split).stream for split in ("validation", "test")}
    found: dict[int, WindowScores] = {}
    best = None
    for order in orders:
        model = NgramConfig(order=order).fit(train)

        def scores(split: str, windows: Sequence[int], model: Any = model) -> WindowScores:
            log_probabilities = model.log_probabilities(streams[split])
            return _score_stream(log_probabilities, streams[split], window_bases, windows, skipped_bases)

        found[order] = scores("validation", validation_windows)
        if best is None or found[order].bits_per_base < found[best].bits_per_base:
            best, test = order, scores("test", test_windows)
    assert best is not None
    by_order = {str(order): scored.bits_per_base for order, scored in found.items()}
    return {"order": best, "validation_bits_per_base": by_order, "scores": test}


def _score_stream(
    log_probabilities: NDArray[np.float32],
    stream: Bytes,
    window_bases: int,
    windows: Sequence[int],
    skipped_bases: int,
) -> WindowScores:
    nats, num_bases = [], []
    for index in windows:
        counted = slice(index * window_bases + skipped_bases, (index + 1) * window_bases)
        is_base = _IS_BASE[stream[counted]]
        nats.append(-float(log_probabilities[counted][is_base].astype(np.float64).sum()))
        num_bases.append(int(is_base.sum()))
    return WindowScores(list(windows), nats, num_bases)


def _counted(window: Window, start: int, stop: int) -> NDArray[np.bool_]:
    positions = window.start + np.arange(len(window.bases))
    return (positions >= start) & (positions < stop) & _IS_BASE[window.bases]
