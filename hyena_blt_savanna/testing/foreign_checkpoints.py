"""Checkpoints as other programs leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml


def write_savanna(
    folder: Path, modules: Sequence[Mapping[str, Any]], settings: Mapping[str, Any] | None, **entries: Any
) -> Path:
    """Writes files of tensor-parallel ranks as Savanna's DeepSpeed names them.

    Args:
        folder: where; made if need be.
        modules: state dictionary of each rank.
        settings: of the YAML file that Savanna copies beside them; None for none.
        entries: further entries of each file.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for rank, module in enumerate(modules):
        state = {"module": dict(module), "iteration": 7, "mp_world_size": len(modules), **entries}
        torch.save(state, folder / f"mp_rank_{rank:02d}_model_states.pt")
    if settings is not None:
        (folder / "configs").mkdir(exist_ok=True)
        (folder / "configs" / "model.yml").write_text(yaml.safe_dump(dict(settings)))
    return folder
