"""The models that a run may train: built, changed, compared."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.kmer_tokens import KmerTokensConfig
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel

ModelConfig: TypeAlias = Annotated[
    HyenaBLTConfig | IsotropicConfig | HNetConfig | KmerTokensConfig, Field(discriminator="kind")
]

ConfigType = TypeVar("ConfigType", bound=Config)


def build_model(config: ModelConfig, context: ContextParallel = SINGLE_RANK) -> nn.Module:
    """A model with fresh weights.

    Args:
        config: of it.
        context: the ranks that hold slices of the same windows.
    """
    if context.num_ranks == 1:
        return config.build()
    assert isinstance(config, HyenaBLTConfig | IsotropicConfig), "the run's configuration allows no other"
    return config.build(context)


def with_activation_checkpointing(config: ConfigType, value: bool = True) -> ConfigType:
    """A copy of a configuration in which every stack of blocks, at any depth, keeps only its blocks' inputs.

    Args:
        config: of a model, or of a part of one.
        value: False keeps everything.
    """
    changes: dict[str, Any] = {}
    for key in type(config).model_fields:
        field = getattr(config, key)
        if key == "activation_checkpointing":
            changes[key] = value
        elif isinstance(field, Config):
            changes[key] = with_activation_checkpointing(field, value)
    return config.model_copy(update=changes)


def differing_models(saved: Any, given: Any) -> list[str]:
    """Dotted keys at which two models differ, each with both values; none: the weights of one are those of the other.

    What is kept for the backward pass is no part of a model, and a key that is newer than a checkpoint has its default
    there.

    Args:
        saved: the plain values of a checkpoint's model.
        given: of the run's.
    """
    return differing_keys(_compared(saved), _compared(given), "model")


def differing_keys(saved: Any, given: Any, key: str) -> list[str]:
    """Dotted keys at which two trees differ, each with both values.

    Args:
        saved: of the checkpoint.
        given: of the run.
        key: where the trees stand.
    """
    if isinstance(saved, dict) and isinstance(given, dict):
        return [
            line
            for name in dict.fromkeys([*saved, *given])
            for line in differing_keys(saved.get(name), given.get(name), f"{key}.{name}")
        ]
    return [] if saved == given else [f"{key}: {saved!r} in the checkpoint, {given!r} in the run"]


def _compared(tree: Any) -> Any:
    try:
        config: Config = TypeAdapter(ModelConfig).validate_python(tree)
    except ValidationError:
        # Of another version, which may have named its keys otherwise.
        return tree
    return with_activation_checkpointing(config, value=False).to_dict()
