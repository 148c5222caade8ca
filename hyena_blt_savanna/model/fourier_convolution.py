"""Causal convolutions in Fourier space: of the whole sequence at once, or of chunks of it.

Tensors and filters as in `model/convolution.py`. Both algorithms save x and the taps for the backward pass, and nothing
else: spectra are computed again, of a few channels at a time where they are long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model.precision import widen

LARGEST_SPECTRA = 2**22
"""Values that are in Fourier space at a time: at 131,072 positions 16 MB of them took two thirds of the time that
64 MB and more took, and shorter windows than some 20,000 positions at a width of 192 are not divided."""
LARGEST_CHUNKED = 2**19
"""As much where sequences are cut into chunks."""


def fourier_convolution(x: Tensor, taps: Tensor) -> Tensor:
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


def overlap_add_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """Multiplies chunks in Fourier space, and adds where what becomes of them overlaps.

    For filters of tens to thousands of taps that are much shorter than the sequence: transforms fit into caches.

    Args:
        x: [D, B, L].
        taps: [G, K], K at most L.

    Returns:
        [D, B, L], dtype of x.
    """
    y = _OverlapAdd.apply(x, taps)
    assert isinstance(y, Tensor)
    return y


class _FourierConvolution(torch.autograd.Function):
    """x [D, B, L], taps [G, K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        y = None
        for channels, groups in _parts(x, taps, x.shape[-1] + taps.shape[1], LARGEST_SPECTRA):
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
        for channels, groups in _parts(x, taps, x.shape[-1] + taps.shape[1], LARGEST_SPECTRA):
            spectrum, response, size = _spectra(x[channels], taps[groups])
            outer = torch.fft.rfft(widen(dy[channels]), n=size).view(spectrum.shape)
            if dtaps is not None:
                across = spectrum.conj_physical_().mul_(outer).sum(dim=(1, 2))
                dtaps[groups] += torch.fft.irfft(across, n=size)[:, : taps.shape[1]]
            if dx is not None:
                back = torch.fft.irfft(outer.mul_(response.conj_physical_()), n=size).flatten(0, 1)
                dx[channels] = back[..., : x.shape[-1]]
        return dx, dtaps


class _OverlapAdd(torch.autograd.Function):
    """x [D, B, L], taps [G, K]; chunks of S positions, transforms of size S + K - 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(x, taps)
        length, overlap = x.shape[-1], taps.shape[1] - 1
        size = chunked_size(length, taps.shape[1])
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        for channels, groups in _parts(x, taps, _num_transformed(length, size, overlap), LARGEST_CHUNKED):
            spectrum = torch.fft.rfft(_chunks(x[channels], size - overlap, 0), n=size)
            spectrum = _by_group(spectrum, groups).mul_(_response(taps[groups], x, size)).view(spectrum.shape)
            found = torch.fft.irfft(spectrum, n=size)
            sums = found[..., : size - overlap].contiguous()
            if overlap:
                sums[..., 1:, :overlap] += found[..., :-1, size - overlap :]
            y[channels] = sums.flatten(2)[..., :length]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, taps = ctx.saved_tensors
        length, overlap = x.shape[-1], taps.shape[1] - 1
        size = chunked_size(length, taps.shape[1])
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        dtaps = torch.zeros_like(taps) if ctx.needs_input_grad[1] else None
        for channels, groups in _parts(x, taps, _num_transformed(length, size, overlap), LARGEST_CHUNKED):
            # A chunk of x meets the gradients of its own positions and of the overlap behind them.
            outer = _by_group(torch.fft.rfft(_chunks(dy[channels], size - overlap, overlap)), groups)
            if dtaps is not None:
                spectrum = _by_group(torch.fft.rfft(_chunks(x[channels], size - overlap, 0), n=size), groups)
                across = spectrum.conj_physical_().mul_(outer).sum(dim=(1, 2, 3))
                dtaps[groups] += torch.fft.irfft(across, n=size)[:, : taps.shape[1]]
            if dx is not None:
                response = _response(taps[groups], x, size).conj_physical_()
                back = torch.fft.irfft(outer.mul_(response), n=size)[..., : size - overlap]
                dx[channels] = back.reshape(*dx[channels].shape[:2], -1)[..., :length]
        return dx, dtaps


def chunked_size(length: int, num_taps: int) -> int:
    """Size of a chunk's transform: a power of two that is several times as long as the filter.

    Args:
        length: L.
        num_taps: K.
    """
    wanted = max(512, 4 * num_taps)
    return min(1 << (wanted - 1).bit_length(), next_fast_length(length + num_taps - 1))


def _num_transformed(length: int, size: int, overlap: int) -> int:
    return -(-length // (size - overlap)) * size


def _chunks(x: Tensor, chunk: int, overlap: int) -> Tensor:
    """[D, B, L] to [D, B, N, C + overlap]: chunks of C positions, and those that follow each; zeros behind the last."""
    num_chunks = -(-x.shape[-1] // chunk)
    padded = functional.pad(widen(x), (0, num_chunks * chunk - x.shape[-1] + overlap))
    return padded.unfold(-1, chunk + overlap, chunk)


def _by_group(spectrum: Tensor, groups: slice) -> Tensor:
    """[D, B, N, F] to [G, D / G, B, N, F]."""
    return spectrum.view(groups.stop - groups.start, -1, *spectrum.shape[1:])


def _response(taps: Tensor, x: Tensor, size: int) -> Tensor:
    """[G, 1, 1, 1, F] of taps [G, K]."""
    return torch.fft.rfft(taps.to(widen(x).dtype), n=size)[:, None, None, None]


def _parts(x: Tensor, taps: Tensor, num_transformed: int, largest: int) -> Iterator[tuple[slice, slice]]:
    """Channels whose spectra are looked at together, and their filters: several whole groups, or a part of one.

    Args:
        x: [D, B, L].
        taps: [G, K].
        num_transformed: values of a sequence that are in Fourier space.
        largest: as many of all sequences at a time.
    """
    channels, batch, _ = x.shape
    of_group = channels // len(taps)
    most = max(1, largest // (batch * num_transformed))
    if most < of_group:
        for group in range(len(taps)):
            for first in range(group * of_group, (group + 1) * of_group, most):
                yield slice(first, min(first + most, (group + 1) * of_group)), slice(group, group + 1)
        return
    num_groups = most // of_group
    for group in range(0, len(taps), num_groups):
        end = min(group + num_groups, len(taps))
        yield slice(group * of_group, end * of_group), slice(group, end)


def _spectra(x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor, int]:
    """Spectra of x [G, D / G, B, F] and of the filters [G, 1, 1, F], and the transform's size."""
    size = next_fast_length(x.shape[-1] + taps.shape[1] - 1)
    spectrum = torch.fft.rfft(widen(x), n=size)
    grouped = spectrum.view(taps.shape[0], -1, *spectrum.shape[1:])
    return grouped, torch.fft.rfft(taps.to(widen(x).dtype), n=size)[:, None, None], size


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
