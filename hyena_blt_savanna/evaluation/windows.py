"""Overlapping windows of whole patches: each base is scored once, and all but a document's first with context.

Window k of a document covers the bases [kS, kS + W), with a stride S = W - overlap, widened to whole patches. It
scores the patches that start in [kS + overlap, kS + W), the first window those from the document's start on, and
reads the patches before them as context. So every base behind the first window's is scored with at least `overlap`
bases of context, whatever the patches are, and a window has fewer than W + 2 longest patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.evaluation.sequences import scored_bases
from hyena_blt_savanna.nucleotides import Bytes


class WindowError(ValueError):
    """Sizes of windows that can't be used together."""


@dataclass(frozen=True)
class ScoredWindow:
    """Whole patches of one document.

    Attributes:
        start: the window's first base in its document.
        bases: uint8 [L], case kept.
        patch_lengths: int32 [P]; they sum to L.
        first_scored: the first base of the window that is scored; those before it are context.
        counts: bool [L - first_scored], which of the bases from there on count in figures.
        first_scored_patch: the first patch of the window whose bases are scored.
    """

    start: int
    bases: Bytes
    patch_lengths: NDArray[np.int32]
    first_scored: int
    counts: NDArray[np.bool_]
    first_scored_patch: int


def check_window(window_bases: int, overlap_bases: int) -> None:
    """Makes sure that windows overlap and move on.

    Raises:
        WindowError: they don't.
    """
    if not 0 < overlap_bases < window_bases:
        raise WindowError(
            f"overlap_bases is {overlap_bases:,} and window_bases {window_bases:,}: the overlap is the context of a "
            "window's first scored base, so give at least 1 and less than a window"
        )


def overlapping_windows(
    document: Bytes, patch_lengths: NDArray[np.int32], window_bases: int, overlap_bases: int
) -> Iterator[ScoredWindow]:
    """Cuts a document into windows.

    Args:
        document: uint8 [L], case kept.
        patch_lengths: int32 [P]; they sum to L.
        window_bases: W.
        overlap_bases: bases that a window shares with the one before it.

    Raises:
        WindowError: the overlap is 0, or as long as a window.
    """
    check_window(window_bases, overlap_bases)
    starts = np.concatenate([[0], np.cumsum(patch_lengths, dtype=np.int64)])
    assert starts[-1] == len(document)
    counts = scored_bases(document)
    stride = window_bases - overlap_bases
    scored = 0
    for index in range(-(-len(document) // stride)):
        first = int(np.searchsorted(starts, index * stride, side="right")) - 1
        stop = min(int(np.searchsorted(starts, index * stride + window_bases)), len(patch_lengths))
        # No patch starts in a stride that a long patch spans.
        if stop > scored:
            yield ScoredWindow(
                start=int(starts[first]),
                bases=document[starts[first] : starts[stop]],
                patch_lengths=patch_lengths[first:stop],
                first_scored=int(starts[scored] - starts[first]),
                counts=counts[starts[scored] : starts[stop]],
                first_scored_patch=scored - first,
            )
            scored = stop
