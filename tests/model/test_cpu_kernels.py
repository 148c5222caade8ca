"""Kernels of several operations in one pass against the operations one by one: values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hyena_blt_savanna.model import cpu_kernels, fused
from hyena_blt_savanna.model.direct_convolution import shifted_convolution
from hyena_blt_savanna.model.norms import NormConfig
from hyena_blt_savanna.model.operators import gate

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(fused, "_kernels", {})
    # Several stretches of a row, and several threads.
    monkeypatch.setattr(cpu_kernels, "VALUES_A_THREAD", 100)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    cpu_kernels.use()
    yield
    torch.set_num_threads(threads)


def check(run: Callable[..., Tensor], dtype: torch.dtype, *inputs: Tensor) -> None:
    """Kernels in that dtype give what operations in fp64 make of the same numbers, up to one rounding."""
    given = [each.detach().requires_grad_() for each in inputs]
    assert fused.kernels_for(*given) is not None
    found = run(*given)
    direction = torch.randn(found.shape).to(found.dtype)
    gradients = torch.autograd.grad(found, given, direction)
    wide = [each.detach().double().requires_grad_() for each in inputs]
    expected = run(*wide)
    wanted = torch.autograd.grad(expected, wide, direction.double())
    assert found.dtype == dtype
    for mine, theirs, like in zip([found, *gradients], [expected, *wanted], [found, *given], strict=True):
        assert mine.dtype == like.dtype
        allowed = 2**-8 if mine.dtype == torch.bfloat16 else 1e-5
        # bfloat16 rounds each value; the largest value scales what cancels.
        assert ((mine.double() - theirs).abs() <= allowed * theirs.abs() + 1e-6 * theirs.abs().max()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_taps", "length", "of_group"), [(1, 5, 1), (3, 4100, 1), (3, 2 * 4096, 2), (7, 9000, 3), (8, 8, 1)]
)
def test_convolution(dtype: torch.dtype, num_taps: int, length: int, of_group: int) -> None:
    torch.manual_seed(0)
    x, taps = torch.randn(6, 2, length).to(dtype), torch.randn(6 // of_group, num_taps)
    check(shifted_convolution, dtype, x, taps)
    # Rows that lie apart, as a part of a longer buffer does.
    check(shifted_convolution, dtype, torch.randn(6, 2, length + 3).to(dtype)[..., :length], taps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [3, 4097])
def test_gate(dtype: torch.dtype, length: int) -> None:
    torch.manual_seed(0)
    x1, q, p = (torch.randn(4, 2, length).to(dtype) for _ in range(3))
    check(gate, dtype, x1, q, torch.randn(4), p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inside", [True, False])
def test_norm(dtype: torch.dtype, inside: bool) -> None:
    torch.manual_seed(0)
    # An epsilon that is far from negligible, so that its place matters.
    norm = NormConfig(epsilon=0.3, epsilon_inside_root=inside).build(6)

    def run(x: Tensor, scale: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"scale": scale}, (x,))

    check(run, dtype, torch.randn(3, 1700, 6).to(dtype), torch.randn(6))
    zeros = torch.zeros(2, 6, requires_grad=True)
    norm(zeros).sum().backward()
    assert zeros.grad is not None
    assert torch.isfinite(zeros.grad).all()


def test_a_norm_before_products_comes_in_their_dtype() -> None:
    torch.manual_seed(0)
    before, other = NormConfig().build(8, before_product=True), NormConfig().build(8)
    x, weight = torch.randn(5, 8), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert before(x).dtype == torch.bfloat16
        assert other(x).dtype == torch.float32
        narrowed = torch.nn.functional.linear(before(x), weight)
        assert torch.equal(narrowed, torch.nn.functional.linear(other(x), weight))
        with fused.without_kernels():
            torch.testing.assert_close(torch.nn.functional.linear(before(x), weight), narrowed, rtol=2**-7, atol=1e-2)
    assert before(x).dtype == torch.float32


def test_other_dtypes_and_devices_have_none() -> None:
    assert fused.kernels_for(torch.ones(1), torch.ones(1, dtype=torch.double)) is None
    assert fused.kernels_for(torch.ones(1, device="meta")) is None
    assert fused.kernels_for(torch.ones(0)) is None
    with FakeTensorMode():
        assert fused.kernels_for(torch.ones(1)) is None
    with fused.without_kernels():
        assert fused.kernels_for(torch.ones(1)) is None
    assert fused.kernels_for(torch.ones(1)) is not None
