"""Operations of the hybrids of the benchmark against torch's counter: every local module, every loss of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.model.flops import count_flops
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.testing.flop_counting import count_by_part

CONFIGS = Path(__file__).parents[2] / "configs"
HYBRID = CONFIGS / "quality" / "models" / "hyena_blt.yaml"
NUM_PATCHES = 400
"""A square number: the tables of a hyena_li filter are square, and nothing is rounded up."""


def config_of(path: Path) -> HyenaBLTConfig:
    """The model of a file, with small tables: look-ups are not counted, and large tables take long to draw."""
    return HyenaBLTConfig.parse(merge([HYBRID, path])["model"] | {"kmers": {"sizes": [2]}})


def ragged(config: HyenaBLTConfig) -> tuple[Tensor, Tensor]:
    """Bases int64 [1, L] and patches of 1 to the longest length, int32 [1, P], which cover them."""
    torch.manual_seed(0)
    lengths = torch.randint(1, config.max_patch_bases + 1, (1, NUM_PATCHES), dtype=torch.int32)
    return torch.randint(65, 85, (1, int(lengths.sum()))), lengths


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("quality/local/*.yaml")), ids=lambda path: path.stem)
def test_local_modules_equal_what_torch_counts(path: Path) -> None:
    config = config_of(path)
    bases, lengths = ragged(config)
    theirs = count_by_part(config.build().eval(), bases, lengths)
    ours = config.flops(bases.shape[1], NUM_PATCHES)
    assert theirs == pytest.approx({part: count for part, count in ours.items() if count}, rel=0.02)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("quality/auxiliary/*.yaml")), ids=lambda path: path.stem)
def test_losses_of_its_own_equal_what_torch_counts(path: Path) -> None:
    config = config_of(path)
    bases, lengths = ragged(config)
    weights, nats = torch.ones(bases.shape), torch.rand(bases.shape)
    in_training = sum(count_by_part(config.build().train(), bases, lengths, "next_base", weights, nats).values())
    otherwise = sum(count_by_part(config.build().eval(), bases, lengths).values())
    ours = count_flops(config, bases.shape[1], NUM_PATCHES, training=True)
    assert ours["total"] == pytest.approx(in_training, rel=0.02)
    # Some losses are so cheap that the totals would not tell.
    assert ours["auxiliary"] == pytest.approx(in_training - otherwise, rel=0.02)
