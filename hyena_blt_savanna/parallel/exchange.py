"""What the ranks of a group exchange: each a function of tensors whose backward is the transposed exchange.

Every rank of the group calls each of them, in the same order and with tensors of the same shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def all_to_all(x: Tensor, group: dist.ProcessGroup, split_dim: int, join_dim: int) -> Tensor:
    """Sends the r-th part of a tensor to rank r, and joins what comes from all ranks in their order.

    Args:
        x: its `split_dim` divides by the number of ranks C.
        group: the ranks.
        split_dim: the dimension that is shared out; C times shorter in the result.
        join_dim: the dimension that is put together; C times longer in the result.
    """
    joined: Tensor = _AllToAll.apply(x, group, split_dim, join_dim)
    return joined


def from_left(x: Tensor, group: dist.ProcessGroup, num_neighbours: int) -> Tensor:
    """The tensors of the ranks to the left, by point-to-point messages.

    Args:
        x: [...], sent to the `num_neighbours` ranks to the right.
        group: the ranks.
        num_neighbours: N, at least 1.

    Returns:
        [N, ...]: entry k is the tensor of the rank k + 1 to the left, zeros where there is none.
    """
    received: Tensor = _FromLeft.apply(x, group, num_neighbours)
    return received


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, split_dim: int, join_dim: int) -> Tensor:
        ctx.group, ctx.dims = group, (split_dim, join_dim)
        return _swap(x, group, split_dim, join_dim)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        split_dim, join_dim = ctx.dims
        return _swap(gradient, ctx.group, join_dim, split_dim), None, None, None


def _swap(x: Tensor, group: dist.ProcessGroup, split_dim: int, join_dim: int) -> Tensor:
    num_ranks = dist.get_world_size(group)
    assert x.shape[split_dim] % num_ranks == 0, "the model's configuration allows no such number of ranks"
    sent = torch.stack(x.chunk(num_ranks, split_dim))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(received.unbind(0), join_dim)


class _FromLeft(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, num_neighbours: int) -> Tensor:
        ctx.group = group
        x = x.contiguous()
        received = x.new_zeros((num_neighbours, *x.shape))
        _send([x] * num_neighbours, list(received.unbind(0)), group, direction=1)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # What came from a rank goes back to it, and is added up there.
        returned = torch.zeros_like(gradient)
        _send(list(gradient.contiguous().unbind(0)), list(returned.unbind(0)), ctx.group, direction=-1)
        return returned.sum(0), None, None


def _send(sent: list[Tensor], received: list[Tensor], group: dist.ProcessGroup, direction: int) -> None:
    """Sends the k-th tensor k + 1 ranks in a direction, and receives the k-th from as far in the other one."""
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    operations = []
    for distance, (out, into) in enumerate(zip(sent, received, strict=True), start=1):
        to, source = rank + direction * distance, rank - direction * distance
        # A tag for each distance: two ranks exchange several tensors where a slice is shorter than a halo.
        if 0 <= to < num_ranks:
            operations.append(dist.P2POp(dist.isend, out, group=group, tag=distance, group_peer=to))
        if 0 <= source < num_ranks:
            operations.append(dist.P2POp(dist.irecv, into, group=group, tag=distance, group_peer=source))
    if operations:
        for request in dist.batch_isend_irecv(operations):
            request.wait()
