"""Causal convolutions by optional CUDA kernels, in the layouts and the orders of taps that each of them wants.

Tensors and filters as in `model/convolution.py`. What is said of a library here is from its documentation: sequences
are [B, D, L], filters one a channel, [D, K].
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from hyena_blt_savanna.model.kernels import load
from hyena_blt_savanna.model.precision import no_autocast, widen

_LONGEST_FLASH_TRANSFORM = 2**22
_SHORTEST_FLASH_TRANSFORM = 256
_FLASH_CHANNELS = 16
"""Where transforms are long, channels come in multiples of this."""
_LARGEST_FLASH_OF_ANY_WIDTH = 2**15


def subquadratic_direct_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """subquadratic-ops' direct convolution, in fp32; its last tap weighs the current position.

    Args:
        x: [D, B, L].
        taps: [G, K], K from 2 to 256.

    Returns:
        [D, B, L], dtype of x.
    """
    convolve = load("subquadratic_ops", "causal_conv1d.causal_conv1d")
    wide = widen(x)
    with no_autocast(x):
        y: Tensor = convolve(_batch_first(wide), _by_channel(x, taps, wide.dtype).flip(1).contiguous())
    return y.transpose(0, 1).to(x.dtype)


def subquadratic_fourier_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """subquadratic-ops' convolution in Fourier space, in fp32; its first tap weighs the current position.

    Args:
        x: [D, B, L].
        taps: [G, K].

    Returns:
        [D, B, L], dtype of x.
    """
    convolve = load("subquadratic_ops", "fft_causal_conv1d.fft_causal_conv1d")
    wide = widen(x)
    with no_autocast(x):
        y: Tensor = convolve(_batch_first(wide), _by_channel(x, taps, wide.dtype))
    return y.transpose(0, 1).to(x.dtype)


def subquadratic_back_to_back(z: Tensor, featurizer_taps: Tensor, taps: Tensor, skip: Tensor | None) -> Tensor:
    """subquadratic-ops' `b2b_causal_conv1d`, in fp32: what `model.back_to_back.plain_back_to_back` computes.

    The kernel wants x1, x2 and v of a channel beside each other; its last taps weigh the current position.

    Args:
        z: [3 D, B, L].
        featurizer_taps: [3 D, F], F from 2 to 32.
        taps: [G, K], K from 2 to 256.
        skip: [D], or None.

    Returns:
        [D, B, L], dtype of z.
    """
    mix = load("subquadratic_ops", "b2b_causal_conv1d.b2b_causal_conv1d")
    wide, width = widen(z), len(z) // 3
    short = widen(featurizer_taps).unflatten(0, (3, width)).transpose(0, 1).flatten(0, 1)
    long = _by_channel(z[:width], taps, wide.dtype)
    weights = wide.new_zeros(width) if skip is None else widen(skip)
    x = wide.unflatten(0, (3, width)).permute(2, 1, 0, 3).flatten(1, 2)
    with no_autocast(z):
        y: Tensor = mix(x.contiguous(), short.flip(1).contiguous(), long.flip(1).contiguous(), weights)
    return y.transpose(0, 1).to(z.dtype)


def causal_conv1d_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """causal-conv1d's convolution, which sums in fp32; its last tap weighs the current position.

    Args:
        x: [D, B, L].
        taps: [G, K], K from 2 to 4.

    Returns:
        [D, B, L], dtype of x.
    """
    convolve = load("causal_conv1d", "causal_conv1d_fn")
    with no_autocast(x):
        y: Tensor = convolve(_batch_first(x), _by_channel(x, taps, torch.float32).flip(1).contiguous(), None, None)
    return y.transpose(0, 1).to(x.dtype)


def flash_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """flashfftconv's convolution in Fourier space, in bf16: coarser than every other.

    Args:
        x: [D, B, L].
        taps: [G, K].

    Returns:
        [D, B, L], dtype of x.
    """
    convolve = _flash(_flash_size(x, taps))
    sequences = _batch_first(x).to(torch.bfloat16)
    with no_autocast(x):
        y: Tensor = convolve(sequences, _by_channel(x, taps, torch.float32))
    return y.transpose(0, 1).to(x.dtype)


def fits_flash(x: Tensor, taps: Tensor) -> bool:
    """Whether flashfftconv takes sequences [D, B, L] and filters [G, K] of such shapes."""
    size = _flash_size(x, taps)
    is_wide_enough = size <= _LARGEST_FLASH_OF_ANY_WIDTH or len(x) % _FLASH_CHANNELS == 0
    return size <= _LONGEST_FLASH_TRANSFORM and x.shape[-1] % 4 == 0 and taps.shape[1] % 4 == 0 and is_wide_enough


def _flash_size(x: Tensor, taps: Tensor) -> int:
    return max(_SHORTEST_FLASH_TRANSFORM, 1 << (x.shape[-1] + taps.shape[1] - 2).bit_length())


@cache
def _flash(size: int) -> Any:
    """One object a size, as its makers recommend: it holds tables."""
    return load("flashfftconv", "FlashFFTConv")(size, dtype=torch.bfloat16).cuda()


def _batch_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous()


def _by_channel(x: Tensor, taps: Tensor, dtype: torch.dtype) -> Tensor:
    return taps.to(dtype).repeat_interleave(len(x) // len(taps), dim=0)
