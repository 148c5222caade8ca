"""Fast convolutions against the definition, values and gradients (law 3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model import convolution
from hyena_blt_savanna.model.convolution import (
    LONGEST_SHIFTED,
    causal_convolution,
    correlate,
    fft_convolution,
    next_fast_length,
    shifted_convolution,
)

# D, G, B, L, K: one filter a channel and shared ones, lengths of every parity, filters as long as the sequence.
SHAPES = [
    (6, 3, 2, 50, 3),
    (4, 4, 1, 33, 7),
    (4, 2, 3, 5, 5),
    (4, 1, 2, 129, 12),
    (3, 3, 1, 100, 100),
    (2, 2, 1, 1, 1),
    (6, 2, 2, 64, 1),
    (6, 6, 3, 16, 7),
    (2, 1, 2, 48, 40),
]


def by_definition(x: Tensor, taps: Tensor) -> Tensor:
    rows = []
    for channel in range(x.shape[0]):
        filter_of_channel = taps[channel * taps.shape[0] // x.shape[0]]
        columns = []
        for t in range(x.shape[2]):
            lags = range(min(taps.shape[1], t + 1))
            columns.append(sum((filter_of_channel[k] * x[channel, :, t - k] for k in lags), x.new_zeros(x.shape[1])))
        rows.append(torch.stack(columns, -1))
    return torch.stack(rows)


@pytest.mark.parametrize("convolve", [shifted_convolution, fft_convolution, causal_convolution])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(convolve: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    channels, groups, batch, length, num_taps = shape
    x = torch.randn(channels, batch, length, dtype=torch.double, requires_grad=True)
    taps = torch.randn(groups, num_taps, dtype=torch.double, requires_grad=True)
    weight = torch.randn(channels, batch, length, dtype=torch.double)
    ours, theirs = convolve(x, taps), by_definition(x, taps)
    torch.testing.assert_close(ours, theirs)
    for fast, plain in zip(
        torch.autograd.grad(ours, (x, taps), weight), torch.autograd.grad(theirs, (x, taps), weight), strict=True
    ):
        torch.testing.assert_close(fast, plain)


@pytest.mark.parametrize("num_taps", [7, 40])
def test_both_algorithms_agree_in_fp32(num_taps: int) -> None:
    x, taps = torch.randn(8, 3, 257), torch.randn(2, num_taps)
    torch.testing.assert_close(shifted_convolution(x, taps), fft_convolution(x, taps), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_taps", [3, LONGEST_SHIFTED + 5])
def test_filter_longer_than_the_sequence(num_taps: int) -> None:
    x, taps = torch.randn(2, 1, 2, dtype=torch.double), torch.randn(2, num_taps, dtype=torch.double)
    torch.testing.assert_close(causal_convolution(x, taps), by_definition(x, taps))


@pytest.mark.parametrize("num_taps", [3, LONGEST_SHIFTED + 5])
def test_slice_with_its_left_neighbour_equals_the_whole(num_taps: int) -> None:
    x, taps = torch.randn(4, 2, 90, dtype=torch.double), torch.randn(2, num_taps, dtype=torch.double)
    cut = 41
    right = causal_convolution(x[..., cut:], taps, left=x[..., cut - num_taps + 1 : cut])
    torch.testing.assert_close(right, causal_convolution(x, taps)[..., cut:])


@pytest.mark.parametrize("num_taps", [5, LONGEST_SHIFTED + 5])
def test_bf16_is_computed_in_fp32(num_taps: int) -> None:
    x = torch.randn(4, 2, 60).bfloat16().requires_grad_()
    taps = torch.randn(4, num_taps, requires_grad=True)
    y = causal_convolution(x, taps)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, causal_convolution(x.float(), taps).bfloat16())
    y.float().sum().backward()
    assert x.grad is not None
    assert taps.grad is not None
    assert (x.grad.dtype, taps.grad.dtype) == (torch.bfloat16, torch.float32)


# A few groups at a time, the last time fewer; a group at a time; a part of a group at a time; all at once.
@pytest.mark.parametrize("most_channels", [7, 5, 3, 2, 1, 12])
@pytest.mark.parametrize("groups", [4, 12, 1])
def test_a_few_channels_at_a_time_equal_all(monkeypatch: pytest.MonkeyPatch, most_channels: int, groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 2, 20, dtype=torch.double, requires_grad=True)
    taps = torch.randn(groups, 9, dtype=torch.double, requires_grad=True)
    whole = fft_convolution(x, taps)
    monkeypatch.setattr(convolution, "LARGEST_SPECTRA", most_channels * 2 * 29)
    transforms: list[int] = []
    rfft = torch.fft.rfft
    monkeypatch.setattr(torch.fft, "rfft", lambda part, n: transforms.append(len(part)) or rfft(part, n=n))
    found = fft_convolution(x, taps)
    torch.testing.assert_close(found, whole)
    direction = torch.randn_like(whole)
    gradients = torch.autograd.grad(found, (x, taps), direction)
    assert max(transforms) <= most_channels
    torch.testing.assert_close(gradients, torch.autograd.grad(whole, (x, taps), direction))


def test_only_the_gradients_asked_for() -> None:
    x, taps = torch.randn(2, 1, 30), torch.randn(2, 3, requires_grad=True)
    for convolve in (shifted_convolution, fft_convolution):
        (gradient,) = torch.autograd.grad(convolve(x, taps).sum(), taps)
        torch.testing.assert_close(gradient[:, 0], x.sum((1, 2)))


@pytest.mark.parametrize("length", [1, 16, 31, 100])
@pytest.mark.parametrize("num_lags", [1, 7, 16, 30])
def test_correlate_equals_one_dot_product_a_lag(length: int, num_lags: int) -> None:
    num_lags = min(num_lags, length)
    x, y = torch.randn(2, 3, 2, length, dtype=torch.double)
    expected = [(x[..., : length - lag] * y[..., lag:]).sum((1, 2)) for lag in range(num_lags)]
    torch.testing.assert_close(correlate(x, y, num_lags), torch.stack(expected, 1))


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
