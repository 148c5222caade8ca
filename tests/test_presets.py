"""The presets of configs/model: each is a model that can be trained, of the size that its first line says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.parameters import count_parameters
from hyena_blt_savanna.training.run_config import RunConfig

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "configs" / "model"
EVO2 = ("evo2_1b", "evo2_7b", "evo2_40b")
HYENA_BLT = tuple(f"hyena_blt_{size}" for size in ("10m", "150m", "1b", "7b", "40b"))

SHORT, LONG = "SDH*", "SDHSDH*"
LAYERS = {
    "10m": SHORT + LONG,
    "150m": SHORT + 2 * LONG,
    "1b": SHORT + 3 * LONG,
    "7b": SHORT + 4 * LONG,
    "40b": SHORT + 4 * LONG + SHORT + 2 * LONG,
}
"""S, D, H: hyena_se, hyena_mr, hyena_li; *: attention. Those of Evo 2 as NVIDIA's BioNeMo writes them."""
ATTENTION_LAYERS = {
    "1b": [3, 10, 17, 24],
    "7b": [3, 10, 17, 24, 31],
    "40b": [3, 10, 17, 24, 31, 35, 42, 49],
}
"""`attn_layer_idxs` of Vortex's configurations."""


def load(*sources: str) -> RunConfig:
    """A run of a preset, with the other settings of the quickstart."""
    files = [PRESETS / f"{name}.yaml" for name in sources]
    return RunConfig.load([*files, ROOT / "configs" / "training" / "quickstart.yaml", "run=runs/x", "data.folder=data"])


def stack_weights(layers: str, width: int, hidden_width: int, groups: int) -> int:
    """Blocks and final norm.

    A Hyena block: in 3 M^2, featurizer 3 M of 3 taps, out M^2 with a bias; hyena_se 7 taps a group; hyena_mr 128 taps a
    group and a skip weight a channel; hyena_li three numbers for each of 16 exponentials, and a skip weight, a channel.
    """
    hyena = 3 * width**2 + 3 * width * 3 + width**2 + width
    short = hyena + groups * 7
    medium = hyena + groups * 128 + width
    long = hyena + width * 16 * 3 + width
    attention = 3 * width**2 + width**2 + width
    mlp_and_norms = 3 * width * hidden_width + 2 * width
    mixers = {"S": short, "D": medium, "H": long, "*": attention}
    return sum(mixers[layer] + mlp_and_norms for layer in layers) + width


def local_weights(width: int, patch_width: int, hidden_width: int, longest_word: int, num_blocks: int) -> int:
    """Encoder without blocks and decoder, for patches of up to 16 bases."""
    words = sum(4**k + 1 for k in range(2, longest_word + 1))
    # Bytes, words, norm, a map for each place, a vector for each length from 0 to 16.
    encoder = 512 * width + words * width + width + 16 * width * patch_width + 17 * patch_width
    # 4 bases to two times the hidden width, and back.
    block = width + 4 * width * 2 * hidden_width + hidden_width * width
    # The start vector, a map with a bias for each place, norm, the five scored bytes.
    decoder = patch_width + 16 * (patch_width * width + width) + num_blocks * block + width + 5 * width
    return encoder + decoder


BY_HAND = {
    "evo2_1b": 512 * 1920 + stack_weights(LAYERS["1b"], 1920, 5120, 128),
    "evo2_7b": 512 * 4096 + stack_weights(LAYERS["7b"], 4096, 11264, 256),
    "evo2_40b": 512 * 8192 + stack_weights(LAYERS["40b"], 8192, 22528, 512),
    "hyena_blt_10m": stack_weights(LAYERS["10m"], 224, 608, 14) + local_weights(96, 224, 192, 7, 1),
    "hyena_blt_150m": stack_weights(LAYERS["150m"], 768, 2048, 48) + local_weights(192, 768, 384, 8, 2),
    "hyena_blt_1b": stack_weights(LAYERS["1b"], 1920, 5120, 128) + local_weights(384, 1920, 768, 8, 2),
    "hyena_blt_7b": stack_weights(LAYERS["7b"], 4096, 11008, 256) + local_weights(512, 4096, 1024, 8, 3),
    "hyena_blt_40b": stack_weights(LAYERS["40b"], 8192, 21888, 512) + local_weights(1024, 8192, 2048, 8, 3),
}


