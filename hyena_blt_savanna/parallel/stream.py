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

    def halo(self, x: Tensor, length: int, sequence_dim: int, slice_lengths: Tensor | None = None) -> Tensor | None:
        assert slice_lengths is None
        left = self.earlier(x, length, sequence_dim)
        if left is None or left.shape[sequence_dim] == length:
            return left
        shape = list(left.shape)
        shape[sequence_dim] = length - left.shape[sequence_dim]
        return torch.cat([left.new_zeros(shape), left], dim=sequence_dim)

    def earlier(self, x: Tensor, length: int, sequence_dim: int) -> Tensor | None:
        if self._state is None:
            return None
        place, self._next_place = self._next_place, self._next_place + 1
        left = self._state[place] if place < len(self._state) else None
        num_new = x.shape[sequence_dim]
        if num_new >= length:
            # A copy, or the whole of x would be kept.
            kept = x.narrow(sequence_dim, num_new - length, length).clone()
        elif left is None:
            kept = x.clone()
        else:
            num_old = min(length - num_new, left.shape[sequence_dim])
            old = left.narrow(sequence_dim, left.shape[sequence_dim] - num_old, num_old)
            kept = torch.cat([old, x], dim=sequence_dim)
        self._state[place : place + 1] = [kept]
        return left
