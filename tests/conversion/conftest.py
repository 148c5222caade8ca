"""Checkpoints as Savanna and Vortex leave them, of weights recorded from the public code (see tests/golden)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from hyena_blt_savanna.testing.foreign_checkpoints import write_savanna

GOLDEN = Path(__file__).parents[1] / "golden" / "stripedhyena2"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backbone() -> dict[str, Tensor]:
    return load_file(GOLDEN / "backbone_4layer_L256.safetensors")


@pytest.fixture(scope="session")
def savanna_module(backbone: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dictionary of Savanna's own model."""
    kinds = ("param.", "buffer.")
    return {name.split(".", 1)[1]: tensor for name, tensor in backbone.items() if name.startswith(kinds)}


@pytest.fixture(scope="session")
def savanna_settings() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((GOLDEN / "backbone_4layer_L256.json").read_text())["config"]
    return settings


@pytest.fixture
def savanna_folder(tmp_path: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]) -> Path:
    return write_savanna(tmp_path / "savanna_source", [savanna_module], savanna_settings)


@pytest.fixture(scope="session")
def vortex() -> dict[str, Tensor]:
    return load_file(GOLDEN / "vortex_backbone_4layer_L256.safetensors")


@pytest.fixture(scope="session")
def vortex_state(vortex: dict[str, Tensor]) -> dict[str, Tensor]:
    """What upstream's converter made of the same weights."""
    state = {
        name.removeprefix("convert_out."): tensor for name, tensor in vortex.items() if name.startswith("convert_out.")
    }
    return {**state, "unembed.weight": state["embedding_layer.weight"]}


@pytest.fixture(scope="session")
def vortex_settings() -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((GOLDEN / "vortex_backbone_4layer_L256.json").read_text())["config"]
    return settings


@pytest.fixture
def vortex_folder(tmp_path: Path, vortex_state: dict[str, Tensor], vortex_settings: dict[str, Any]) -> Path:
    folder = tmp_path / "vortex_source"
    folder.mkdir()
    # Published files hold the state of fp8 scales of each projection, in one of these ways.
    extra = {
        "blocks.0.projections._extra_state": io.BytesIO(b"scales"),
        "blocks.1.projections._extra_state": torch.zeros(3, dtype=torch.uint8),
        "blocks.2.projections._extra_state": None,
    }
    torch.save({**vortex_state, **extra}, folder / "tiny.pt")
    (folder / "tiny.yml").write_text(yaml.safe_dump(vortex_settings))
    return folder
