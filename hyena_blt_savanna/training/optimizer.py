"""AdamW, and which parameters it lets decay."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import Field, PositiveFloat
from torch import nn

from hyena_blt_savanna.config import Config


class OptimizerConfig(Config):
    """torch's AdamW."""

    lr: PositiveFloat = 3e-3
    """Highest learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the averages of gradients and of their squares."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the averaged squares."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of the matrices; embeddings and vectors (norms, biases, skips) never decay."""
    no_decay: tuple[str, ...] = ("*taps", "*log_step", "*log_rate", "*residues", "*implicit_filter*")
    """Patterns of the names of further parameters that never decay: the filters."""
    fused: bool = True
    """One kernel for a whole tensor: on a CPU four times as fast as torch's other implementations."""

    def build(self, model: nn.Module) -> torch.optim.AdamW:
        """The optimizer of a model's trainable parameters."""
        return torch.optim.AdamW(
            parameter_groups(model, self.weight_decay, self.no_decay),
            lr=self.lr,
            betas=self.betas,
            eps=self.eps,
            fused=self.fused,
        )


def parameter_groups(model: nn.Module, weight_decay: float, no_decay: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Splits a model's parameters into those that decay and those that don't.

    Args:
        model: its parameters without gradient are left out.
        weight_decay: of those that decay.
        no_decay: patterns (`*`, `?`) of the names of parameters that don't, besides embeddings, vectors and scalars.

    Returns:
        At most two groups for a torch optimizer.
    """
    in_embeddings = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    decaying: list[nn.Parameter] = []
    fixed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        exempt = (
            parameter.ndim < 2
            or id(parameter) in in_embeddings
            or any(fnmatchcase(name, pattern) for pattern in no_decay)
        )
        (fixed if exempt else decaying).append(parameter)
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": fixed, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
