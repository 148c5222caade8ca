"""Context parallelism without the other ranks: tensors of the shapes and the memory of an exchange, and no messages.

For planning how much memory a rank needs. Nothing but shapes is told by what comes out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyena_blt_savanna.parallel.group_context import GroupContext


class RehearsedContext(GroupContext):
    """One of several context ranks, alone.

    Args:
        num_ranks: C.
        rank: which slice is held here.
    """

    def __init__(self, num_ranks: int, rank: int) -> None:
        self.num_ranks = num_ranks
        self.rank = rank

    def _swap(self, x: Tensor, split_dim: int, join_dim: int) -> Tensor:
        swapped: Tensor = _Swap.apply(x, self.num_ranks, split_dim, join_dim)
        return swapped

    def _from_left(self, x: Tensor, num_neighbours: int) -> Tensor:
        received: Tensor = _FromLeft.apply(x, num_neighbours)
        return received


class _Swap(torch.autograd.Function):
    """`exchange.all_to_all`, and what comes from others is whatever lies in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, num_ranks: int, split_dim: int, join_dim: int) -> Tensor:
        ctx.num_ranks, ctx.dims = num_ranks, (split_dim, join_dim)
        return _swap(x, num_ranks, split_dim, join_dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        split_dim, join_dim = ctx.dims
        return _swap(gradient, ctx.num_ranks, join_dim, split_dim), None, None, None


def _swap(x: Tensor, num_ranks: int, split_dim: int, join_dim: int) -> Tensor:
    sent = torch.stack(x.chunk(num_ranks, split_dim))
    received = torch.empty_like(sent)
    return torch.cat(received.unbind(0), join_dim)


class _FromLeft(torch.autograd.Function):
    """`exchange.from_left`, of neighbours that have nothing but zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, num_neighbours: int) -> Tensor:
        return x.contiguous().new_zeros((num_neighbours, *x.shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sent, returned = gradient.contiguous(), torch.zeros_like(gradient)
        assert sent.shape == returned.shape
        return returned.sum(0), None
