"""The weights that a run begins with, and which of them it leaves as they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.training.checkpoints import CheckpointError
from hyena_blt_savanna.training.model_config import differing_models

logger = logging.getLogger(__name__)


def load_first_weights(model: nn.Module, config: Config, path: Path) -> None:
    """Gives a model the weights of a checkpoint of the same architecture. Before DeepSpeed cuts them up.

    Args:
        model: fresh, on the CPU.
        config: what it was built from.
        path: a native checkpoint, a training checkpoint that holds one, or a run folder (its newest whole one).

    Raises:
        PretrainedError: there is no checkpoint, or it is broken.
        CheckpointError: it is of another model.
    """
    native = read_native(path)
    differing = differing_models(native.config.to_dict(), config.to_dict())
    if differing:
        raise CheckpointError(
            f"start_from: {native.folder} is a checkpoint of another model:\n"
            + "\n".join(f"  {line}" for line in differing)
            + "\ngive the run these keys as the checkpoint has them, or start from another one"
        )
    model.load_state_dict(native.module.state_dict())
    logger.info("first weights from %s", native.folder)


def check_patterns(model: nn.Module, patterns: Sequence[str]) -> None:
    """Refuses patterns that name nothing, which are misspelt.

    Args:
        model: its parameters are meant.
        patterns: of `training.frozen`.

    Raises:
        ConfigError: no parameter has such a name, or none is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            parts = ", ".join(sorted({name.split(".")[0] + ".*" for name in names}))
            raise ConfigError(f"training.frozen: no weight is called {pattern!r}; the parts of this model are {parts}")
    if all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in names):
        raise ConfigError(f"training.frozen: {', '.join(patterns)} leaves nothing to train")


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Leaves weights as they are: no gradients, no optimizer state, no decay.

    Args:
        model: before its optimizer is made.
        patterns: of the names of its parameters, `*` and `?`.
    """
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
