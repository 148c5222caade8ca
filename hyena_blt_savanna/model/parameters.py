"""How many weights a model has, and in which of its parts, without the memory for any of them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from hyena_blt_savanna.model.blocks import Block
from hyena_blt_savanna.model.stack import Stack


class _ModelConfig(Protocol):
    def build(self) -> nn.Module: ...


def count_parameters(config: _ModelConfig) -> dict[str, int]:
    """Numbers of the weights that training changes, each counted once however often it is used.

    Args:
        config: of any architecture. The model is built on the meta device: a 40B one takes seconds, and no weight of
            it any memory.

    Returns:
        By part; all of them add up to the model. Of stacks of blocks: the mixers by their names, mlp, norms. Of what
        else there is: the names of the model's own modules, such as embedding, head, encoder, decoder.
    """
    with torch.device("meta"):
        model = config.build()
    counts: dict[str, int] = {}
    for name, weight in model.named_parameters():
        part = _part(model, name)
        counts[part] = counts.get(part, 0) + weight.numel()
    return counts


def _part(model: nn.Module, name: str) -> str:
    names = name.split(".")
    for depth in range(1, len(names)):
        if not isinstance(model.get_submodule(".".join(names[:depth])), Stack):
            continue
        if names[depth] != "blocks":
            return "norms"
        block = model.get_submodule(".".join(names[: depth + 2]))
        assert isinstance(block, Block)
        return {"mixer": block.name, "mlp": "mlp"}.get(names[depth + 2], "norms")
    return names[0]
