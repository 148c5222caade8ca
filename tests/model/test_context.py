"""Mixers over slices equal mixers over the whole: the contract of `ContextParallel`, with threads for ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model.operators import HyenaConfig
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel


class Meeting:
    """Where threads lay down their tensors for each other; autograd runs through it like through any graph."""

    def __init__(self, num_ranks: int) -> None:
        self.barrier = threading.Barrier(num_ranks)
        self.laid_down: list[Tensor | None] = [None] * num_ranks

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        self.laid_down[rank] = x
        self.barrier.wait()
        everything = [part for part in self.laid_down if part is not None]
        self.barrier.wait()
        return everything


class ThreadContext(ContextParallel):
    """One of several threads that each hold an equal slice."""

    def __init__(self, rank: int, num_ranks: int, meeting: Meeting) -> None:
        self.rank, self.num_ranks, self.meeting = rank, num_ranks, meeting

    def gather_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        return self.own_channels(torch.cat(self.meeting.exchange(self.rank, x), sequence_dim), channel_dim)

    def scatter_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        whole = torch.cat(self.meeting.exchange(self.rank, x), channel_dim)
        return whole.chunk(self.num_ranks, sequence_dim)[self.rank]

    def own_channels(self, x: Tensor, channel_dim: int) -> Tensor:
        return x.chunk(self.num_ranks, channel_dim)[self.rank]

    def halo(self, x: Tensor, length: int, sequence_dim: int) -> Tensor:
        zeros = torch.zeros_like(x.narrow(sequence_dim, 0, 1)).repeat_interleave(length, sequence_dim)
        before = self.meeting.exchange(self.rank, x)[: self.rank]
        together = torch.cat([zeros, *before], sequence_dim)
        return together.narrow(sequence_dim, together.shape[sequence_dim] - length, length)


def on_threads(num_ranks: int, work: Callable[[ContextParallel], Tensor]) -> list[Tensor]:
    meeting, results = Meeting(num_ranks), [torch.empty(0)] * num_ranks

    def run(rank: int) -> None:
        results[rank] = work(ThreadContext(rank, num_ranks, meeting))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("name", ["hyena_se", "hyena_mr", "hyena_li", "hyena_implicit", "attention"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_slices_equal_the_whole(name: str, num_ranks: int) -> None:
    # At 4 ranks a slice of 60 positions is shorter than the halo of hyena_mr.
    config = StackConfig(width=16, num_heads=4, blocks=[name], hyena=HyenaConfig(se_groups=8, mr_groups=4, li_groups=8))
    whole = config.build().double()
    x = torch.randn(2, 240, 16, dtype=torch.double, requires_grad=True)
    expected = whole(x)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, [x, *whole.parameters()], weight)

    def work(context: ContextParallel) -> Tensor:
        stack = config.build(context).double()
        weights = dict(whole.named_parameters())
        own = x.chunk(num_ranks, 1)[context.rank]
        return torch.func.functional_call(stack, weights | dict(whole.named_buffers()), own)

    found = torch.cat(on_threads(num_ranks, work), 1)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, [x, *whole.parameters()], weight), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_single_rank_is_the_identity() -> None:
    x = torch.randn(4, 2, 8)
    assert SINGLE_RANK.gather_sequence(x, 0, 2) is x
    assert SINGLE_RANK.scatter_sequence(x, 0, 2) is x
    assert SINGLE_RANK.own_channels(x, 0) is x
    assert SINGLE_RANK.halo(x, 3, 2) is None
    assert (SINGLE_RANK.num_ranks, SINGLE_RANK.rank) == (1, 0)
