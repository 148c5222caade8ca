"""The hybrid inside Savanna: its block of a Savanna configuration, and its weights in a Savanna checkpoint.

Savanna's own keys describe the global model, its blocks above all; one block of ours, `hyena-blt`, says the rest. The
weights lie under our names but for those of the global model's blocks, which are Savanna's where it built them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.conversion.names import Place, block_places, block_prefixes
from hyena_blt_savanna.conversion.savanna_config import DEFAULTS, describe, parse_settings
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import VOCABULARY_SIZE

BLOCK = "hyena_blt"
"""Of a Savanna configuration: what is ours in it. Written hyena-blt, as Savanna writes hyphens for underscores."""
OWN_OPERATORS = {"hyena_li": "hyena", "attention": "flash_v2"}
"""Our names of operators, which may be used in operator-config besides Savanna's, and what Savanna calls them."""
PATCHER = "patcher"
"""Folder beside the weights with the patcher that cut the data."""


class HybridBlock(Config):
    """What Savanna has no key for."""

    global_blocks: Literal["savanna", "ours"] = "savanna"
    """Whose code the global model's blocks are: Savanna's ParallelBlock, with its tensor parallelism, fp8 and kernels,
    or ours."""
    window_patches: PositiveInt
    """Positions of the global model: a window's patches and the byte in front of it, padded to this many for Savanna's
    blocks. Windows with more are cut off."""
    annotation: str = "patches"
    """Name of the patch boundaries beside each of the data paths."""
    strands: Literal["both", "forward"] = "both"
    """Whether the reverse strand is trained on too."""
    loss_chunk_bases: PositiveInt | None = 16_384
    """Bases of a rank whose logits exist at a time; null: those of a whole micro batch."""
    start_from: Path | None = None
    """First weights: a native checkpoint of the same model; null draws them. Savanna's own `load` goes before."""
    model: dict[str, Any] = Field(default_factory=dict)
    """The rest of the model, in the keys of `model` of our own configurations: all but kind and global_model."""


def parse_block(settings: Mapping[str, Any], where: str) -> HybridBlock:
    """Our block of a Savanna configuration.

    Args:
        settings: Savanna's keys, without hyphens.
        where: the files, for messages.

    Raises:
        ConversionError: there is none, or it has mistakes.
    """
    tree = settings.get(BLOCK)
    if not isinstance(tree, dict):
        raise ConversionError(
            f"{where}: there is no block hyena-blt, which says how bases become patches: add one with window_patches "
            "and model (see docs/savanna.md)"
        )
    ours = {"kind", "global_model"} & set(tree.get("model") or {})
    if ours:
        raise ConversionError(
            f"{where}: hyena-blt.model.{', hyena-blt.model.'.join(sorted(ours))}: Savanna's own keys (hidden_size, "
            "operator-config, ...) describe the global model: leave this out"
        )
    try:
        return HybridBlock.parse(tree, f"{where}: hyena-blt")
    except ConfigError as error:
        raise ConversionError(str(error)) from error


def parse_hybrid(settings: Mapping[str, Any], where: str) -> HyenaBLTConfig:
    """Our configuration of the hybrid that a Savanna configuration with our block describes.

    Args:
        settings: Savanna's keys, without hyphens.
        where: the files, for messages.

    Raises:
        ConversionError: a key is missing, or has a value that isn't converted.
    """
    block = parse_block(settings, where)
    stack = parse_model(with_savanna_operators(settings) | {"seq_length": block.window_patches}, where).stack
    try:
        tree = {"kind": "hyena_blt", "global_model": stack.to_dict(), **block.model}
        return HyenaBLTConfig.parse(tree, f"{where}: hyena-blt.model")
    except ConfigError as error:
        raise ConversionError(str(error)) from error