@pytest.mark.parametrize("name", [*EVO2, *HYENA_BLT])
def test_the_number_of_weights(name: str) -> None:
    config = load_model(name)
    assert isinstance(config, IsotropicConfig if name in EVO2 else HyenaBLTConfig)
    counts = count_parameters(config)
    assert sum(counts.values()) == BY_HAND[name]
    first_line = (PRESETS / f"{name}.yaml").read_text().splitlines()[0]
    size = name.rpartition("_")[2].upper()
    assert re.match(rf"# (Evo 2|Hyena-BLT) {size}\b.*: {BY_HAND[name]:,} parameters", first_line)
    if isinstance(config, HyenaBLTConfig):
        of_global_model = sum(counts.values()) - counts["encoder"] - counts["decoder"]
        assert f" {of_global_model:,} of them in the global model." in first_line


def load_model(*names: str) -> IsotropicConfig | HyenaBLTConfig:
    model = load(*names).model
    assert isinstance(model, IsotropicConfig | HyenaBLTConfig)
    return model


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_can_be_trained(path: Path) -> None:
    config = load("evo2_7b", path.stem) if path.stem == "evo2_1m" else load(path.stem)
    assert config.model_to_build() == config.model
    # As a run keeps it.
    assert type(config).parse(config.to_dict()) == config


@pytest.mark.parametrize("size", LAYERS)
def test_the_layers_are_evo2s(size: str) -> None:
    names = {"S": "hyena_se", "D": "hyena_mr", "H": "hyena_li", "*": "attention"}
    wanted = [names[layer] for layer in LAYERS[size]]
    hybrid = load_model(f"hyena_blt_{size}")
    assert isinstance(hybrid, HyenaBLTConfig)
    assert hybrid.global_model.blocks == wanted
    if size in ATTENTION_LAYERS:
        evo2 = load_model(f"evo2_{size}")
        assert isinstance(evo2, IsotropicConfig)
        assert evo2.stack.blocks == wanted
        assert [at for at, name in enumerate(wanted) if name == "attention"] == ATTENTION_LAYERS[size]
        assert evo2.stack.width == hybrid.global_model.width
        assert evo2.stack.num_heads == hybrid.global_model.num_heads == hybrid.global_model.width // 128


@pytest.mark.parametrize("name", EVO2)
def test_upstreams_quirks_are_in_evo2_and_not_in_ours(name: str) -> None:
    evo2, ours = load_model(name), load_model(name.replace("evo2", "hyena_blt"))
    assert isinstance(evo2, IsotropicConfig)
    assert isinstance(ours, HyenaBLTConfig)
    for stack, is_evo2 in ((evo2.stack, True), (ours.global_model, False)):
        assert (stack.mlp.activation == "gelu_until_long") is is_evo2
        assert stack.hyena.interleaved_projection is is_evo2
        assert stack.norm.epsilon_inside_root is not is_evo2
    assert evo2.head == "tied"
    assert (evo2.stack.hyena.mr_decay, evo2.stack.hyena.mr_decay_length) == ("weak", 8192)
    assert evo2.stack.attention.rotary.base == (1e6 if name == "evo2_40b" else 1e4)
    assert evo2.stack.attention.rotary.position_scale == 1


@pytest.mark.parametrize("name", ["evo2_7b", "evo2_40b"])
def test_long_windows_change_positions_alone(name: str) -> None:
    short, long = load_model(name), load_model(name, "evo2_1m")
    assert isinstance(short, IsotropicConfig)
    assert isinstance(long, IsotropicConfig)
    assert (long.stack.attention.rotary.base, long.stack.attention.rotary.position_scale) == (1e11, 128)
    back = long.stack.model_copy(update={"attention": short.stack.attention})
    assert back == short.stack


def test_the_tool_counts(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    path = ROOT / "tools" / "count_parameters.py"
    spec = importlib.util.spec_from_file_location("tools_count_parameters", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    # Its annotations are looked up by the module's name.
    monkeypatch.setitem(sys.modules, spec.name, tool)
    spec.loader.exec_module(tool)
    preset = str(PRESETS / "hyena_blt_10m.yaml")
    monkeypatch.setattr(sys, "argv", [path.name, preset, str(ROOT / "configs" / "training" / "quickstart.yaml")])
    assert tool.main() == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == ["all", f"{BY_HAND['hyena_blt_10m']:,}"]
    assert [line[0] for line in lines[:2]] == ["encoder", "norms"]
    monkeypatch.setattr(sys, "argv", [path.name, preset, "model.local_widht=4"])
    assert tool.main() == 1
    assert "did you mean 'local_width'" in capsys.readouterr().err
