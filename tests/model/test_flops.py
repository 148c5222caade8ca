"""Formulas against torch's counter, part by part; against hand; and against what growing does."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.model.flops import BACKWARD_RATIO, Architecture, convolution, count_flops
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.kmer_tokens import KmerTokensConfig
from hyena_blt_savanna.model.routing import Routing
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.testing.flop_counting import count_by_module, count_by_part
from hyena_blt_savanna.training.model_config import ModelConfig

CONFIGS = Path(__file__).parents[2] / "configs"
ALL_BLOCKS = ("hyena_se", "hyena_mr", "hyena_li", "hyena_implicit", "attention")


def stack(*blocks: str, **settings: Any) -> StackConfig:
    return StackConfig.parse({"width": 48, "num_heads": 4, "blocks": list(blocks), **settings})


def ragged_lengths(num_patches: int, longest: int = 8) -> Tensor:
    """Lengths from 1 to `longest`, int32 [1, P]."""
    torch.manual_seed(0)
    return torch.randint(1, longest + 1, (1, num_patches), dtype=torch.int32)


def assert_as_counted(config: Architecture, num_bases: int, *lengths: Tensor) -> None:
    """Every part within 2 %, whatever is counted belongs to a part, and each part is counted."""
    model = config.build().eval()  # type: ignore[attr-defined]
    theirs = count_by_part(model, torch.randint(65, 85, (1, num_bases)), *lengths)
    ours = config.flops(num_bases, lengths[0].shape[1] if lengths else 0)
    assert theirs == pytest.approx({part: count for part, count in ours.items() if count}, rel=0.02)
    assert count_flops(model, num_bases, lengths[0].shape[1] if lengths else 0)["total"] == sum(ours.values())


@pytest.mark.parametrize("num_bases", [500, 1024])
@pytest.mark.parametrize("block", ALL_BLOCKS)
def test_each_block_equals_what_torch_counts(block: str, num_bases: int) -> None:
    assert_as_counted(IsotropicConfig(stack=stack(block)), num_bases)


SETTINGS: dict[str, dict[str, Any]] = {
    "window": {"attention": {"window": 60}},
    "long window": {"attention": {"window": 4000}},
    "groups": {"hyena": {"mr_groups": 6, "li_groups": 12, "li_order": 4}},
    "taps": {"hyena": {"se_taps": 17, "mr_taps": 9, "featurizer_taps": 5}},
    "mlp": {"mlp": {"width": 96}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_count_as_in_torch(settings: dict[str, Any]) -> None:
    assert_as_counted(IsotropicConfig(stack=stack(*ALL_BLOCKS, "attention", **settings)), 700)


def test_kmers_cost_nothing() -> None:
    config = IsotropicConfig.parse({"stack": stack("hyena_se").to_dict(), "kmers": {"sizes": [2, 4]}})
    assert_as_counted(config, 300)
    assert count_flops(config, 300) == count_flops(IsotropicConfig(stack=stack("hyena_se")), 300)


@pytest.mark.parametrize("num_patches", [100, 256])
def test_hybrid_of_ragged_patches_equals_what_torch_counts(num_patches: int) -> None:
    config = HyenaBLTConfig(local_width=32, max_patch_bases=8, global_model=stack(*ALL_BLOCKS))
    lengths = ragged_lengths(num_patches)
    # The last three bases are an unfinished patch.
    assert_as_counted(config, int(lengths.sum()) + 3, lengths)


def test_autoencoder_equals_what_torch_counts() -> None:
    config = HyenaBLTConfig(local_width=32, max_patch_bases=8, global_model=stack("hyena_se"))
    lengths = ragged_lengths(100)
    bases = torch.randint(65, 85, (1, int(lengths.sum())))
    theirs = count_by_part(config.build().eval(), bases, lengths, "autoencoder")
    ours = count_flops(config, bases.shape[1], 100, "autoencoder")
    assert theirs | {"total": sum(theirs.values())} == pytest.approx(ours, rel=0.02)


def shipped_models() -> list[Path]:
    """Those that can be built and run here; the presets of a billion weights and more are made of the same parts."""
    small = [CONFIGS / "model" / f"{name}.yaml" for name in ("entropy", "entropy_kmers", "hyena_blt_10m", "quickstart")]
    return [*small, *sorted(CONFIGS.glob("quality/models/*.yaml"))]


@pytest.mark.parametrize("path", shipped_models(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_models_equal_what_torch_counts(path: Path) -> None:
    config: Any = TypeAdapter(ModelConfig).validate_python(merge([path])["model"])
    # The tables of a hyena_li filter are square: for a square number of positions nothing is rounded up.
    if isinstance(config, HyenaBLTConfig):
        # Bases behind the last patch would go through no map of places, where there are such maps.
        lengths = ragged_lengths(400, config.max_patch_bases)
        return assert_as_counted(config, int(lengths.sum()), lengths)
    if isinstance(config, KmerTokensConfig):
        lengths = ragged_lengths(400, config.word_bases)
        return assert_as_counted(config, int(lengths.sum()), lengths)
    if isinstance(config, HNetConfig):
        return assert_chunks_as_counted(config)
    return assert_as_counted(config, 4096)


def assert_chunks_as_counted(config: HNetConfig) -> None:
    """Of 4 bases each: fresh weights would find as many as they like."""
    model = config.build().eval()
    starts = torch.arange(4096)[None] % 4 == 0
    model.router.register_forward_hook(lambda *_: Routing(starts.float(), starts))
    theirs = count_by_part(model, torch.randint(65, 85, (1, 4096)))
    assert theirs == pytest.approx(config.flops(4096, 1024), rel=0.02)


def passes(model: nn.Module, *inputs: Tensor) -> tuple[Counter[str], Counter[str]]:
    """What torch counts in a forward pass, and in a backward one: operations by kind.

    Products that belong to a convolution, by which the gradient of its taps is found, are a kind of their own.
    """
    with torch.no_grad():
        forward = count_by_module(lambda: model(*inputs), all_pairs=True)
    both = count_by_module(lambda: model(*inputs).square().sum().backward(), all_pairs=True)
    sums: list[Counter[str]] = []
    for found in (forward, both):
        sums.append(Counter())
        for (module, kind), count in found.items():
            sums[-1]["taps" if kind == "product" and re.search(r"\.(featurizer|operator)$", module) else kind] += count
    return sums[0], sums[1] - sums[0]


@pytest.mark.parametrize("architecture", ["isotropic", "hybrid"])
def test_backward_multiplies_each_matrix_twice(architecture: str) -> None:
    inputs = [torch.randint(65, 85, (1, 512))]
    # Backward through an implicit filter, torch's counter loses track of modules: it has no input but a length.
    blocks = stack(*(name for name in ALL_BLOCKS if name != "hyena_implicit"))
    model: nn.Module = IsotropicConfig(stack=blocks).build()
    if architecture == "hybrid":
        model = HyenaBLTConfig(local_width=32, max_patch_bases=8, global_model=blocks).build()
        inputs.append(ragged_lengths(100))
    forward, backward = passes(model, *inputs)
    assert backward["product"] == pytest.approx(BACKWARD_RATIO * forward["product"], rel=0.001)


def test_convolutions_by_hand() -> None:
    parts = stack("hyena_se", "hyena_mr").flops(1000)
    # Featurizers of 3 taps on 3 x 48 channels in both blocks, 7 taps on 48 in the first.
    assert parts["short_convolutions"] == 1000 * (2 * 2 * 3 * 144 + 2 * 7 * 48)
    # 1000 + 127 positions fit into 1152 = 2^7 3^2, but 1125 is too short; 48 channels, 48 filters.
    transform = 2.5 * 1152 * 10.169925
    assert parts["fourier_convolutions"] == pytest.approx(48 * (2 * transform + 3 * 1152) + 48 * transform, rel=1e-6)


def test_taps_before_the_first_position_are_not_counted() -> None:
    assert convolution(5, 7, 3, 3) == convolution(5, 5, 3, 3) == {"short_convolutions": 2 * 5 * 3 * 5}


def test_costs_grow_linearly_but_for_attention() -> None:
    config = IsotropicConfig(stack=stack(*ALL_BLOCKS))
    once, twice = count_flops(config, 1 << 16), count_flops(config, 1 << 17)
    for part in ("projections", "mlp", "short_convolutions", "filters", "head"):
        assert twice[part] == 2 * once[part]
    assert 2 < twice["fourier_convolutions"] / once["fourier_convolutions"] < 2.2
    assert twice["attention"] == 4 * once["attention"]
