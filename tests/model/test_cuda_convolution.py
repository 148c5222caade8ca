"""What CUDA kernels are given: each library stands in as its documentation has it, and runs on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model import cuda_convolution
from hyena_blt_savanna.model.convolution import BACKENDS, BackendName
from hyena_blt_savanna.testing.plain_convolution import by_definition


def last_tap_is_now(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, D, L], weight [D, K], as torch's conv1d."""
    assert x.is_contiguous()
    assert weight.is_contiguous()
    return functional.conv1d(x, weight[:, None], padding=weight.shape[1] - 1, groups=len(weight))[..., : x.shape[-1]]


def first_tap_is_now(x: Tensor, weight: Tensor) -> Tensor:
    return last_tap_is_now(x, weight.flip(1).contiguous())


def dao_lab(x: Tensor, weight: Tensor, bias: None, activation: None) -> Tensor:
    assert weight.shape[1] <= 4
    return last_tap_is_now(x, weight.to(x.dtype))


class Flash:
    """A circular convolution of `size` positions."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self.size, self.dtype = size, dtype

    def cuda(self) -> Flash:
        return self

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        assert (x.dtype, weight.dtype, x.is_contiguous()) == (self.dtype, torch.float32, True)
        product = torch.fft.rfft(x.float(), n=self.size) * torch.fft.rfft(weight, n=self.size)
        return torch.fft.irfft(product, n=self.size)[..., : x.shape[-1]].to(x.dtype)


LIBRARIES: dict[tuple[str, str], Any] = {
    ("subquadratic_ops", "causal_conv1d.causal_conv1d"): last_tap_is_now,
    ("subquadratic_ops", "fft_causal_conv1d.fft_causal_conv1d"): first_tap_is_now,
    ("causal_conv1d", "causal_conv1d_fn"): dao_lab,
    ("flashfftconv", "FlashFFTConv"): Flash,
}


@pytest.mark.parametrize(
    ("name", "num_taps", "tolerance"),
    [
        ("subquadratic_direct", 12, 1e-5),
        ("subquadratic_fourier", 40, 1e-5),
        ("causal_conv1d", 4, 1e-5),
        ("causal_conv1d", 2, 1e-5),
        ("flashfftconv", 40, 2e-2),
    ],
)
def test_layouts_and_orders_of_taps(
    monkeypatch: pytest.MonkeyPatch, name: BackendName, num_taps: int, tolerance: float
) -> None:
    monkeypatch.setattr(cuda_convolution, "load", lambda library, attribute: LIBRARIES[library, attribute])
    cuda_convolution._flash.cache_clear()
    x, taps = torch.randn(6, 2, 40, requires_grad=True), torch.randn(3, num_taps, requires_grad=True)
    direction = torch.randn(6, 2, 40)
    assert BACKENDS[name].fits(x, taps)
    found, plain = BACKENDS[name].convolve(x, taps), by_definition(x, taps)
    cuda_convolution._flash.cache_clear()
    gradients = torch.autograd.grad(found, (x, taps), direction)
    for ours, theirs in zip(
        (found, *gradients), (plain, *torch.autograd.grad(plain, (x, taps), direction)), strict=True
    ):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).detach().abs().max() / theirs.detach().abs().max()) < tolerance


@pytest.mark.parametrize(
    ("name", "length", "num_taps", "fits"),
    [
        ("subquadratic_direct", 512, 257, False),
        ("subquadratic_direct", 512, 256, True),
        ("causal_conv1d", 512, 5, False),
        ("causal_conv1d", 512, 1, False),
        ("flashfftconv", 2**21, 2**21, True),
        ("flashfftconv", 2**22, 2**21, False),
        ("flashfftconv", 510, 128, False),
    ],
)
def test_what_kernels_take(name: BackendName, length: int, num_taps: int, fits: bool) -> None:
    x, taps = torch.empty(16, 1, length, device="meta"), torch.empty(1, num_taps, device="meta")
    assert BACKENDS[name].fits(x, taps) is fits


def test_long_flash_transforms_want_sixteen_channels() -> None:
    taps = torch.empty(1, 2**15, device="meta")
    for channels, length, fits in ((8, 2**15, False), (8, 2**14, True), (32, 2**15, True)):
        x = torch.empty(channels, 1, length, device="meta")
        assert BACKENDS["flashfftconv"].fits(x, taps[:, :length]) is fits


def test_bf16_goes_through_kernels_of_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace(dtype=None)

    def kernel(x: Tensor, weight: Tensor) -> Tensor:
        seen.dtype = x.dtype
        return last_tap_is_now(x, weight)

    monkeypatch.setattr(cuda_convolution, "load", lambda library, attribute: kernel)
    y = BACKENDS["subquadratic_direct"].convolve(torch.randn(2, 1, 16).bfloat16(), torch.randn(2, 3))
    assert (y.dtype, seen.dtype) == (torch.bfloat16, torch.float32)
