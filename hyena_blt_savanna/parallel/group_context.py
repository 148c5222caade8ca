"""Context parallelism over the ranks of a process group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from hyena_blt_savanna.parallel.context import ContextParallel
from hyena_blt_savanna.parallel.exchange import all_to_all, from_left


class GroupContext(ContextParallel):
    """The ranks of a group, each with a contiguous slice of the same sequences, in the order of the ranks.

    Slices have one shape on all ranks; padding is on the right of the last ones, behind all that is read.

    Args:
        group: the ranks.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.num_ranks = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def close(self) -> None:
        dist.destroy_process_group(self.group)

    def gather_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        return self._swap(x, split_dim=channel_dim, join_dim=sequence_dim)

    def scatter_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        return self._swap(x, split_dim=sequence_dim, join_dim=channel_dim)

    def own_channels(self, x: Tensor, channel_dim: int) -> Tensor:
        assert x.shape[channel_dim] % self.num_ranks == 0
        return x.chunk(self.num_ranks, channel_dim)[self.rank]

    def halo(self, x: Tensor, length: int, sequence_dim: int) -> Tensor:
        slice_length = x.shape[sequence_dim]
        # A halo that is longer than a slice comes from several neighbours.
        num_neighbours = max(1, min(-(-length // slice_length), self.num_ranks - 1))
        num_sent = min(length, slice_length)
        tail = x.narrow(sequence_dim, slice_length - num_sent, num_sent)
        nearest_first = self._from_left(tail, num_neighbours)
        left = torch.cat(nearest_first.flip(0).unbind(0), sequence_dim)
        missing = length - left.shape[sequence_dim]
        if missing > 0:
            shape = list(left.shape)
            shape[sequence_dim] = missing
            left = torch.cat([left.new_zeros(shape), left], sequence_dim)
        return left.narrow(sequence_dim, left.shape[sequence_dim] - length, length)

    def _swap(self, x: Tensor, split_dim: int, join_dim: int) -> Tensor:
        return all_to_all(x, self.group, split_dim, join_dim)

    def _from_left(self, x: Tensor, num_neighbours: int) -> Tensor:
        return from_left(x, self.group, num_neighbours)
