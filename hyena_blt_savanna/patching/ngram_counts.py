"""Counts of windows of bases, and the order of contexts in every table of the `ngram` model.

A window is `order + 1` consecutive bases A, C, G, T: a context of `order` bases and the base after it.
As a number in base 4 (A 0, C 1, G 2, T 3, oldest base first) a window is 4 * context + base, so the
four counts of a context are neighbours. Windows never reach over a mark, a tag or a letter that is
no base. The reverse strand's windows are counted from the forward strand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, Bytes
from hyena_blt_savanna.patching.marks import BYTE_CLASS, IN_TAG, NEXT_STATE, PLACE, START, place_after

_SCAN_BYTES = 1 << 20


def num_contexts(order: int) -> int:
    """Number of contexts of 0 to `order` bases: rows of a table that holds all of them."""
    return (4 ** (order + 1) - 1) // 3


def first_row(order: int) -> int:
    """Row of the first context of exactly `order` bases in a table of all shorter ones too."""
    return (4**order - 1) // 3


def count_windows(stream: Bytes, order: int, both_strands: bool = True, state: int = START) -> NDArray[np.uint32]:
    """Counts every window of a stream.

    Args:
        stream: uint8 [L], either case.
        order: bases of context.
        both_strands: whether the reverse complement of each window is counted too.
        state: the state before the first byte, see `marks`: a stretch may begin inside a tag.

    Returns:
        uint32 [4 ** order, 4]: how often each base follows each context.
    """
    counts = np.zeros(4 ** (order + 1), dtype=np.uint32)
    _count(stream, order, both_strands, state, NEXT_STATE, BYTE_CLASS, counts)
    return counts.reshape(-1, 4)


def count_windows_touching(
    stream: Bytes, start: int, stop: int, order: int, both_strands: bool = True
) -> NDArray[np.uint32]:
    """Counts the windows that have at least one base in [start, stop); see `count_windows`."""
    if start >= stop:
        return np.zeros((4**order, 4), dtype=np.uint32)
    begin = max(0, start - order)
    return count_windows(stream[begin : stop + order], order, both_strands, _place_at(stream, begin))


def counts_by_order(counts: NDArray[np.uint32]) -> list[NDArray[Any]]:
    """Counts for all shorter contexts, as sums over the older bases.

    Args:
        counts: uint32 [4 ** order, 4].

    Returns:
        One array [4 ** k, 4] for each k from 0 to order; int64 below the highest order.
    """
    levels: list[NDArray[Any]] = [counts]
    while len(levels[-1]) > 1:
        levels.append(levels[-1].reshape(4, -1, 4).sum(axis=0, dtype=np.int64))
    return levels[::-1]


def windows(stream: Bytes, start: int, stop: int, order: int, every: int = 1) -> NDArray[np.int64]:
    """Numbers of the windows that lie inside [start, stop), forward strand, one in `every`: int64 [N]."""
    numbers = np.empty(max(0, stop - start) // every + 1, dtype=np.int64)
    stretch, state = stream[start:stop], _place_at(stream, start)
    return numbers[: _windows(stretch, order, every, state, NEXT_STATE, BYTE_CLASS, numbers)]


def _place_at(stream: Bytes, position: int) -> int:
    """The place of `stream[position]`: a tag is found however far back in its document it opened."""
    begin = position
    while begin > 0:
        previous = max(0, begin - _SCAN_BYTES)
        ends = np.flatnonzero(stream[previous:begin] == END_OF_DOCUMENT)
        begin = previous
        if len(ends):
            begin += int(ends[-1]) + 1
            break
    return place_after(
        stream[start : min(start + _SCAN_BYTES, position)] for start in range(begin, position, _SCAN_BYTES)
    )


@njit(cache=True, nogil=True)
def _count(
    stream: Bytes,
    order: int,
    both_strands: bool,
    state: int,
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    counts: NDArray[np.uint32],
) -> None:
    mask = (1 << (2 * (order + 1))) - 1
    forward, reverse, length = 0, 0, 0
    for i in range(len(stream)):
        code = byte_class[stream[i]]
        if code > 3 or (state & PLACE) == IN_TAG:
            length = 0
        else:
            forward = ((forward << 2) | code) & mask
            reverse = (reverse >> 2) | ((3 - code) << (2 * order))
            length += 1
            if length > order:
                counts[forward] += np.uint32(1)
                if both_strands:
                    counts[reverse] += np.uint32(1)
        state = next_state[state & PLACE, code]


@njit(cache=True, nogil=True)
def _windows(
    stream: Bytes,
    order: int,
    every: int,
    state: int,
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    numbers: NDArray[np.int64],
) -> int:
    mask = (1 << (2 * (order + 1))) - 1
    window, length, num_seen = 0, 0, 0
    for i in range(len(stream)):
        code = byte_class[stream[i]]
        if code > 3 or (state & PLACE) == IN_TAG:
            length = 0
        else:
            window = ((window << 2) | code) & mask
            length += 1
            if length > order:
                if num_seen % every == 0:
                    numbers[num_seen // every] = window
                num_seen += 1
        state = next_state[state & PLACE, code]
    return (num_seen + every - 1) // every
