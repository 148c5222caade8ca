"""Sums of exponentials chunk by chunk against the same filters in Fourier space."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model import operators
from hyena_blt_savanna.model.convolution import choosing_backends
from hyena_blt_savanna.model.fourier_convolution import fourier_convolution
from hyena_blt_savanna.model.modal_convolution import CHUNK, modal_convolution
from hyena_blt_savanna.model.operators import HyenaConfig, HyenaLI, modal_filter


@pytest.mark.parametrize("length", [1, 5, CHUNK, CHUNK + 1, 9 * CHUNK - 3])
@pytest.mark.parametrize("groups", [2, 6])
def test_equals_fourier_space(length: int, groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 2, length, dtype=torch.double, requires_grad=True)
    # Some are forgotten within a chunk, some hardly ever.
    rates = (torch.rand(groups, 5, dtype=torch.double) * 4 - 6).exp().requires_grad_()
    residues = torch.randn(groups, 5, dtype=torch.double, requires_grad=True)
    found, expected = (
        modal_convolution(x, rates, residues),
        fourier_convolution(x, modal_filter(rates, residues, length)),
    )
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(x)
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, rates, residues), direction),
        torch.autograd.grad(expected, (x, rates, residues), direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_bf16_is_computed_in_fp32() -> None:
    torch.manual_seed(0)
    x, rates, residues = torch.randn(4, 1, 300).bfloat16(), torch.rand(4, 3) * 0.1, torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = modal_convolution(x, rates, residues)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, modal_convolution(x.float(), rates, residues).bfloat16())


def test_hyena_li_takes_it_for_long_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    operator = HyenaLI(4, HyenaConfig(li_groups=2))
    inputs = [torch.randn(4, 2, 200) for _ in range(3)]

    def results() -> list[Tensor]:
        y = operator(*inputs)
        return [y, *torch.autograd.grad(y.square().sum(), list(operator.parameters()))]

    expected = results()
    taken = []
    monkeypatch.setattr(operators, "SHORTEST_MODAL", 200)
    monkeypatch.setattr(operators, "modal_convolution", lambda *given: taken.append(1) or modal_convolution(*given))
    for mine, theirs in zip(results(), expected, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert taken
    taken.clear()
    with choosing_backends(lambda x, taps: "fourier"):
        operator(*inputs)
    assert not taken
