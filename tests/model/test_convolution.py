"""Convolution backends against the definition, values and gradients (law 3), and what chooses among them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model import convolution, kernels
from hyena_blt_savanna.model.convolution import (
    BACKENDS,
    BackendName,
    backend_errors,
    causal_convolution,
    choosing_backends,
    fastest_backend,
    prefer_backend,
    why_unusable,
)
from hyena_blt_savanna.model.kernels import KernelError, Probe
from hyena_blt_savanna.testing.plain_convolution import by_definition

# D, G, B, L, K: one filter a channel and shared ones, lengths of every parity, filters as long as the sequence, and
# filters that reach over one, two and three chunks.
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
    (4, 2, 2, 70, 18),
    (2, 1, 1, 110, 34),
]
ON_CPU: list[BackendName] = [name for name, backend in BACKENDS.items() if backend.kernel is None]
ON_CUDA: list[BackendName] = [name for name, backend in BACKENDS.items() if backend.kernel is not None]


@pytest.fixture(autouse=True)
def _rule_is_left_alone() -> Iterator[None]:
    yield
    prefer_backend("auto")


@pytest.mark.parametrize("name", [*ON_CPU, "auto"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_definition(name: BackendName, shape: tuple[int, ...]) -> None:
    channels, groups, batch, length, num_taps = shape
    x = torch.randn(channels, batch, length, dtype=torch.double, requires_grad=True)
    taps = torch.randn(groups, num_taps, dtype=torch.double, requires_grad=True)
    weight = torch.randn(channels, batch, length, dtype=torch.double)
    convolve = BACKENDS[name].convolve if name in BACKENDS else causal_convolution
    ours, theirs = convolve(x, taps), by_definition(x, taps)
    torch.testing.assert_close(ours, theirs)
    for fast, plain in zip(
        torch.autograd.grad(ours, (x, taps), weight), torch.autograd.grad(theirs, (x, taps), weight), strict=True
    ):
        torch.testing.assert_close(fast, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("name", BACKENDS)
def test_equals_the_plain_reference_on_a_gpu(name: BackendName) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    kernel = BACKENDS[name].kernel
    if kernel is not None and kernels.probe(kernel).reason is not None:
        pytest.skip(f"{kernel}: {kernels.probe(kernel).reason}")
    assert why_unusable(name, torch.device("cuda")) is None


@pytest.mark.parametrize("name", ON_CPU)
def test_the_self_test_finds_little_on_a_cpu(name: BackendName) -> None:
    errors = backend_errors(name, torch.device("cpu"))
    assert set(errors) == {"y", "dx", "dtaps"}
    assert 0 < max(errors.values()) < 2e-6
    assert why_unusable(name, torch.device("cpu")) is None


@pytest.mark.parametrize("num_taps", [3, 20, 70])
def test_filter_longer_than_the_sequence(num_taps: int) -> None:
    x, taps = torch.randn(2, 1, 2, dtype=torch.double), torch.randn(2, num_taps, dtype=torch.double)
    torch.testing.assert_close(causal_convolution(x, taps), by_definition(x, taps))


@pytest.mark.parametrize("num_taps", [3, 12, 100])
def test_slice_with_its_left_neighbour_equals_the_whole(num_taps: int) -> None:
    x, taps = torch.randn(4, 2, 1000, dtype=torch.double), torch.randn(2, num_taps, dtype=torch.double)
    cut = 441
    right = causal_convolution(x[..., cut:], taps, left=x[..., cut - num_taps + 1 : cut])
    torch.testing.assert_close(right, causal_convolution(x, taps)[..., cut:])


@pytest.mark.parametrize("name", ON_CPU)
def test_bf16_is_computed_in_fp32(name: BackendName) -> None:
    x = torch.randn(4, 2, 60).bfloat16().requires_grad_()
    taps = torch.randn(4, 9, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = BACKENDS[name].convolve(x, taps)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, BACKENDS[name].convolve(x.float(), taps).bfloat16())
    y.float().sum().backward()
    assert x.grad is not None
    assert taps.grad is not None
    assert (x.grad.dtype, taps.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", ON_CPU)
def test_only_the_gradients_asked_for(name: BackendName) -> None:
    x, taps = torch.randn(2, 1, 30), torch.randn(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(BACKENDS[name].convolve(x, taps).sum(), taps)
    torch.testing.assert_close(gradient[:, 0], x.sum((1, 2)))


def sizes(length: int, num_taps: int) -> tuple[Tensor, Tensor]:
    return torch.empty(1, 1, length, device="meta"), torch.empty(1, num_taps, device="meta")


def test_the_rule_on_a_cpu() -> None:
    expected: dict[tuple[int, int], BackendName] = {
        (512, 3): "shifted",
        (8192, 7): "shifted",
        (512, 16): "blocked",
        (8192, 32): "blocked",
        (1 << 20, 64): "blocked",
        (512, 32): "fourier",
        (1024, 128): "fourier",
        (8192, 128): "overlap_add",
        (1 << 20, 4096): "overlap_add",
        (8192, 8192): "fourier",
    }
    assert {pair: fastest_backend(*sizes(*pair)) for pair in expected} == expected


def test_a_preferred_backend_is_used_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def spy(name: BackendName, fits: int) -> convolution.Backend:
        def convolve(x: Tensor, taps: Tensor) -> Tensor:
            used.append(name)
            return BACKENDS["conv1d"].convolve(x, taps)

        return convolution.Backend(convolve, fits=lambda x, taps: taps.shape[1] <= fits)

    changed = {**BACKENDS, "fourier": spy("fourier", 5), "shifted": spy("shifted", 99)}
    monkeypatch.setattr(convolution, "BACKENDS", changed)
    x = torch.randn(2, 1, 30)
    prefer_backend("fourier")
    used.clear()
    causal_convolution(x, torch.randn(2, 5))
    with choosing_backends(lambda x, taps: "shifted"):
        causal_convolution(x, torch.randn(2, 5))
    causal_convolution(x, torch.randn(2, 5))
    assert used == ["fourier", "shifted", "fourier"]
    causal_convolution(x, torch.randn(2, 6))
    prefer_backend("auto")
    causal_convolution(x, torch.randn(2, 5))
    assert used == ["fourier", "shifted", "fourier", "shifted", "shifted"]


def test_a_preferred_backend_that_is_missing_is_refused() -> None:
    with pytest.raises(KernelError, match=r"flashfftconv can't be used: flashfftconv: not installed.*Choose auto"):
        prefer_backend("flashfftconv")


def test_a_kernel_without_its_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "probe", lambda name: Probe(name, "1.0", None))
    assert "the device is cpu" in str(why_unusable("causal_conv1d", torch.device("cpu")))


def flipped(x: Tensor, taps: Tensor) -> Tensor:
    return BACKENDS["fourier"].convolve(x, taps.flip(1))


def zeros(x: Tensor, taps: Tensor) -> Tensor:
    return BACKENDS["fourier"].convolve(x, taps).detach() + 0 * (x.sum() + taps.sum())


def raises(x: Tensor, taps: Tensor) -> Tensor:
    raise RuntimeError("CUDA error: no kernel image")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (flipped, "differs from the plain reference in y by"),
        (zeros, "differs from the plain reference in dx by 1.0e[+]00, dtaps"),
        (raises, "failed its test: RuntimeError: CUDA error: no kernel image"),
    ],
)
def test_a_wrong_backend_is_found_out(monkeypatch: pytest.MonkeyPatch, broken: object, reason: str) -> None:
    monkeypatch.setitem(BACKENDS, "conv1d", convolution.Backend(broken))  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=reason):
        prefer_backend("conv1d")


class OnCuda:
    """Says that it lies on a GPU."""

    is_cuda = True
    dtype = torch.float32

    def __init__(self, length: int) -> None:
        self.shape = torch.Size((1, 1, length))


def test_the_rule_on_a_gpu_takes_kernels_that_pass_their_test(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    convolution._why_unfit_for_auto.cache_clear()
    monkeypatch.setattr(convolution, "probe", lambda name: Probe(name, "1.0", None))
    asked: list[str] = []

    def test_on(name: BackendName, device: torch.device) -> str | None:
        asked.append(name)
        return "it differs" if name == "subquadratic_fourier" else None

    monkeypatch.setattr(convolution, "why_unusable", test_on)
    with caplog.at_level(logging.WARNING):
        found = [fastest_backend(OnCuda(8192), torch.empty(1, taps)) for taps in (1, 3, 7, 7, 128, 4096)]  # type: ignore[arg-type]
    convolution._why_unfit_for_auto.cache_clear()
    direct = "subquadratic_direct"
    assert found == ["shifted", "causal_conv1d", direct, direct, direct, "fourier"]
    assert sorted(asked) == sorted(set(asked)) == ["causal_conv1d", direct, "subquadratic_fourier"]
    assert caplog.messages == ["convolutions do without subquadratic_fourier: it differs"]
