"""Causal depthwise convolutions.

Everywhere in this package a filter's index is its lag: y[t] = sum over k of taps[k] x[t - k], so tap 0
weighs the current position. (`torch.nn.functional.conv1d` has the last tap there.) Tensors are [D, B, L],
channels outermost: filters apply along the contiguous dimension, the channels that share a filter are
neighbours, a projection from [B, L, M] is one matrix product without a copy, and cutting the channels over
ranks is too.

Both algorithms save their input and their taps for the backward pass and nothing else, whatever the length:
spectra are computed again, of a few channels at a time where they are long. Both compute in fp32 at least, and give
back the dtype of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model.precision import no_autocast, widen

LONGEST_SHIFTED = 16
"""Up to so many taps, one product a tap beats Fourier space on a CPU (bench/convolution.py)."""
LARGEST_SPECTRA = 2**22
"""Values that are in Fourier space at a time: at 131,072 positions 16 MB of them took two thirds of the time that
64 MB and more took, and shorter windows than some 20,000 positions at a width of 192 are not divided."""


def causal_convolution(x: Tensor, taps: Tensor, left: Tensor | None = None) -> Tensor:
    """Convolves each channel with its group's filter, by the algorithm that is faster for so many taps.

    Args:
        x: [D, B, L].
        taps: [G, K], index = lag; group g serves the D / G consecutive channels from g D / G on.
        left: [D, B, K - 1], the positions before x; None: zeros.

    Returns:
        [D, B, L], dtype of x.
    """
    num_left = 0
    if left is not None:
        num_left = left.shape[-1]
        x = torch.cat([left, x], dim=-1)
    convolve = shifted_convolution if taps.shape[1] <= LONGEST_SHIFTED else fft_convolution
    return convolve(x, taps[:, : x.shape[-1]])[..., num_left:]


def shifted_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """Sums one shifted product a tap.

    Args:
        x: [D, B, L].
        taps: [G, K], K at most L.

    Returns:
        [D, B, L], dtype of x.
    """
    y = _ShiftedConvolution.apply(x, taps.repeat_interleave(x.shape[0] // taps.shape[0], dim=0))
    assert isinstance(y, Tensor)
    return y


def fft_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """Multiplies in Fourier space, padded so that nothing wraps around: for filters of any length.

    Args:
        x: [D, B, L].
        taps: [G, K], K at most L.

    Returns:
        [D, B, L], dtype of x; a view of a longer buffer.
    """
    y = _FourierConvolution.apply(x, taps)
    assert isinstance(y, Tensor)
    return y


class _ShiftedConvolution(torch.autograd.Function):
    """x [D, B, L], taps [D, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        wide = widen(x)
        weights = taps.to(wide.dtype)[:, :, None, None].unbind(1)
        y = wide * weights[0]
        for lag, weight in enumerate(weights[1:], start=1):
            y[..., lag:].addcmul_(wide[..., :-lag], weight)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, taps = ctx.saved_tensors
        dx = dtaps = None
        wide = widen(dy)
        if ctx.needs_input_grad[0]:
            weights = taps.to(wide.dtype)[:, :, None, None].unbind(1)
            dx = wide * weights[0]
            for lag, weight in enumerate(weights[1:], start=1):
                dx[..., :-lag].addcmul_(wide[..., lag:], weight)
            dx = dx.to(x.dtype)
        if ctx.needs_input_grad[1]:
            dtaps = correlate(widen(x), wide, taps.shape[1]).to(taps.dtype)
        return dx, dtaps


class _FourierConvolution(torch.autograd.Function):
    """x [D, B, L], taps [G, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        y = None
        for channels, groups in _parts(x, taps):
            spectrum, response, size = _spectra(x[channels], taps[groups])
            part = torch.fft.irfft(spectrum.mul_(response), n=size).flatten(0, 1)[..., : x.shape[-1]].to(x.dtype)
            if len(part) == len(x):
                return part
            y = torch.empty_like(x) if y is None else y
            y[channels] = part
        assert y is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, taps = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dtaps = torch.zeros_like(taps) if ctx.needs_input_grad[1] else None
        for channels, groups in _parts(x, taps):
            spectrum, response, size = _spectra(x[channels], taps[groups])
            outer = torch.fft.rfft(widen(dy[channels]), n=size).view(spectrum.shape)
            if dtaps is not None:
                across = spectrum.conj_physical_().mul_(outer).sum(dim=(1, 2))
                dtaps[groups] += torch.fft.irfft(across, n=size)[:, : taps.shape[1]]
            if dx is not None:
                back = torch.fft.irfft(outer.mul_(response.conj_physical_()), n=size).flatten(0, 1)
                dx[channels] = back[..., : x.shape[-1]]
        return dx, dtaps


def _parts(x: Tensor, taps: Tensor) -> Iterator[tuple[slice, slice]]:
    """Channels whose spectra are looked at together, and their filters: several whole groups, or a part of one."""
    channels, batch, length = x.shape
    of_group = channels // len(taps)
    most = max(1, LARGEST_SPECTRA // (batch * (length + taps.shape[1])))
    if most < of_group:
        for group in range(len(taps)):
            for first in range(group * of_group, (group + 1) * of_group, most):
                yield slice(first, min(first + most, (group + 1) * of_group)), slice(group, group + 1)
        return
    num_groups = most // of_group
    for group in range(0, len(taps), num_groups):
        yield slice(group * of_group, (group + num_groups) * of_group), slice(group, group + num_groups)


def _spectra(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor, int]:
    """Spectra of x [G, D / G, B, F] and of the filters [G, 1, 1, F], and the transform's size."""
    size = next_fast_length(x.shape[-1] + taps.shape[1] - 1)
    spectrum = torch.fft.rfft(widen(x), n=size)
    grouped = spectrum.view(taps.shape[0], -1, *spectrum.shape[1:])
    return grouped, torch.fft.rfft(taps.to(widen(x).dtype), n=size)[:, None, None], size


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
        within = torch.bmm(rows_x.reshape(channels, -1, chunk).transpose(1, 2), rows_y.reshape(channels, -1, chunk))
    sums = [within.diagonal(lag, 1, 2).sum(-1) for lag in range(num_lags)]
    if reach and rows_x.shape[2] > 1:
        ends = rows_x[:, :, :-1, chunk - reach :].reshape(channels, -1, reach)
        starts = rows_y[:, :, 1:, :reach].reshape(channels, -1, reach)
        with no_autocast(x):
            across = torch.bmm(ends.transpose(1, 2), starts)
        for lag in range(1, num_lags):
            sums[lag] = sums[lag] + across.diagonal(lag - reach, 1, 2).sum(-1)
    return torch.stack(sums, dim=1)


def next_fast_length(length: int) -> int:
    """The smallest integer from `length` on whose only prime factors are 2, 3 and 5."""
    best = 1 << (length - 1).bit_length()
    for five in _powers(5, best):
        for three in _powers(3, best):
            quotient = -(-length // (five * three))
            best = min(best, five * three << (quotient - 1).bit_length())
    return best


def _powers(base: int, limit: int) -> list[int]:
    powers = [1]
    while powers[-1] * base <= limit:
        powers.append(powers[-1] * base)
    return powers
