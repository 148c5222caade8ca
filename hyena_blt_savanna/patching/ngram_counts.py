"""Counts of windows of bases, and the order of contexts in every table of the `ngram` model.

A window is `order + 1` consecutive bases A, C, G, T: a context of `order` bases and the base after it.
As a number in base 4 (A 0, C 1, G 2, T 3, oldest base first) a window is 4 * context + base, so the
four counts of a context are neighbours. Windows never reach over a mark, a tag or a letter that is
no base. The reverse strand's windows are counted from the forward strand.

Up to order 12 a table has a row for each context that there can be. Of longer contexts few are ever
seen, and the windows that were are a sorted list (see `ngram_windows`); a smaller table then holds its
sums over the older bases.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, Bytes
from hyena_blt_savanna.patching.marks import BYTE_CLASS, IN_TAG, NEXT_STATE, PLACE, START, place_after
from hyena_blt_savanna.patching.ngram_windows import WindowList

LONGEST_DENSE_ORDER = 12
"""Highest order of a model that is a table alone: 4 ** 12 rows."""
_ROWS_ORDER = 11
"""Bases of the contexts that have a row each in a model of a higher order. Fewer rows make longer ways to go from a
row to a context; more make a table that no cache holds, most of which a bacterium does not need."""

_SCAN_BYTES = 1 << 20


def num_contexts(order: int) -> int:
    """Number of contexts of 0 to `order` bases: rows of a table that holds all of them."""
    return (4 ** (order + 1) - 1) // 3


def first_row(order: int) -> int:
    """Row of the first context of exactly `order` bases in a table of all shorter ones too."""
    return (4**order - 1) // 3


def dense_order_of(order: int) -> int:
    """Bases of the longest contexts that have a row each, in a model of an order."""
    return order if order <= LONGEST_DENSE_ORDER else _ROWS_ORDER


class WindowCounts:
    """How often each base followed each context, for contexts of `order` bases and all shorter ones.

    Args:
        dense: uint32 [4 ** dense order, 4], for the longest contexts that each have a row.
        longer: the windows of longer contexts, if any; `dense` holds their sums.
    """

    def __init__(self, dense: NDArray[np.uint32], longer: WindowList | None = None) -> None:
        self.dense, self.longer = dense, longer
        self.dense_order = (len(dense).bit_length() - 1) // 2
        self.order = longer.order if longer else self.dense_order

    @classmethod
    def of_stream(
        cls,
        stream: Bytes,
        order: int,
        both_strands: bool = True,
        state: int = START,
        dense_order: int | None = None,
    ) -> WindowCounts:
        """Counts every window of a stream.

        Args:
            stream: uint8 [L], either case.
            order: bases of context.
            both_strands: whether the reverse complement of each window is counted too.
            state: the state before the first byte, see `marks`: a stretch may begin inside a tag.
            dense_order: bases of the longest contexts that have a row each, if not as usual; changes no count.

        Raises:
            NgramError: too many windows to list, where `order` is above `dense_order`.
        """
        dense_order = dense_order_of(order) if dense_order is None else dense_order
        if order > dense_order:
            listed = WindowList.allocate(len(stream), order, both_strands)
            num_windows = _windows(stream, order, 1, state, NEXT_STATE, BYTE_CLASS, listed)
            return cls.of_list(WindowList.of_numbers(listed, num_windows, order, both_strands, dense_order))
        counts = np.zeros(4 ** (order + 1), dtype=np.uint32)
        _count(stream, order, both_strands, state, NEXT_STATE, BYTE_CLASS, counts)
        return cls(counts.reshape(-1, 4))

    @classmethod
    def of_stretch(
        cls,
        stream: Bytes,
        start: int,
        stop: int,
        order: int,
        both_strands: bool = True,
        dense_order: int | None = None,
    ) -> WindowCounts:
        """Counts the windows of a stream that have at least one base in [start, stop); see `of_stream`."""
        begin = max(0, start - order)
        touching = stream[begin : stop + order] if start < stop else stream[:0]
        return cls.of_stream(touching, order, both_strands, _place_at(stream, begin), dense_order)

    @classmethod
    def of_list(cls, longer: WindowList) -> WindowCounts:
        """The counts that a list of windows gives."""
        return cls(longer.dense_counts(), longer)

    def without(self, seen: WindowCounts) -> WindowCounts:
        """These counts less those of a part of the stream."""
        assert (self.order, self.dense_order) == (seen.order, seen.dense_order)
        assert (seen.dense <= self.dense).all(), "another stream than the one that was counted"
        longer = self.longer.without(seen.longer) if self.longer and seen.longer else None
        return WindowCounts(self.dense - seen.dense, longer)

    def dense_levels(self) -> list[NDArray[Any]]:
        """Counts of each order from 0 to the dense one, [4 ** k, 4], as sums over the older bases; int64 below it."""
        levels: list[NDArray[Any]] = [self.dense]
        while len(levels[-1]) > 1:
            levels.append(levels[-1].reshape(4, -1, 4).sum(axis=0, dtype=np.int64))
        return levels[::-1]

    def of_contexts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts of the contexts of some windows.

        Args:
            numbers: int64 [N], windows of `order + 1` bases.

        Returns:
            int64 [order + 1, N, 4]: for each order from 0 on, how often each base followed the context of that order.
        """
        levels = [level[(numbers >> 2) & (4**k - 1)] for k, level in enumerate(self.dense_levels())]
        found = np.stack(levels).astype(np.int64, copy=False)
        return np.concatenate([found, self.longer.of_contexts(numbers)]) if self.longer else found


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