def parse_model(settings: Mapping[str, Any], where: str) -> IsotropicConfig:
    """Our configuration of the model that Savanna would build, from its keys alone, without weights.

    Args:
        settings: Savanna's keys, without hyphens.
        where: the files, for messages.

    Raises:
        ConversionError: a key is missing, or has a value that isn't converted.
    """
    needed = [key for key in ("num_layers", "hidden_size", "seq_length") if not isinstance(settings.get(key), int)]
    if needed:
        raise ConversionError(f"{where}: these keys are needed, as whole numbers: {', '.join(needed)}")
    return parse_settings(settings, _derived(settings), where)


def _derived(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Widths that Savanna derives: of `ParallelGLU`, and of the padded vocabulary."""
    known = {**DEFAULTS, **{key: value for key, value in settings.items() if value is not None}}
    num_ranks = known["model_parallel_size"]
    multiple = known["make_gated_mlp_multiple_of"]
    width = -(-int(2 * known["hidden_size"] * 4 / 3) // multiple) * multiple
    if known["pad_mlp_weights"]:
        # fp8 wants each rank's part of the hidden width to be a multiple of 16.
        width = -(-width // (16 * num_ranks)) * 16 * num_ranks
    rows = known["make_vocab_size_divisible_by"] * num_ranks
    # Where it says nothing, Savanna has one filter a channel, whatever the operator.
    groups = dict.fromkeys(("num_groups_hyena_medium", "num_groups_hyena_short"), known["num_groups_hyena"])
    derived = {"hidden_width": width, "num_rows": -(-VOCABULARY_SIZE // rows) * rows, **groups}
    # A number that is not given has no default of Savanna's in the way.
    return {key: value for key, value in derived.items() if value is not None}


def with_savanna_operators(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys with Savanna's names in the place of our own in operator-config."""

    def renamed(item: Any) -> Any:
        if isinstance(item, str):
            return OWN_OPERATORS.get(item, item)
        return [renamed(each) for each in item] if isinstance(item, list) else item

    return {**settings, **({"operator_config": renamed(settings["operator_config"])} if "operator_config" in settings
                           else {})}  # fmt: skip


def describe_hybrid(config: HyenaBLTConfig, window_bases: int, block: HybridBlock) -> dict[str, Any]:
    """Savanna's keys of a hybrid, our block among them.

    Args:
        config: of the model; all of the global model's parts are Savanna's too.
        window_bases: Savanna's seq_length.
        block: what it says besides the model.

    Raises:
        ConversionError: the global model has parts that Savanna has none for.
    """
    settings = describe(as_isotropic(config.global_model), block.window_patches)
    model = config.to_dict()
    del model["kind"], model["global_model"]
    ours = block.model_copy(update={"model": model}).to_dict()
    return {**settings, "seq_length": window_bases, "max_position_embeddings": window_bases, "hyena-blt": ours}


def as_isotropic(stack: StackConfig) -> IsotropicConfig:
    """A model of single bases with these blocks: what Savanna itself would have around them."""
    return IsotropicConfig(stack=stack)


def block_prefix(index: int) -> str:
    """What the names of a global block's weights begin with.

    Args:
        index: of the block, from 0.
    """
    return f"global_model.blocks.{index}."


def global_places(config: HyenaBLTConfig) -> list[Place]:
    """Where the weights of the global blocks lie in a checkpoint whose blocks Savanna built, under full names."""
    places = []
    for index in range(len(config.global_model.blocks)):
        prefix = block_prefixes(index)
        for place in block_places(config.global_model, index):
            ours = block_prefix(index) + place.ours.removeprefix(prefix["ours"])
            savanna = block_prefix(index) + place.savanna.removeprefix(prefix["savanna"])
            places.append(dataclasses.replace(place, ours=ours, savanna=savanna, vortex=None))
    return places


def is_hybrid(settings: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether a checkpoint is of a hybrid, by its configuration or the names of its weights."""
    return BLOCK in settings or any(name.startswith("global_model.") for name in names)
