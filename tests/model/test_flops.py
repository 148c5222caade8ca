from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hyena_blt_savanna.model.flops import count_flops
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import StackConfig


def counted(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """What torch sees: matrix products, without transforms and without products of single channels."""
    # torch has no count for the fused attention of a CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def stack(*blocks: str) -> StackConfig:
    return StackConfig(width=48, num_heads=4, blocks=list(blocks))


@pytest.mark.parametrize("length", [500, 1024])
def test_isotropic_equals_what_torch_counts(length: int) -> None:
    config = IsotropicConfig(stack=stack("hyena_se", "hyena_mr", "hyena_li", "attention", "attention"))
    theirs = counted(config.build(), torch.randint(0, 512, (1, length)))
    ours = count_flops(config, length)
    uncounted = ours["short_convolutions"] + ours["fourier_convolutions"]
    # torch counts all pairs of positions, we the half that lies below the diagonal.
    assert ours["total"] - uncounted + ours["attention"] == pytest.approx(theirs, rel=0.02)


def test_hybrid_equals_what_torch_counts() -> None:
    config = HyenaBLTConfig(local_width=32, max_patch_bases=8, global_model=stack("hyena_se", "hyena_li"))
    lengths = torch.full((1, 128), 8, dtype=torch.int32)
    model = config.build()
    theirs = counted(model, torch.randint(65, 85, (1, 1024)), lengths)
    ours = count_flops(model, 1024, 128)
    uncounted = ours["short_convolutions"] + ours["fourier_convolutions"]
    assert ours["total"] - uncounted == pytest.approx(theirs, rel=0.02)


def test_convolutions_by_hand() -> None:
    parts = stack("hyena_se", "hyena_mr").flops(1000)
    # Featurizers of 3 taps on 3 x 48 channels in both blocks, 7 taps on 48 in the first.
    assert parts["short_convolutions"] == 1000 * (2 * 2 * 3 * 144 + 2 * 7 * 48)
    # 1000 + 127 positions fit into 1152 = 2^7 3^2, but 1125 is too short; 48 channels, 48 filters.
    transform = 2.5 * 1152 * 10.169925
    assert parts["fourier_convolutions"] == pytest.approx(48 * (2 * transform + 3 * 1152) + 48 * transform, rel=1e-6)


def test_costs_grow_linearly_but_for_attention() -> None:
    config = IsotropicConfig(stack=stack("hyena_se", "hyena_mr", "hyena_li", "attention"))
    once, twice = count_flops(config, 1 << 16), count_flops(config, 1 << 17)
    for part in ("projections", "mlp", "short_convolutions", "filters", "head"):
        assert twice[part] == 2 * once[part]
    assert 2 < twice["fourier_convolutions"] / once["fourier_convolutions"] < 2.2
    assert twice["attention"] == 4 * once["attention"]
