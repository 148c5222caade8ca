"""A stream read as a ring: from its end on at its start, without what is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class Ring:
    """Stretches of a stream joined end to end, the last one to the first.

    Args:
        stretches: [start, stop) of each, at least one, in stream order.
    """

    def __init__(self, stretches: Sequence[tuple[int, int]]) -> None:
        assert stretches
        self._starts = np.array([start for start, _ in stretches], dtype=np.int64)
        lengths = np.array([stop - start for start, stop in stretches], dtype=np.int64)
        self._ends = np.cumsum(lengths)

    @property
    def num_bytes(self) -> int:
        """Length in bases."""
        return int(self._ends[-1])

    def pieces(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """What `length` bases from a place of the ring on are in the stream.

        Yields:
            [start, stop) of each piece, and the end of its stretch.
        """
        start %= self.num_bytes
        while length > 0:
            index = int(np.searchsorted(self._ends, start, side="right"))
            taken = min(length, int(self._ends[index]) - start)
            end = int(self._starts[index] + self._ends[index]) - (int(self._ends[index - 1]) if index else 0)
            stop = end - (int(self._ends[index]) - start - taken)
            yield stop - taken, stop, end
            start, length = (start + taken) % self.num_bytes, length - taken
