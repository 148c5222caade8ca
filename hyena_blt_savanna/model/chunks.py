"""Runs a local map over a sequence chunk by chunk, and computes it again for its gradient.

What a map makes in between is many times as large as what it reads: over a million bases it would be the largest thing
in memory. A map that reads a bounded stretch to the left can go over the sequence in chunks, and then only what it
reads is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def in_chunks(
    run: Callable[..., Tensor], x_BLD: Tensor, weights: tuple[Tensor, ...], num_before: int, chunk: int
) -> Tensor:
    """`run(x_BLD, *weights)`, of which nothing is kept for the backward pass but its inputs.

    Args:
        run: [B, L, D] to [B, L, E], each position from itself and the `num_before` positions before it, zeros before
            the first. A function of its arguments: modules that it called would be called again in the backward pass,
            how often depending on L, and ZeRO 3 can't follow that.
        x_BLD: [B, L, D].
        weights: that `run` reads.
        num_before: how far it reads to the left.
        chunk: positions at a time.

    Returns:
        [B, L, E].
    """
    y: Tensor = _InChunks.apply(run, num_before, chunk, x_BLD, *weights)
    return y


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], num_before: int, chunk: int, x: Tensor, *weights: Tensor
    ) -> Tensor:
        device = x.device.type
        ctx.run, ctx.num_before, ctx.chunk = run, num_before, chunk
        ctx.autocast = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        ctx.save_for_backward(x, *weights)
        y = None
        for read, made, skipped in _chunks(x.shape[1], num_before, chunk):
            part = run(x[:, read], *weights)[:, skipped:]
            if y is None:
                y = part.new_empty(len(x), x.shape[1], part.shape[2])
            y[:, made] = part
        assert y is not None, "an empty sequence"
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[3:]
        inputs = ctx.saved_tensors
        sums = [torch.zeros_like(each) if wanted else None for each, wanted in zip(inputs, needed, strict=True)]
        for read, made, skipped in _chunks(inputs[0].shape[1], ctx.num_before, ctx.chunk):
            x, *weights = (each.detach() for each in inputs)
            leaves = [each.requires_grad_(wanted) for each, wanted in zip([x[:, read], *weights], needed, strict=True)]
            with torch.enable_grad(), torch.autocast(x.device.type, **ctx.autocast):
                part = ctx.run(*leaves)[:, skipped:]
            wanted_leaves = [leaf for leaf in leaves if leaf.requires_grad]
            found = iter(torch.autograd.grad(part, wanted_leaves, gradients[0][:, made]))
            for index, total in enumerate(sums):
                if total is not None:
                    # What lies before a chunk is a part of the chunk before as well.
                    (total[:, read] if index == 0 else total).add_(next(found))
        return None, None, None, *sums


def _chunks(length: int, num_before: int, chunk: int) -> Iterator[tuple[slice, slice, int]]:
    """For each chunk: what is read, what is made, and how much of what is read lies before it."""
    for first in range(0, length, chunk):
        before = min(num_before, first)
        stop = min(first + chunk, length)
        yield slice(first - before, stop), slice(first, stop), before
