"""A trained model with everything that using it takes: weights, configuration and patcher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from hyena_blt_savanna.config import Config

from .native_checkpoint import PretrainedError, read_native, save_pretrained

if TYPE_CHECKING:
    from hyena_blt_savanna.patching.patcher import Patcher

__all__ = ["HyenaBLTModel", "PretrainedError", "save_pretrained"]


class HyenaBLTModel:
    """A trained model, ready to score, embed and generate sequences.

    Args:
        module: the torch model; `module(bases, patch_lengths)` gives logits.
        config: its configuration.
        patcher: finds patch boundaries; None for a model of single bases.
        window_bases: longest window that the model was trained on, if known.
    """

    def __init__(
        self, module: nn.Module, config: Config, patcher: Patcher | None, window_bases: int | None = None
    ) -> None:
        self.module = module.eval()
        self.config = config
        self.patcher = patcher
        self.window_bases = window_bases

    @classmethod
    def load_from_checkpoint(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Loads a trained model.

        Args:
            path: a native checkpoint, a training checkpoint that holds one, or a run folder (its newest whole
                checkpoint).
            device: where the model computes.

        Raises:
            PretrainedError: there is no checkpoint, it is broken, or it is of another format or model.
        """
        native = read_native(Path(path))
        return cls(native.module.to(device), native.config, native.patcher, native.window_bases)

    def save(self, folder: str | Path) -> None:
        """Writes the model as a native checkpoint.

        Raises:
            PretrainedError: it can't be written; nothing of it is left.
        """
        save_pretrained(Path(folder), self.module.state_dict(), self.config, self.patcher, self.window_bases)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Weights of the torch model; one that is used twice counts once."""
        return sum(parameter.numel() for parameter in self.module.parameters())
