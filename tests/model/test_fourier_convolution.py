"""Convolutions in Fourier space: a few channels at a time, chunks of several sizes, and sizes of transforms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model import fourier_convolution as module
from hyena_blt_savanna.model.fourier_convolution import (
    chunked_size,
    fourier_convolution,
    next_fast_length,
    overlap_add_convolution,
)
from hyena_blt_savanna.testing.plain_convolution import by_definition


# A few groups at a time, the last time fewer; a group at a time; a part of a group at a time; all at once.
@pytest.mark.parametrize("most_channels", [7, 5, 3, 2, 1, 12])
@pytest.mark.parametrize("groups", [4, 12, 1])
@pytest.mark.parametrize("convolve", [fourier_convolution, overlap_add_convolution])
def test_a_few_channels_at_a_time_equal_all(
    monkeypatch: pytest.MonkeyPatch, most_channels: int, groups: int, convolve: Callable[[Tensor, Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(module, "chunked_size", lambda length, num_taps: 16)
    x = torch.randn(12, 2, 20, dtype=torch.double, requires_grad=True)
    taps = torch.randn(groups, 9, dtype=torch.double, requires_grad=True)
    whole = convolve(x, taps)
    # 20 positions are three chunks of 8, each transformed with the 8 that follow it.
    monkeypatch.setattr(module, "LARGEST_SPECTRA", most_channels * 2 * 29)
    monkeypatch.setattr(module, "LARGEST_CHUNKED", most_channels * 2 * 3 * 16)
    transforms: list[int] = []
    rfft = torch.fft.rfft
    monkeypatch.setattr(torch.fft, "rfft", lambda part, n=None: transforms.append(len(part)) or rfft(part, n=n))
    found = convolve(x, taps)
    torch.testing.assert_close(found, whole)
    direction = torch.randn_like(whole)
    gradients = torch.autograd.grad(found, (x, taps), direction)
    assert max(transforms) <= most_channels
    torch.testing.assert_close(gradients, torch.autograd.grad(whole, (x, taps), direction))


# One chunk, two chunks, many; a chunk that is as short as the overlap; filters of one tap.
@pytest.mark.parametrize(
    ("length", "num_taps", "size"), [(30, 9, 38), (30, 9, 25), (70, 9, 17), (31, 9, 18), (30, 1, 8)]
)
def test_chunks_of_any_size_equal_the_definition(
    monkeypatch: pytest.MonkeyPatch, length: int, num_taps: int, size: int
) -> None:
    monkeypatch.setattr(module, "chunked_size", lambda length, num_taps: size)
    x = torch.randn(4, 2, length, dtype=torch.double, requires_grad=True)
    taps = torch.randn(2, num_taps, dtype=torch.double, requires_grad=True)
    direction = torch.randn(4, 2, length, dtype=torch.double)
    found, plain = overlap_add_convolution(x, taps), by_definition(x, taps)
    torch.testing.assert_close(found, plain)
    gradients = torch.autograd.grad(found, (x, taps), direction)
    torch.testing.assert_close(gradients, torch.autograd.grad(plain, (x, taps), direction))


def test_a_chunk_is_at_least_as_long_as_the_overlap() -> None:
    for num_taps in (1, 3, 100, 128, 129, 1000, 5000):
        for length in (num_taps, num_taps + 1, 2 * num_taps, 8 * num_taps, 100 * num_taps):
            assert chunked_size(length, num_taps) - (num_taps - 1) >= min(num_taps - 1, length)


def test_next_fast_length() -> None:
    def is_smooth(number: int) -> bool:
        for prime in (2, 3, 5):
            while number % prime == 0:
                number //= prime
        return number == 1

    for length in [*range(1, 2000), 65_537, 262_143]:
        found = next_fast_length(length)
        expected = length
        while not is_smooth(expected):
            expected += 1
        assert found == expected
