"""The windows of long contexts that a stream holds, as a sorted list with their counts.

A window of `order + 1` bases is a number of 34 bits at most, and an entry of the list is that number with its
count in the 29 bits below: 8 bytes for each distinct window, sorted in place.

The list is in the order of the dense table's rows: the `dense_order` newest bases of the context first, as one
number, then the older bases from the newer to the older, then the base that follows. So the windows of a context
are neighbours, whatever its length is, and those of a row of the dense table come in the order of the rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

MOST_WINDOWS = 1 << 28
"""Windows that can be sorted: 134 million bases of both strands. Sorting takes 8 bytes for each, 2.1 GB."""

COUNT_BITS = 29
_COUNT = (1 << COUNT_BITS) - 1


class NgramError(ValueError):
    """A sequence that an ngram model can't be fitted on, or a file that holds none."""


class WindowList:
    """The distinct windows of a stream and how often each was seen.

    Args:
        entries: int64 [N], sorted, see the module.
        order: bases of context.
        dense_order: how many of them number a row of the dense table.
    """

    def __init__(self, entries: NDArray[np.int64], order: int, dense_order: int) -> None:
        assert dense_order < order <= 16
        self.entries, self.order, self.dense_order = entries, order, dense_order

    @staticmethod
    def allocate(num_bases: int, order: int, both_strands: bool) -> NDArray[np.int64]:
        """Room for the numbers of all windows of a stream.

        Raises:
            NgramError: there are more than can be sorted.
        """
        num_windows = num_bases * (2 if both_strands else 1)
        if num_windows > MOST_WINDOWS:
            strands = "both strands" if both_strands else "one strand"
            raise NgramError(
                f"order {order} on {strands} of {num_bases:,} bases: an order above 12 sorts all windows, "
                f"at most {MOST_WINDOWS:,}; set order to 12, or fit on less sequence"
            )
        return np.empty(num_windows, dtype=np.int64)

    @classmethod
    def of_numbers(
        cls, numbers: NDArray[np.int64], num_windows: int, order: int, both_strands: bool, dense_order: int
    ) -> WindowList:
        """Sorts and counts windows, in place.

        Args:
            numbers: int64, what `allocate` gave, with the windows of the forward strand in front.
            num_windows: how many there are.
            order: bases of context.
            both_strands: whether their reverse complements are counted too.
            dense_order: how many bases of a context number a row of the dense table.
        """
        num_windows = _to_keys(numbers, num_windows, order, both_strands, dense_order)
        numbers[:num_windows].sort()
        # Nothing else holds this array: what is not needed any more goes back to the system, without a copy.
        numbers.resize(_count_runs(numbers, num_windows), refcheck=False)
        return cls(numbers, order, dense_order)

    @classmethod
    def stored(cls, entries: NDArray[np.int64], order: int, dense_order: int) -> WindowList:
        """A list that was read from a file.

        Raises:
            NgramError: it is not sorted, or holds what is no window of this order.
        """
        keys = entries >> COUNT_BITS
        within = not len(keys) or (keys[0] >= 0 and keys[-1] < 4 ** (order + 1))
        if not (within and (keys[1:] > keys[:-1]).all() and (entries & _COUNT).all()):
            raise NgramError(f"its windows are not a sorted list of windows of {order + 1} bases")
        return cls(entries, order, dense_order)

    def without(self, seen: WindowList) -> WindowList:
        """This list less the windows of a part of the stream."""
        left = np.empty(len(self.entries), dtype=np.int64)
        num_left, num_found = _subtract(self.entries, seen.entries, left)
        assert num_found == len(seen.entries), "another stream than the one that was counted"
        left.resize(num_left, refcheck=False)
        return WindowList(left, self.order, self.dense_order)

    def dense_counts(self) -> NDArray[np.uint32]:
        """Counts for the contexts of `dense_order` bases, uint32 [4 ** dense_order, 4]."""
        counts = np.zeros((4**self.dense_order, 4), dtype=np.uint32)
        _sum_rows(self.entries, 2 * (self.order - self.dense_order), counts)
        return counts

    def of_contexts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Counts of the contexts of some windows.

        Args:
            numbers: int64 [N], windows of `order + 1` bases.

        Returns:
            int64 [order - dense_order, N, 4]: for each order above the dense one, how often each base followed.
        """
        found = np.zeros((self.order - self.dense_order, len(numbers), 4), dtype=np.int64)
        _look_up(self.entries, numbers, self.order, self.dense_order, found)
        return found


@njit(cache=True, nogil=True, inline="always")
def _key(window: int, order: int, dense_order: int) -> int:
    """The number that windows are sorted by."""
    older = window >> (2 + 2 * dense_order)
    key = (window >> 2) & ((1 << (2 * dense_order)) - 1)
    for _ in range(order - dense_order):
        key = (key << 2) | (older & 3)
        older >>= 2
    return (key << 2) | (window & 3)


@njit(cache=True, nogil=True, inline="always")
def _reverse_complement(window: int, num_bases: int) -> int:
    reverse = 0
    for _ in range(num_bases):
        reverse = (reverse << 2) | (3 - (window & 3))
        window >>= 2
    return reverse


@njit(cache=True, nogil=True)
def _to_keys(numbers: NDArray[np.int64], num_windows: int, order: int, both_strands: bool, dense_order: int) -> int:
    """Puts keys in the place of windows, and those of the reverse strand behind them; returns how many there are."""
    for i in range(num_windows):
        window = numbers[i]
        numbers[i] = _key(window, order, dense_order)
        if both_strands:
            numbers[num_windows + i] = _key(_reverse_complement(window, order + 1), order, dense_order)
    return 2 * num_windows if both_strands else num_windows


@njit(cache=True, nogil=True)
def _count_runs(keys: NDArray[np.int64], num_windows: int) -> int:
    """Makes entries of sorted keys, in place; returns how many there are."""
    num_entries, i = 0, 0
    while i < num_windows:
        key, begin = keys[i], i
        while i < num_windows and keys[i] == key:
            i += 1
        keys[num_entries] = (key << COUNT_BITS) | (i - begin)
        num_entries += 1
    return num_entries


@njit(cache=True, nogil=True)
def _subtract(entries: NDArray[np.int64], seen: NDArray[np.int64], left: NDArray[np.int64]) -> tuple[int, int]:
    """Entries less those seen, without those that were seen only there; returns how many are left, and were found."""
    num_left, num_found = 0, 0
    for entry in entries:
        if num_found < len(seen) and (seen[num_found] >> COUNT_BITS) == (entry >> COUNT_BITS):
            entry -= seen[num_found] & _COUNT
            num_found += 1
        if entry & _COUNT:
            left[num_left] = entry
            num_left += 1
    return num_left, num_found


@njit(cache=True, nogil=True)
def _sum_rows(entries: NDArray[np.int64], older_bits: int, counts: NDArray[np.uint32]) -> None:
    for entry in entries:
        key = entry >> COUNT_BITS
        counts[key >> (2 + older_bits), key & 3] += np.uint32(entry & _COUNT)


@njit(cache=True, nogil=True)
def _look_up(
    entries: NDArray[np.int64], numbers: NDArray[np.int64], order: int, dense_order: int, found: NDArray[Any]
) -> None:
    """Adds the counts of all entries that share a window's context, to every order in which they share it."""
    depth = order - dense_order
    for i in range(len(numbers)):
        context = _key(numbers[i], order, dense_order) >> 2
        # The entries of the shortest of its contexts: from the first one on, to the first one of another context.
        low, high = 0, len(entries)
        first = (context >> (2 * (depth - 1))) << (2 * (depth - 1) + 2 + COUNT_BITS)
        while low < high:
            middle = (low + high) // 2
            if entries[middle] < first:
                low = middle + 1
            else:
                high = middle
        while low < len(entries):
            key = entries[low] >> COUNT_BITS
            different, shared = (key >> 2) ^ context, depth
            while different:
                different >>= 2
                shared -= 1
            if shared < 1:
                break
            for k in range(shared):
                found[k, i, key & 3] += entries[low] & _COUNT
            low += 1
