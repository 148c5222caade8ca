"""Context parallelism over the ranks of a process group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from hyena_blt_savanna.parallel.context import ContextParallel
from hyena_blt_savanna.parallel.exchange import all_to_all, from_left


class GroupContext(ContextParallel):
    """The ranks of a group, each with a contiguous slice of the same sequences, in the order of the ranks.

    Slices have one shape on all ranks. Where they hold different numbers of positions, they are padded on the right,
    and `halo` is told how many are real; what is swapped (`gather_sequence`) may be padded on the last rank alone.

    Args:
        group: the ranks.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.num_ranks = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def gather_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        return all_to_all(x, self.group, split_dim=channel_dim, join_dim=sequence_dim)

    def scatter_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        return all_to_all(x, self.group, split_dim=sequence_dim, join_dim=channel_dim)

    def own_channels(self, x: Tensor, channel_dim: int) -> Tensor:
        assert x.shape[channel_dim] % self.num_ranks == 0
        return x.chunk(self.num_ranks, channel_dim)[self.rank]

    def halo(self, x: Tensor, length: int, sequence_dim: int, slice_lengths: Tensor | None = None) -> Tensor:
        if slice_lengths is None:
            return self._even_halo(x, length, sequence_dim)
        return self._uneven_halo(x, length, sequence_dim, slice_lengths)

    def _even_halo(self, x: Tensor, length: int, sequence_dim: int) -> Tensor:
        slice_length = x.shape[sequence_dim]
        num_neighbours = max(1, min(-(-length // slice_length), self.num_ranks - 1))
        num_sent = min(length, slice_length)
        tail = x.narrow(sequence_dim, slice_length - num_sent, num_sent)
        nearest_first = from_left(tail, self.group, num_neighbours)
        left = torch.cat(nearest_first.flip(0).unbind(0), sequence_dim)
        missing = length - left.shape[sequence_dim]
        if missing > 0:
            shape = list(left.shape)
            shape[sequence_dim] = missing
            left = torch.cat([left.new_zeros(shape), left], sequence_dim)
        return left.narrow(sequence_dim, left.shape[sequence_dim] - length, length)

    def _uneven_halo(self, x: Tensor, length: int, sequence_dim: int, slice_lengths: Tensor) -> Tensor:
        lengths = self._lengths_of_all(slice_lengths)
        num_neighbours = _num_neighbours(lengths, length)
        # Right-aligned, so that position -1 - j of a tail is j positions left of the slice's end.
        places = slice_lengths[:, None] + torch.arange(-length, 0, device=x.device)
        tail = _take(x, places, places >= 0, sequence_dim)
        tails = from_left(tail, self.group, num_neighbours)
        together = torch.cat(tails.flip(0).unbind(0), sequence_dim)
        places, is_real = _places_in_tails(lengths, self.rank, num_neighbours, length)
        return _take(together, places.to(x.device), is_real.to(x.device), sequence_dim)

    def _lengths_of_all(self, slice_lengths: Tensor) -> Tensor:
        """int64 [C, B] on the CPU: of all ranks."""
        own = slice_lengths.to(torch.int64)
        gathered = [torch.empty_like(own) for _ in range(self.num_ranks)]
        dist.all_gather(gathered, own, group=self.group)
        return torch.stack(gathered).cpu()


def _num_neighbours(lengths: Tensor, length: int) -> int:
    """How many slices to the left hold `length` positions, or all there are, for every rank and row.

    Args:
        lengths: int64 [C, B].
        length: of the halo.
    """
    num_ranks = lengths.shape[0]
    for count in range(1, num_ranks - 1):
        # Sums of `count` slices in a row; those that begin at the first slice reach the start of the sequence anyway.
        sums = lengths.unfold(0, count, 1).sum(-1)[1 : num_ranks - count]
        if bool((sums >= length).all()):
            return count
    return max(1, num_ranks - 1)


def _places_in_tails(lengths: Tensor, rank: int, num_neighbours: int, length: int) -> tuple[Tensor, Tensor]:
    """Where the positions of a halo lie in the tails of the slices to the left, joined from left to right.

    Args:
        lengths: int64 [C, B], real positions of each slice.
        rank: whose halo it is.
        num_neighbours: N, number of tails; each is `length` long and right-aligned.
        length: of the halo.

    Returns:
        Places, int64 [B, length], and whether there is such a position, bool [B, length].
    """
    first = max(rank - num_neighbours, 0)
    nearest_first = lengths[first:rank].flip(0)
    ends = nearest_first.cumsum(0).t().contiguous()
    backward = torch.arange(length).expand(lengths.shape[1], length).contiguous()
    neighbour = torch.searchsorted(ends, backward, right=True) if ends.shape[1] else torch.zeros_like(backward)
    is_real = neighbour < ends.shape[1]
    starts = torch.cat([torch.zeros(lengths.shape[1], 1, dtype=torch.int64), ends], 1)
    within = backward - starts.gather(1, neighbour.clamp_max(ends.shape[1]))
    places = (num_neighbours - neighbour) * length - 1 - within
    return places.flip(1), is_real.flip(1)


def _take(x: Tensor, places: Tensor, is_real: Tensor, sequence_dim: int) -> Tensor:
    """Positions of each row of a batch, zeros where there is none.

    Args:
        x: its batch is the dimension before the sequence's.
        places: int64 [B, N], along the sequence.
        is_real: bool [B, N].
        sequence_dim: of x.
    """
    shape = [1] * x.dim()
    shape[sequence_dim - 1 : sequence_dim + 1] = places.shape
    index, keep = places.clamp(0, x.shape[sequence_dim] - 1).view(shape), is_real.view(shape)
    taken = torch.take_along_dim(x, index, sequence_dim)
    return torch.where(keep, taken, torch.zeros((), dtype=x.dtype, device=x.device))
