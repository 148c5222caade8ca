"""Causal depthwise convolutions.

Everywhere in this package a filter's index is its lag: y[t] = sum over k of taps[k] x[t - k], so tap 0
weighs the current position. (`torch.nn.functional.conv1d` has the last tap there.) Tensors are [D, B, L],
channels outermost: filters apply along the contiguous dimension, the channels that share a filter are
neighbours, and a projection from [B, L, M] is one matrix product without a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def causal_convolution(x: Tensor, taps: Tensor, left: Tensor | None = None) -> Tensor:
    """Convolves each channel with its group's filter.

    Args:
        x: [D, B, L].
        taps: [G, K], index = lag; group g serves the D / G consecutive channels from g D / G on.
        left: [D, B, K - 1], the positions before x; None: zeros.

    Returns:
        [D, B, L], dtype of x; computed in fp32 at least.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    kernel = taps.to(wide.dtype)[:, : x.shape[-1] + (0 if left is None else left.shape[-1])]
    if left is not None:
        padded = torch.cat([left.to(wide.dtype), wide], dim=-1)
        return fft_convolution(padded, kernel)[..., left.shape[-1] :].to(x.dtype)
    return fft_convolution(wide, kernel).to(x.dtype)


def fft_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """The same through Fourier space, for filters of any length.

    Args:
        x: [D, B, L], fp32 or fp64.
        taps: [G, K] with K at most L.

    Returns:
        [D, B, L].
    """
    channels, batch, length = x.shape
    groups, num_taps = taps.shape
    size = next_fast_length(length + num_taps - 1)
    spectrum = torch.fft.rfft(x, n=size).view(groups, channels // groups, batch, -1)
    filtered = spectrum * torch.fft.rfft(taps, n=size)[:, None, None]
    return torch.fft.irfft(filtered, n=size)[..., :length].reshape(channels, batch, length)


def next_fast_length(length: int) -> int:
    """The smallest integer from `length` on whose only prime factors are 2, 3 and 5."""
    best = 1 << (length - 1).bit_length()
    odd = [five * three for five in _powers(5, best) for three in _powers(3, best)]
    for factor in odd:
        quotient = -(-length // factor)
        best = min(best, factor << (quotient - 1).bit_length())
    return best


def _powers(base: int, limit: int) -> list[int]:
    powers = [1]
    while powers[-1] * base <= limit:
        powers.append(powers[-1] * base)
    return powers


def shifted_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """The definition, one product a tap: for a handful of taps."""
    channels, _, length = x.shape
    per_channel = taps.repeat_interleave(channels // taps.shape[0], dim=0)[:, :, None, None].unbind(1)
    total = x * per_channel[0]
    for lag in range(1, min(taps.shape[1], length)):
        total = total + functional.pad(x[..., : length - lag] * per_channel[lag], (lag, 0))
    return total
