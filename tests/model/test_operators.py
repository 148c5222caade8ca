from __future__ import annotations

import math

import pytest
import torch

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.operators import (
    HyenaConfig,
    HyenaImplicit,
    HyenaLI,
    HyenaMR,
    HyenaOperator,
    HyenaSE,
    decay_grid,
    modal_filter,
)

OPERATORS = [HyenaSE, HyenaMR, HyenaLI, HyenaImplicit]
GROUPED = [HyenaSE, HyenaMR, HyenaLI]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("length", [1, 5, 100, 300])
def test_equals_the_definition(operator: type[HyenaOperator], length: int) -> None:
    core = operator(6, HyenaConfig(se_groups=3, mr_groups=2, li_groups=2, skip_init=0.5)).double()  # type: ignore[call-arg]
    x1, x2, v = torch.randn(3, 6, 2, length, dtype=torch.double)
    filters = core.filters(length)
    assert filters.shape[1] <= length
    h = torch.zeros(6, length, dtype=torch.double)
    h[:, : filters.shape[1]] = filters.repeat_interleave(6 // filters.shape[0], 0)
    p, t = x2 * v, torch.arange(length)
    # toeplitz[d, t, s] = h[d, t - s]
    toeplitz = h[:, (t[:, None] - t).clamp_min(0)].tril()
    if operator is HyenaImplicit:
        torch.nn.init.constant_(core.skip, 0.5)
    q = torch.einsum("dts,dbs->dbt", toeplitz, p) + (0 if operator is HyenaSE else 0.5 * p)
    torch.testing.assert_close(core(x1, x2, v), x1 * q)


@pytest.mark.parametrize("length", [1, 2, 17, 1000, 4096])
def test_modal_filter_equals_the_sum_of_exponentials(length: int) -> None:
    rates, residues = torch.rand(5, 16) * 0.1, torch.randn(5, 16)
    t = torch.arange(length, dtype=torch.double)
    expected = (residues.double()[..., None] * torch.exp(-rates.double()[..., None] * t)).sum(1)
    found = modal_filter(rates, residues, length)
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


def test_modal_filter_far_out_keeps_fp32_accuracy() -> None:
    rates, residues = torch.tensor([[1e-5, 1e-3]]), torch.tensor([[1.0, -2.0]])
    length = 300_000
    t = torch.arange(length, dtype=torch.double)
    expected = torch.exp(-rates[0, 0].double() * t) - 2 * torch.exp(-rates[0, 1].double() * t)
    torch.testing.assert_close(modal_filter(rates, residues, length)[0].double(), expected, rtol=0, atol=1e-6)


def test_modal_filter_gradients() -> None:
    rates = (torch.rand(2, 3, dtype=torch.double) + 0.1).requires_grad_()
    residues = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r, c: modal_filter(r, c, 13), (rates, residues))


def test_decay_grid_by_hand() -> None:
    grid = decay_grid(4, HyenaConfig(mr_taps=3, mr_decay="normal", mr_decay_length=101, mr_decay_repeats=2))
    expected = [[1, math.exp(-rate * 0.01), math.exp(-rate * 0.02)] for rate in (0.1, 100, 0.1, 100)]
    torch.testing.assert_close(grid, torch.tensor(expected))


def test_decay_survives_a_cast_and_a_checkpoint() -> None:
    config = HyenaConfig(mr_groups=4)
    core = HyenaMR(8, config)
    stored = {name: tensor.clone() for name, tensor in core.state_dict().items()}
    core.bfloat16()
    assert core.taps.dtype == torch.bfloat16
    assert core.decay.equal(stored["decay"])
    # A grid of another length is kept as it was stored.
    other = HyenaMR(8, HyenaConfig(mr_groups=4, mr_decay_length=100))
    other.load_state_dict(stored)
    assert other.decay.equal(stored["decay"])


def test_decay_on_the_meta_device() -> None:
    with torch.device("meta"):
        core = HyenaMR(8, HyenaConfig())
    core.to_empty(device="cpu").bfloat16()
    assert core.decay.dtype == torch.float32
    assert core.decay.device.type == "cpu"


@pytest.mark.parametrize("operator", OPERATORS)
def test_weights_in_bf16_and_autocast(operator: type[HyenaOperator]) -> None:
    core = operator(4, HyenaConfig())  # type: ignore[call-arg]
    inputs = torch.randn(3, 4, 1, 200).unbind()
    expected = core(*inputs).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert core.filters(200).dtype == torch.float32
        torch.testing.assert_close(core(*inputs), expected)
    mixed = core.bfloat16()(*(x.bfloat16() for x in inputs))
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("operator", GROUPED)
def test_groups_that_do_not_divide_the_width(operator: type[HyenaOperator]) -> None:
    with pytest.raises(ConfigError, match="= 5 does not divide the width 8"):
        operator(8, HyenaConfig(se_groups=5, mr_groups=5, li_groups=5))  # type: ignore[call-arg]


def test_decay_repeats_that_do_not_divide_the_groups() -> None:
    with pytest.raises(ConfigError, match="mr_decay_repeats = 3"):
        HyenaMR(8, HyenaConfig(mr_groups=4, mr_decay_repeats=3))
