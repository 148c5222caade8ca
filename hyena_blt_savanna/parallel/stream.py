"""Reading a sequence in several passes: each pass sees what lies left of it as if all had been read in one.

For a model, a chunk of a stream is a slice whose left neighbour was read before. A `Stream` is therefore a
`ContextParallel` that answers from memory: what it hands out in one pass is what it kept in the pass before.
Only what reads a bounded stretch to the left can be read so: short filters, windowed attention, k-mers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hyena_blt_savanna.parallel.context import SingleRank

StreamState = list[Tensor]
"""The last positions at each place of a model that looks left, in the order in which a pass comes by; empty at the
start of a sequence."""


class Stream(SingleRank):
    """A context for models that read streams, for inference. One model may read many streams, one pass at a time."""

    def __init__(self) -> None:
        self._state: StreamState | None = None
        self._next_place = 0

    @contextmanager
    def reading(self, state: StreamState) -> Iterator[None]:
        """One pass over the next positions of a stream.

        Args:
            state: of the stream; changed in place.
        """
        assert self._state is None, "two passes at once"
        self._state, self._next_place = state, 0
        try:
            yield
        finally:
            self._state = None

    def halo(self, x: Tensor, length: int, sequence_dim: int) -> Tensor | None:
        left = self.earlier(x, length, sequence_dim)
        if left is None or left.shape[sequence_dim] == length:
            return left
        shape = list(left.shape)
        shape[sequence_dim] = length - left.shape[sequence_dim]
        return torch.cat([left.new_zeros(shape), left], dim=sequence_dim)

    def earlier(self, x: Tensor, length: int, sequence_dim: int) -> Tensor | None:
        left = self.kept()
        num_new = x.shape[sequence_dim]
        if num_new >= length:
            # A copy, or the whole of x would be kept.
            self.keep(x.narrow(sequence_dim, num_new - length, length).clone())
        elif left is None:
            self.keep(x.clone())
        else:
            num_old = min(length - num_new, left.shape[sequence_dim])
            old = left.narrow(sequence_dim, left.shape[sequence_dim] - num_old, num_old)
            self.keep(torch.cat([old, x], dim=sequence_dim))
        return left

    def kept(self) -> Tensor | None:
        """What the pass before kept at this place; None in the first pass, and outside of one. `keep` must follow."""
        at = self._next_place
        return self._state[at] if self._state is not None and at < len(self._state) else None

    def keep(self, positions: Tensor) -> None:
        """Keeps the last positions at this place for the next pass, and goes on to the next place."""
        if self._state is not None:
            self._state[self._next_place : self._next_place + 1] = [positions]
            self._next_place += 1
