"""Whole mixers by one kernel: the library stands in as its own tests have it, and runs on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model import back_to_back, cuda_convolution
from hyena_blt_savanna.model.blocks import build_mixer
from hyena_blt_savanna.model.convolution import prefer_backend
from hyena_blt_savanna.model.kernels import KernelError, Probe
from hyena_blt_savanna.model.mixers import HyenaMixer
from hyena_blt_savanna.model.stack import StackConfig

CPU = torch.device("cpu")


class Library:
    """x1, x2 and v of a channel lie beside each other; last taps weigh the current position."""

    def __init__(self) -> None:
        self.calls: list[torch.dtype] = []

    def __call__(self, x: Tensor, short: Tensor, long: Tensor, skip: Tensor) -> Tensor:
        assert all(given.is_contiguous() for given in (x, short, long, skip))
        assert len(short) == x.shape[1] == 3 * len(long) == 3 * len(skip)
        self.calls.append(x.dtype)
        z = convolve(x, short)
        p = z[:, 1::3] * z[:, 2::3]
        return z[:, ::3] * (convolve(p, long) + skip[:, None] * p)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    return functional.conv1d(x, weight[:, None], padding=weight.shape[1] - 1, groups=len(weight))[..., : x.shape[-1]]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """Installed, and preferred on the CPU."""
    stand_in = Library()
    monkeypatch.setattr(cuda_convolution, "load", lambda *_: stand_in)
    monkeypatch.setattr(back_to_back, "_device_type", "cpu")
    return stand_in


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("name", ["hyena_se", "hyena_mr"])
def test_a_mixer_equals_itself(library: Library, monkeypatch: pytest.MonkeyPatch, name: str, interleaved: bool) -> None:
    torch.manual_seed(0)
    hyena = {"se_groups": 4, "mr_groups": 4, "mr_taps": 12, "interleaved_projection": interleaved}
    mixer = build_mixer(name, StackConfig(width=8, blocks=[name], hyena=hyena)).double()
    assert isinstance(mixer, HyenaMixer)
    u = torch.randn(2, 40, 8, dtype=torch.double, requires_grad=True)
    wanted = (u, *mixer.parameters())
    plain = mixer(u)
    assert not library.calls, "float64 is not for the kernel"
    plain_gradients = torch.autograd.grad(plain.square().sum(), wanted)
    monkeypatch.setattr("hyena_blt_savanna.model.mixers.takes_back_to_back", lambda *_: True)
    fused = mixer(u)
    assert library.calls == [torch.double]
    torch.testing.assert_close(fused, plain)
    for ours, theirs in zip(torch.autograd.grad(fused.square().sum(), wanted), plain_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_goes_to_the_kernel(library: Library) -> None:
    u = torch.randn(1, 20, 8)
    for name in ("hyena_li", "hyena_se"):
        mixer = build_mixer(name, StackConfig(width=8, blocks=[name], hyena={"se_groups": 4}))
        with torch.autocast("cpu", torch.bfloat16):
            assert mixer(u).dtype == torch.bfloat16
    assert library.calls == [torch.float32], "hyena_se alone, and in fp32"
    z = torch.zeros(24, 1, 300)
    for num_taps, takes in ((1, False), (2, True), (256, True), (257, False)):
        assert back_to_back.takes_back_to_back(z, 3, num_taps) is takes
    assert not back_to_back.takes_back_to_back(z, 33, 7)


def test_the_test_of_the_kernel(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = back_to_back.back_to_back_errors(CPU)
    assert set(errors) == {"y", "dz", "dfeaturizer", "dtaps", "dskip"}
    assert 0 < max(errors.values()) < 1e-5

    def turned(x: Tensor, short: Tensor, long: Tensor, skip: Tensor) -> Tensor:
        return library(x, short.flip(1).contiguous(), long, skip)

    monkeypatch.setattr(cuda_convolution, "load", lambda *_: turned)
    assert back_to_back.back_to_back_errors(CPU)["y"] > 0.1


@pytest.mark.gpu
def test_the_kernel_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    if back_to_back.probe(back_to_back.KERNEL).reason is not None:
        pytest.skip(str(back_to_back.probe(back_to_back.KERNEL).reason))
    assert back_to_back.why_no_back_to_back(torch.device("cuda")) is None


def test_where_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match=r"back_to_back can't be used: subquadratic_ops: not installed.*Choose auto"):
        prefer_backend("back_to_back")
    monkeypatch.setattr(back_to_back, "probe", lambda name: Probe(name, "0.3.1", None))
    with pytest.raises(KernelError, match="it is a CUDA kernel, and the device is cpu"):
        prefer_backend("back_to_back", CPU)
    prefer_backend("auto")
    assert back_to_back._device_type is None
