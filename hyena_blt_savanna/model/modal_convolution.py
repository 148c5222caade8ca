"""Convolution with sums of exponentials, chunk by chunk: hyena_li without Fourier space.

y[t] = sum over s up to t of h[t - s] x[s] with h[t] = sum over o of residue[o] exp(-rate[o] t). Inputs of a position's
own chunk count tap by tap, which is one matrix product with a triangular matrix of taps. What lies before the chunk is
known by O sums, one an exponential, from which each position of the chunk reads its share: two more products, and a
recurrence over chunks. The time grows as the length does, and no filter as long as the sequence is ever made.

Source: the state-space form of Massaroli et al. 2023 (arXiv:2310.18780); chunks as in Dao and Gu 2024
(arXiv:2405.21060, section 6).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model.precision import no_autocast

CHUNK = 64
"""Positions of a chunk: of 32, 64 and 128, what took the least time at 16,384 positions and 16 exponentials."""


def modal_convolution(x: Tensor, rates: Tensor, residues: Tensor) -> Tensor:
    """Convolves each channel with its group's filter.

    Args:
        x: [D, B, L].
        rates: [G, O], positive, fp32 at least; group g serves the D / G consecutive channels from g D / G on.
        residues: [G, O].

    Returns:
        [D, B, L], dtype of x.
    """
    channels, batch, length = x.shape
    num_groups = len(rates)
    num_chunks = -(-length // CHUNK)
    with no_autocast(x):
        steps = torch.arange(CHUNK + 1, device=x.device, dtype=rates.dtype)
        # [G, O, C + 1]
        decay = torch.exp(-rates[..., None] * steps)
        taps = torch.bmm(residues[:, None], decay[..., :-1])[:, 0]
        padded = functional.pad(x.to(rates.dtype), (0, num_chunks * CHUNK - length))
        rows = padded.reshape(num_groups, -1, CHUNK)
        y = torch.bmm(rows, _triangle(taps))
        if num_chunks > 1:
            # What each chunk adds to the sums at its end, and what is known of all chunks before it.
            added = torch.bmm(rows, decay[..., :-1].flip(-1).mT).view(num_groups, -1, num_chunks, rates.shape[1])
            known = _SumsBefore.apply(added, decay[:, None, :, -1])
            y = torch.baddbmm(y, known.flatten(1, 2), residues[..., None] * decay[..., 1:])
    return y.view(channels, batch, -1)[..., :length].to(x.dtype)


def _triangle(taps: Tensor) -> Tensor:
    """[G, C, C] of taps [G, C]: at [s, t] the tap of lag t - s."""
    chunk = taps.shape[1]
    # Rows that are one longer than the matrix shift by one each when they are read as rows of the matrix.
    rows = functional.pad(taps, (0, chunk))[:, None].expand(-1, chunk, -1).reshape(len(taps), -1)
    return rows[:, : chunk * (2 * chunk - 1)].view(len(taps), chunk, -1)[..., :chunk].triu()


class _SumsBefore(torch.autograd.Function):
    """known[n] = factor known[n - 1] + added[n - 1], known[0] = 0, for added [G, R, N, O] and factor [G, 1, O]."""

    @staticmethod
    def forward(ctx: Any, added: Tensor, factor: Tensor) -> Tensor:
        known = torch.zeros_like(added)
        known[:, :, 1:] = added[:, :, :-1]
        _accumulate(known, factor)
        ctx.save_for_backward(known, factor)
        return known

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        known, factor = ctx.saved_tensors
        # The same from the last chunk to the first.
        sums = gradients[0].flip(2)
        _accumulate(sums, factor)
        sums = sums.flip(2)
        dfactor = (sums[:, :, 1:] * known[:, :, :-1]).sum((1, 2))[:, None]
        dadded = torch.zeros_like(sums)
        dadded[:, :, :-1] = sums[:, :, 1:]
        return dadded, dfactor


def _accumulate(sums: Tensor, factor: Tensor) -> None:
    """sums[n] += factor sums[n - 1] from the first to the last, in place; by doubling, log2(N) passes over all."""
    reach, factor = 1, factor[:, :, None]
    while reach < sums.shape[2]:
        sums[:, :, reach:] += factor * sums[:, :, :-reach]
        reach, factor = 2 * reach, factor.square()
