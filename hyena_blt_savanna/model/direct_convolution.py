"""Causal convolutions by products of positions and taps: one product a tap, or products of matrices.

Tensors and filters as in `model/convolution.py`. Both algorithms save x and the taps for the backward pass, and nothing
else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model.fourier_convolution import next_fast_length
from hyena_blt_savanna.model.fused import kernels_for
from hyena_blt_savanna.model.precision import no_autocast, widen

LARGEST_PART = 2**22
"""Values of x that are cut into chunks at a time."""


def shifted_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """Sums one shifted product a tap.

    Args:
        x: [D, B, L].
        taps: [G, K], K at most L.

    Returns:
        [D, B, L], dtype of x.
    """
    y = _ShiftedConvolution.apply(x, taps)
    assert isinstance(y, Tensor)
    return y


def blocked_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """Multiplies chunks of the sequence with the filter, laid out as a banded matrix: for filters of tens of taps.

    Args:
        x: [D, B, L].
        taps: [G, K], K at most L.

    Returns:
        [D, B, L], dtype of x.

    Source: the two-stage blocked algorithm of Ku et al. 2025 (arXiv:2503.01868), for any number of stages.
    """
    y = _BlockedConvolution.apply(x, taps)
    assert isinstance(y, Tensor)
    return y


def torch_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """torch's own depthwise convolution, in fp32 at least.

    Args:
        x: [D, B, L].
        taps: [G, K], K at most L.

    Returns:
        [D, B, L], dtype of x.
    """
    wide = widen(x)
    weight = taps.to(wide.dtype).repeat_interleave(len(x) // len(taps), 0).flip(1)[:, None]
    with no_autocast(x):
        padded = functional.pad(wide, (taps.shape[1] - 1, 0)).transpose(0, 1)
        return functional.conv1d(padded, weight, groups=len(x)).transpose(0, 1).to(x.dtype)


class _ShiftedConvolution(torch.autograd.Function):
    """x [D, B, L], taps [G, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        kernels = kernels_for(x, taps)
        if kernels is not None:
            return kernels.convolve(x, widen(taps))
        wide = widen(x)
        weights = _weights(x, taps, wide.dtype)
        y = wide * weights[0]
        for lag, weight in enumerate(weights[1:], start=1):
            y[..., lag:].addcmul_(wide[..., :-lag], weight)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, taps = ctx.saved_tensors
        kernels = kernels_for(x, taps, dy)
        if kernels is not None:
            of_x, of_taps = kernels.convolve_backward(x, widen(taps), dy)
            return of_x, of_taps.to(taps.dtype)
        dx = None
        wide = widen(dy)
        if ctx.needs_input_grad[0]:
            weights = _weights(x, taps, wide.dtype)
            dx = wide * weights[0]
            for lag, weight in enumerate(weights[1:], start=1):
                dx[..., :-lag].addcmul_(wide[..., lag:], weight)
            dx = dx.to(x.dtype)
        return dx, _gradient_of_taps(x, wide, taps) if ctx.needs_input_grad[1] else None


def _weights(x: Tensor, taps: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """One weight a channel for each lag: [D, 1, 1]."""
    return taps.to(dtype).repeat_interleave(len(x) // len(taps), dim=0)[:, :, None, None].unbind(1)


class _BlockedConvolution(torch.autograd.Function):
    """x [D, B, L], taps [G, K].

    With chunks of C positions, J of which hold the K - 1 positions before a chunk, chunk i of y is the sum over j up
    to J of (chunk i - J + j of x) times (block j of the band). Sequences lie one after the other, each behind J chunks
    of zeros, so that all chunks of a filter's channels are rows of one matrix; rows that reach into the zeros of the
    next sequence are computed for nothing and thrown away.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        chunk = _chunk(taps.shape[1])
        band = _band(taps.to(widen(x).dtype), chunk)
        with no_autocast(x):
            for channels, groups in _parts(x, taps):
                rows, reach = _rows(x[channels], groups, chunk, before=taps.shape[1] - 1)
                num_rows = rows.shape[1] - reach
                blocks = band[groups].split(chunk, dim=2)
                sums = torch.bmm(rows[:, reach:], blocks[-1].mT)
                for back, block in enumerate(blocks[:-1]):
                    sums.baddbmm_(rows[:, back : back + num_rows], block.mT)
                _write_rows(y[channels], sums, reach)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, taps = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x, memory_format=torch.contiguous_format)
            chunk = _chunk(taps.shape[1])
            band = _band(taps.to(widen(x).dtype), chunk)
            with no_autocast(x):
                for channels, groups in _parts(x, taps):
                    rows, reach = _rows(dy[channels], groups, chunk, after=taps.shape[1] - 1)
                    num_rows = rows.shape[1] - reach
                    blocks = band[groups].split(chunk, dim=2)
                    sums = torch.bmm(rows[:, :num_rows], blocks[-1])
                    for ahead, block in enumerate(reversed(blocks[:-1]), start=1):
                        sums.baddbmm_(rows[:, ahead : ahead + num_rows], block)
                    _write_rows(dx[channels], sums, reach)
        return dx, _gradient_of_taps(x, dy, taps) if ctx.needs_input_grad[1] else None


def correlate(x: Tensor, y: Tensor, num_lags: int) -> Tensor:
    """sum over b, t of x[d, b, t] y[d, b, t + k] for each lag k: the gradient of a convolution's taps.

    As matrix products of chunks: the diagonals of (chunk of x)^T (chunk of y) hold the pairs within a chunk,
    those of (end of a chunk of x)^T (start of the next chunk of y) the pairs across a border. A dot product a
    lag reads everything once a lag instead.

    Args:
        x: [D, B, L].
        y: [D, B, L].
        num_lags: K, at most L.

    Returns:
        [D, K].
    """
    reach = num_lags - 1
    chunk = max(16, next_fast_length(max(reach, 1)))
    fill = -x.shape[-1] % chunk
    if fill:
        x, y = functional.pad(x, (0, fill)), functional.pad(y, (0, fill))
    channels = x.shape[0]
    rows_x, rows_y = x.unflatten(-1, (-1, chunk)), y.unflatten(-1, (-1, chunk))
    with no_autocast(x):
        within = torch.bmm(rows_x.reshape(channels, -1, chunk).mT, rows_y.reshape(channels, -1, chunk))
        # In rows that are one longer, what lies on a diagonal lies in a column.
        sums = functional.pad(within.triu_().flatten(1), (0, chunk)).view(-1, chunk, chunk + 1).sum(1)[:, :num_lags]
        if reach and rows_x.shape[2] > 1:
            ends = rows_x[:, :, :-1, chunk - reach :].reshape(channels, -1, reach)
            starts = rows_y[:, :, 1:, :reach].reshape(channels, -1, reach)
            across = torch.bmm(ends.mT, starts).tril_().flatten(1)
            sums += functional.pad(across, (reach, 0)).view(-1, reach, num_lags).sum(1)
    return sums


def _gradient_of_taps(x: Tensor, dy: Tensor, taps: Tensor) -> Tensor:
    shape = (len(taps), -1, x.shape[-1])
    return correlate(widen(x).reshape(shape), widen(dy).reshape(shape), taps.shape[1]).to(taps.dtype)


def _chunk(num_taps: int) -> int:
    """Positions of a chunk, C."""
    return 16 if num_taps <= 32 else 32


def _parts(x: Tensor, taps: Tensor) -> Iterator[tuple[slice, slice]]:
    """Channels that are looked at together, and their filters: several whole groups, at least one."""
    of_group = len(x) // len(taps)
    num_groups = max(1, LARGEST_PART // (of_group * x.shape[1] * x.shape[2]))
    for group in range(0, len(taps), num_groups):
        end = min(group + num_groups, len(taps))
        yield slice(group * of_group, end * of_group), slice(group, end)


def _rows(x: Tensor, groups: slice, chunk: int, before: int = 0, after: int = 0) -> tuple[Tensor, int]:
    """Chunks of x [D, B, L] as rows [G, D / G * B * (N + J), C] in fp32 at least, and J.

    J chunks of zeros lie in front of each sequence where `before` positions are to be reached, and behind each where
    `after` are. As many lie between sequences either way.
    """
    reach = -(-(before + after) // chunk)
    missing = reach * chunk + -x.shape[-1] % chunk
    left = reach * chunk if before else 0
    padded = functional.pad(widen(x), (left, missing - left))
    return padded.view(groups.stop - groups.start, -1, chunk), reach


def _write_rows(y: Tensor, sums: Tensor, reach: int) -> None:
    """Puts rows [G, D / G * B * (N + J) - J, C] where they belong in y [D, B, L], without the J between sequences."""
    num_groups, _, chunk = sums.shape
    channels, batch, length = y.shape
    num_chunks = -(-length // chunk)
    grouped = y.view(num_groups, -1, length)
    for index in range(channels * batch // num_groups):
        first = index * (num_chunks + reach)
        grouped[:, index] = sums[:, first : first + num_chunks].flatten(1)[:, :length]


def _band(taps: Tensor, chunk: int) -> Tensor:
    """[G, C, (J + 1) C] of taps [G, K]: row b holds the filter backwards, lag 0 in column J C + b."""
    num_groups, num_taps = taps.shape
    width = (-(-(num_taps - 1) // chunk) + 1) * chunk
    # Rows that are one longer than the band shift by one each when they are read as rows of the band.
    backwards = functional.pad(taps.flip(1), (width - chunk - num_taps + 1, chunk))
    rows = backwards[:, None].expand(-1, chunk, -1).reshape(num_groups, -1)
    return rows[:, : chunk * width].view(num_groups, chunk, width)
