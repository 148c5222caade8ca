"""Between our order of the slices of a sequence and Savanna's.

A sequence is cut into 2 C pieces. Here, context rank r holds pieces 2 r and 2 r + 1; in Savanna r and 2 C - 1 - r, so
that causal attention is balanced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def to_zigzag(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, L / C, M] in our order to [B, L / C, M] in Savanna's.

    Args:
        x: L / C is even.
        group: the context ranks.
    """
    moved: Tensor = _Exchange.apply(x, group, True)
    return moved


def from_zigzag(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[B, L / C, M] in Savanna's order to [B, L / C, M] in ours."""
    moved: Tensor = _Exchange.apply(x, group, False)
    return moved


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, into_zigzag: bool) -> Tensor:
        ctx.group, ctx.into_zigzag = group, into_zigzag
        return _exchange(x, group, into_zigzag)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(gradient, ctx.group, not ctx.into_zigzag), None, None


def _held(rank: int, num_ranks: int, in_zigzag: bool) -> tuple[int, int]:
    """The pieces that a rank holds, in the order in which they lie there."""
    return (rank, 2 * num_ranks - 1 - rank) if in_zigzag else (2 * rank, 2 * rank + 1)


def _exchange(x: Tensor, group: dist.ProcessGroup, into_zigzag: bool) -> Tensor:
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    owners = {piece: owner for owner in range(num_ranks) for piece in _held(owner, num_ranks, into_zigzag)}
    sources = {piece: owner for owner in range(num_ranks) for piece in _held(owner, num_ranks, not into_zigzag)}
    pieces = dict(zip(_held(rank, num_ranks, not into_zigzag), x.contiguous().chunk(2, dim=1), strict=True))
    wanted = _held(rank, num_ranks, into_zigzag)
    received: dict[int, Tensor] = {}
    operations = []
    for piece, tensor in pieces.items():
        if owners[piece] == rank:
            received[piece] = tensor
        else:
            sent = tensor.contiguous()
            operations.append(dist.P2POp(dist.isend, sent, group=group, tag=piece, group_peer=owners[piece]))
    for piece in wanted:
        if sources[piece] != rank:
            received[piece] = torch.empty_like(next(iter(pieces.values())), memory_format=torch.contiguous_format)
            operations.append(
                dist.P2POp(dist.irecv, received[piece], group=group, tag=piece, group_peer=sources[piece])
            )
    if operations:
        for request in dist.batch_isend_irecv(operations):
            request.wait()
    return torch.cat([received[piece] for piece in wanted], dim=1)
