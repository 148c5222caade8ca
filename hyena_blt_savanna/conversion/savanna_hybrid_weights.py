"""Weights of the hybrid in a Savanna checkpoint, with the global model's blocks as Savanna's own or as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyena_blt_savanna.conversion.names import Place, what_only_native_holds
from hyena_blt_savanna.conversion.savanna_hybrid import (
    BLOCK,
    PATCHER,
    HybridBlock,
    block_prefix,
    describe_hybrid,
    global_places,
    parse_block,
    parse_hybrid,
)
from hyena_blt_savanna.conversion.savanna_layouts import to_ours, to_savanna_layouts
from hyena_blt_savanna.conversion.savanna_ranks import merge_ranks
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights, check_tensors, state_shapes
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.patching.patcher import Patcher

_DEFAULT_WINDOW_BASES = 8192


def stack_of(config: HyenaBLTConfig | IsotropicConfig) -> StackConfig:
    """The blocks of a model that Savanna has a place for."""
    return config.global_model if isinstance(config, HyenaBLTConfig) else config.stack


def all_places(config: HyenaBLTConfig) -> list[Place]:
    """Where the weights lie in a checkpoint whose global blocks Savanna built: those of the rest under our names."""
    blocks = global_places(config)
    taken = {place.ours for place in blocks}
    rest = [name for name in state_shapes(config) if name not in taken and not name.startswith("global_model.blocks.")]
    return [*(Place(name, name, None) for name in rest), *blocks]


def read_hybrid(folder: Path, modules: Sequence[Mapping[str, LazyTensor]], settings: Mapping[str, Any]) -> ModelWeights:
    """The weights of a checkpoint that a hybrid left inside Savanna.

    Args:
        folder: of the files.
        modules: weights of each tensor-parallel rank, without what is never read.
        settings: Savanna's keys, without hyphens.

    Raises:
        ConversionError: the configuration is missing, or weights and configuration don't fit.
    """
    if BLOCK not in settings:
        raise ConversionError(
            f"{folder} holds a hybrid and no configuration of it: give the YAML file that it was trained with, which "
            "has the block hyena-blt"
        )
    block, config = parse_block(settings, str(folder)), parse_hybrid(settings, str(folder))
    wanted = state_shapes(config)
    in_place = all_places(config) if block.global_blocks == "savanna" else [Place(name, name, None) for name in wanted]
    merged = merge_ranks(folder, modules, in_place, config.global_model)
    ours, given = to_ours(merged, in_place, config.global_model.hyena.mr_taps)
    check_tensors(str(folder), {place.savanna: wanted[place.ours] for place in in_place}, given)
    patcher = Patcher.load(folder / PATCHER) if (folder / PATCHER).is_dir() else None
    tensors = {name: ours[name] for name in wanted}
    return ModelWeights(config, tensors, patcher, window_bases=settings.get("seq_length"))


def hybrid_to_savanna(weights: ModelWeights) -> tuple[dict[str, Any], dict[str, LazyTensor], list[str]]:
    """A hybrid as Savanna holds it, with global blocks of its own.

    Args:
        weights: of a hybrid.

    Returns:
        Savanna's keys, tensors by Savanna's names, and what differs, in words.

    Raises:
        ConversionError: the global model has parts that Savanna has none for.
    """
    config = weights.config
    assert isinstance(config, HyenaBLTConfig)
    reasons = what_only_native_holds(config.global_model)
    if reasons:
        raise ConversionError("Savanna has no place for " + "; for ".join(reasons))
    window_bases = weights.window_bases or _DEFAULT_WINDOW_BASES
    hyena = config.global_model.hyena
    has_grid = "hyena_mr" in config.global_model.blocks
    window_patches = max(hyena.mr_decay_length if has_grid else window_bases, hyena.mr_taps)
    block = HybridBlock(window_patches=window_patches)
    settings = describe_hybrid(config, window_bases, block)
    module, notes = to_savanna_weights(weights.tensors, config, window_patches)
    notes.append(
        f"hyena-blt.window_patches is {window_patches}, which the shapes of filters follow: give start_from with the "
        "native checkpoint instead to train with another"
    )
    return settings, module, notes


def to_savanna_weights(
    tensors: Mapping[str, LazyTensor], config: HyenaBLTConfig, window_patches: int, fast_kernel: bool = True
) -> tuple[dict[str, LazyTensor], list[str]]:
    """A hybrid's weights under the names of a model whose global blocks are Savanna's.

    Args:
        tensors: by our names.
        config: of the model.
        window_patches: Savanna's seq_length of the blocks.
        fast_kernel: see `to_savanna_layouts`.

    Returns:
        Tensors by name, and what differs, in words.
    """
    prefixes = [block_prefix(index) for index in range(len(config.global_model.blocks))]
    return to_savanna_layouts(tensors, all_places(config), prefixes, config.global_model, window_patches, fast_kernel)
