from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model.norms import NormConfig, RMSNorm


def plain(x: Tensor, scale: Tensor, epsilon: float, inside: bool) -> Tensor:
    mean = x.square().mean(-1, keepdim=True)
    return scale * x / ((mean + epsilon).sqrt() if inside else mean.sqrt() + epsilon)


@pytest.mark.parametrize("inside", [True, False])
def test_equals_the_formula(inside: bool) -> None:
    # An epsilon that is far from negligible, so that its place matters.
    norm = RMSNorm(6, NormConfig(epsilon=0.3, epsilon_inside_root=inside)).double()
    norm.scale.data.normal_()
    x = torch.randn(2, 5, 6, dtype=torch.double, requires_grad=True)
    theirs = plain(x, norm.scale, 0.3, inside)
    torch.testing.assert_close(norm(x), theirs)
    weight = torch.randn_like(x)
    for ours, expected in zip(
        torch.autograd.grad(norm(x), (x, norm.scale), weight),
        torch.autograd.grad(theirs, (x, norm.scale), weight),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("inside", [True, False])
def test_zeros_have_finite_gradients(inside: bool) -> None:
    norm = NormConfig(epsilon_inside_root=inside).build(4)
    x = torch.zeros(3, 4, requires_grad=True)
    y = norm(x)
    assert not y.any()
    y.sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1e3 if inside else 1e6))


def test_bf16_in_bf16_out() -> None:
    norm = NormConfig().build(64).bfloat16()
    x = torch.randn(2, 64).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), plain(x.float(), torch.ones(64), 1e-6, True).bfloat16())
