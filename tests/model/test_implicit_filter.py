"""HyenaDNA's filters against the published formula in plain loops, at any length and in any precision."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.operators import HyenaConfig, HyenaImplicit
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.training.optimizer import OptimizerConfig, parameter_groups

CONFIG = HyenaConfig(
    implicit_length=20, implicit_embedding_width=7, implicit_hidden_width=6, implicit_num_hidden=2, implicit_shift=0.05
)


def operator(width: int = 4, config: HyenaConfig = CONFIG) -> HyenaImplicit:
    torch.manual_seed(0)
    core = HyenaImplicit(width, config)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return core


def plain_tap(core: HyenaImplicit, channel: int, lag: int, config: HyenaConfig) -> float:
    """One tap by the formula: Hyena (Poli et al. 2023), appendix D.3, with HyenaDNA's constants."""
    length, num_bands = config.implicit_length, (config.implicit_embedding_width - 1) // 2
    time = lag / (length - 1)
    bands = [1e-4 + i * (num_bands - 1 - 1e-4) / (num_bands - 1) for i in range(num_bands)]
    waves = [cmath.exp(-1j * band * 2 * math.pi * lag / length) for band in bands]
    x = [time, *(wave.real for wave in waves), *(wave.imag for wave in waves)]
    network = core.implicit_filter
    for layer in network.hidden:
        rows, biases = layer.weight.tolist(), layer.bias.tolist()
        x = [
            math.sin(frequency * (sum(w * value for w, value in zip(row, x, strict=True)) + bias))
            for row, bias, frequency in zip(rows, biases, network.frequencies.tolist(), strict=True)
        ]
    tap = sum(w * value for w, value in zip(network.out.weight[channel].tolist(), x, strict=True))
    num_channels = len(network.out.weight)
    slowest, fastest = -math.log(0.01) / 1.5, -math.log(0.01) / 0.3
    rate = slowest + channel * (fastest - slowest) / (num_channels - 1)
    return tap * (math.exp(-rate * time) + config.implicit_shift)


def test_taps_equal_the_published_formula() -> None:
    core = operator().double()
    # Longer than the configured length: time goes on.
    taps = core.filters(27)
    expected = [[plain_tap(core, channel, lag, CONFIG) for lag in range(27)] for channel in range(4)]
    torch.testing.assert_close(taps, torch.tensor(expected, dtype=torch.double), rtol=1e-9, atol=1e-12)


def test_channels_decay_to_the_target_at_their_shares() -> None:
    config = HyenaConfig(implicit_length=1001, implicit_num_hidden=0)
    core = operator(config=config)
    with torch.no_grad():
        # A network that always gives 1.
        core.implicit_filter.hidden[0].weight.zero_()
        core.implicit_filter.hidden[0].bias.fill_(math.pi / 2 / 10)
        core.implicit_filter.frequencies.fill_(10)
        core.implicit_filter.out.weight.fill_(1 / 64)
    taps = core.filters(1501)
    assert taps[-1, 300].item() == pytest.approx(0.01, rel=1e-4)
    assert taps[0, 1500].item() == pytest.approx(0.01, rel=1e-4)
    assert taps[:, 0].tolist() == pytest.approx([1.0] * 4)


def test_a_tap_depends_on_its_lag_alone() -> None:
    core = operator()
    torch.testing.assert_close(core.filters(9), core.filters(300)[:, :9])


def test_filters_stay_fp32() -> None:
    core = operator()
    expected = core.filters(50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert core.filters(50).equal(expected)
    core.bfloat16()
    half = core.filters(50)
    assert half.dtype == torch.float32
    # Weights in bf16 are other weights, but the arithmetic on them is fp32's.
    torch.testing.assert_close(half, core.float().filters(50))


def test_gradients() -> None:
    core = operator().double()
    names, weights = zip(*core.named_parameters(), strict=True)
    inputs = tuple(torch.randn(4, 1, 11, dtype=torch.double, requires_grad=True) for _ in range(3))

    def run(*arguments: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(core, dict(zip(names, arguments[3:], strict=True)), arguments[:3])

    assert torch.autograd.gradcheck(run, (*inputs, *weights), eps=1e-7, atol=1e-5)


def test_it_reads_all_that_came_before() -> None:
    config = StackConfig(width=8, blocks=["hyena_implicit"])
    assert config.reach("hyena_implicit") is None


def test_flops_by_hand() -> None:
    config = HyenaConfig(implicit_embedding_width=5, implicit_hidden_width=16, implicit_num_hidden=2)
    parts = config.flops("implicit", 1000, 24)
    # 5 to 16, twice 16 to 16, 16 to 24 channels, at each of 1000 lags.
    assert parts["filters"] == 1000 * 2 * (5 * 16 + 2 * 16 * 16 + 16 * 24)
    assert parts["fourier_convolutions"] == HyenaConfig().flops("li", 1000, 24)["fourier_convolutions"]


def test_filters_do_not_decay_with_the_weights() -> None:
    core = operator()
    decaying, fixed = parameter_groups(
        torch.nn.ModuleDict({"operator": core, "linear": torch.nn.Linear(2, 2)}), 0.1, OptimizerConfig().no_decay
    )
    assert len(decaying["params"]) == 1
    assert len(fixed["params"]) == len(list(core.parameters())) + 1


def test_a_width_that_has_no_pairs() -> None:
    with pytest.raises(ConfigError, match="implicit_embedding_width is 4"):
        HyenaConfig.parse({"implicit_embedding_width": 4})
