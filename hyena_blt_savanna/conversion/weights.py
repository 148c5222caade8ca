"""What every checkpoint format is read into and written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.conversion.names import what_only_native_holds
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, missing_and_extra
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.patching.patcher import Patcher


class ConversionError(ValueError):
    """A checkpoint that can't be converted; the message names the place and says what to change."""


@dataclass(frozen=True)
class ModelWeights:
    """A model as it lies in a checkpoint of some format.

    Attributes:
        config: the model's; its `kind` tells the architecture.
        tensors: all of the torch module's state dictionary, under its names.
        patcher: finds patch boundaries; None for a model of single bases, or where the format holds none.
        window_bases: longest window of the training, if known.
        trained_on: digest of the training data and the fold left out of them, if known.
        trained_in: how products were computed, for weights of a training in FP8; see `NativeCheckpoint`.
        notes: what the source held that this can't, in words; for the user and for manifests.
    """

    config: Config
    tensors: dict[str, LazyTensor]
    patcher: Patcher | None = None
    window_bases: int | None = None
    trained_on: dict[str, Any] | None = None
    trained_in: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def isotropic_config(weights: ModelWeights, format_name: str) -> IsotropicConfig:
    """The configuration of a model that Savanna and Vortex have places for.

    Args:
        weights: of any model.
        format_name: of the target, for the message.

    Raises:
        ConversionError: they have no places for it; the message says for what.
    """
    if not isinstance(weights.config, IsotropicConfig):
        kind = weights.config.to_dict()["kind"]
        raise ConversionError(
            f"{format_name} holds isotropic models, and this one is of kind {kind}: convert to native"
        )
    reasons = what_only_native_holds(weights.config)
    if reasons:
        raise ConversionError(f"{format_name} has no place for " + "; for ".join(reasons))
    return weights.config


def state_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's state dictionary; no memory is taken.

    Args:
        config: of a model.
    """
    with torch.device("meta"):
        module = config.build()  # type: ignore[attr-defined]
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def only_tensors(path: Path, state: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """A state dictionary of a foreign file, all of whose values must be tensors.

    Args:
        path: of the file, for the message.
        state: without what is left out by rule.

    Raises:
        ConversionError: other values are in it.
    """
    others = sorted(name for name, value in state.items() if not isinstance(value, LazyTensor))
    if others:
        raise ConversionError(f"{path}: these weights are no tensors: {', '.join(others)}")
    return dict(state)


def check_tensors(where: str, wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]) -> None:
    """Compares names and shapes.

    Args:
        where: the file or folder, for the message.
        wanted: shapes by name, as the configuration has them.
        given: shapes by name, as they are stored.

    Raises:
        ConversionError: they differ; every difference is listed.
    """
    problems = missing_and_extra(set(wanted), set(given)) + [
        f"{name} has shape {list(given[name])} instead of {list(wanted[name])}"
        for name in sorted(wanted.keys() & given.keys())
        if given[name] != wanted[name]
    ]
    if problems:
        raise ConversionError(
            f"{where}: {len(problems)} weight(s) don't fit the configuration:\n"
            + "\n".join(f"  {line}" for line in problems)
        )
