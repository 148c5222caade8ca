"""Counting a model's weights without building it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.kmer_tokens import KmerTokensConfig
from hyena_blt_savanna.model.parameters import count_parameters

ALL = ["hyena_se", "hyena_mr", "hyena_li", "hyena_implicit", "attention"]
STACK: dict[str, Any] = {"width": 16, "num_heads": 2, "blocks": ALL}
CONFIGS: dict[str, Config] = {
    "tied": IsotropicConfig.parse({"stack": STACK, "kmers": {"sizes": [1, 2]}}),
    "untied": IsotropicConfig.parse({"stack": STACK, "head": "untied"}),
    "hybrid": HyenaBLTConfig.parse(
        {
            "local_width": 8,
            "kmers": {"sizes": [2]},
            "global_model": STACK,
            "encoder": {"blocks": ["hyena_se"]},
            "auxiliary": {"entropy": 0.1},
        }
    ),
    "hnet": HNetConfig.parse(
        {
            "kmers": {"sizes": [2]},
            "encoder": {"width": 12, "blocks": ["hyena_se"]},
            "main_network": STACK,
            "decoder": {"width": 12, "blocks": ["hyena_se"]},
        }
    ),
    "words": KmerTokensConfig.parse({"word_bases": 2, "global_model": STACK}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_parts_add_up_to_the_model(name: str) -> None:
    config = CONFIGS[name]
    state = torch.get_rng_state()
    counts = count_parameters(config)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())
    model = config.build()  # type: ignore[attr-defined]
    assert sum(counts.values()) == sum(weight.numel() for weight in model.parameters())
    assert set(ALL) | {"mlp", "norms"} <= set(counts)
    assert all(counts.values())


def test_parts_by_hand() -> None:
    counts = count_parameters(CONFIGS["tied"])  # type: ignore[arg-type]
    assert counts["embedding"] == 512 * 16
    assert counts["kmers"] == (4 + 1 + 16 + 1) * 16
    assert counts["norms"] == (2 * 5 + 1) * 16
    assert counts["mlp"] == 5 * 3 * 16 * 48
    assert counts["attention"] == 3 * 16 * 16 + 16 * 16 + 16
    assert counts["hyena_se"] == 3 * 16 * 16 + 3 * 16 * 3 + 16 * 7 + 16 * 16 + 16
    assert "head" not in counts
    assert count_parameters(CONFIGS["untied"])["head"] == 512 * 16  # type: ignore[arg-type]


def test_a_local_modules_blocks_are_its_own() -> None:
    counts = count_parameters(CONFIGS["hybrid"])  # type: ignore[arg-type]
    global_model = IsotropicConfig.parse({"stack": STACK})
    assert {part: counts[part] for part in (*ALL, "mlp", "norms")} == {
        part: number for part, number in count_parameters(global_model).items() if part != "embedding"
    }
    assert set(counts) == {*ALL, "mlp", "norms", "encoder", "decoder", "auxiliary"}


def test_a_large_model_takes_neither_time_nor_memory() -> None:
    stack = {"width": 8192, "num_heads": 64, "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"] * 16}
    config = HyenaBLTConfig.parse({"local_width": 2048, "kmers": {"sizes": [12]}, "global_model": stack})
    begin = time.process_time()
    # Were they real, they would take 350 GB.
    assert sum(count_parameters(config).values()) > 8e10
    assert time.process_time() - begin < 20
    with torch.device("meta"):
        model = config.build()
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
