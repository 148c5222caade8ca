"""Products of chunks against one dot product a lag, and parts of the channels against all."""

from __future__ import annotations

import pytest
import torch

from hyena_blt_savanna.model import direct_convolution
from hyena_blt_savanna.model.direct_convolution import blocked_convolution, correlate


@pytest.mark.parametrize("length", [1, 16, 31, 100])
@pytest.mark.parametrize("num_lags", [1, 7, 16, 30])
def test_correlate_equals_one_dot_product_a_lag(length: int, num_lags: int) -> None:
    num_lags = min(num_lags, length)
    x, y = torch.randn(2, 3, 2, length, dtype=torch.double)
    expected = [(x[..., : length - lag] * y[..., lag:]).sum((1, 2)) for lag in range(num_lags)]
    torch.testing.assert_close(correlate(x, y, num_lags), torch.stack(expected, 1))


# A group at a time, two at a time, all at once.
@pytest.mark.parametrize(("largest", "num_parts"), [(1, 3), (2 * 2 * 40 * 2, 2), (10**6, 1)])
def test_a_few_groups_at_a_time_equal_all(monkeypatch: pytest.MonkeyPatch, largest: int, num_parts: int) -> None:
    x = torch.randn(6, 2, 40, dtype=torch.double, requires_grad=True)
    taps = torch.randn(3, 9, dtype=torch.double, requires_grad=True)
    direction = torch.randn(6, 2, 40, dtype=torch.double)
    whole = blocked_convolution(x, taps)
    gradients = torch.autograd.grad(whole, (x, taps), direction)
    monkeypatch.setattr(direct_convolution, "LARGEST_PART", largest)
    assert len(list(direct_convolution._parts(x, taps))) == num_parts
    found = blocked_convolution(x, taps)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(found, (x, taps), direction), gradients)
