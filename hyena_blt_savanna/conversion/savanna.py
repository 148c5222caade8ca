"""Savanna's checkpoints: `mp_rank_XX_model_states.pt`, one a rank of tensor parallelism, and YAML files beside them.

SAVE/latest                                               name of the newest folder
SAVE/global_stepN/mp_rank_00_model_states.pt, ...         `module` holds the weights
SAVE/global_stepN/configs/*.yml                           what it was trained with

What is written has one rank. It holds all that Savanna's own model has, what it never reads included, so that Savanna
loads it strictly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hyena_blt_savanna.conversion.foreign_yaml import merge_foreign
from hyena_blt_savanna.conversion.names import EXTRA_STATE, INVERSE_FREQUENCIES, block_prefixes, places
from hyena_blt_savanna.conversion.savanna_config import describe, parse_settings
from hyena_blt_savanna.conversion.savanna_hybrid import PATCHER, is_hybrid
from hyena_blt_savanna.conversion.savanna_hybrid_weights import hybrid_to_savanna, read_hybrid, stack_of
from hyena_blt_savanna.conversion.savanna_inferred import infer, with_stored_decay, with_stored_rotary
from hyena_blt_savanna.conversion.savanna_layouts import is_unread, plain_norm, to_ours, to_savanna_layouts
from hyena_blt_savanna.conversion.savanna_ranks import RANK_FILE, find_folder, merge_ranks, read_ranks, saved_args
from hyena_blt_savanna.conversion.torch_files import write_torch
from hyena_blt_savanna.conversion.weights import (
    ModelWeights,
    check_tensors,
    isotropic_config,
    only_tensors,
    state_shapes,
)
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig

STEP_FOLDER = "global_step0"
_ARGS = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "make_vocab_size_divisible_by",
         "tokenizer_type", "model_parallel_size")  # fmt: skip


def read(path: Path, settings: Sequence[str] = ()) -> ModelWeights:
    """Reads a checkpoint of any number of tensor-parallel ranks.

    Args:
        path: the folder of the files, or one that holds `global_stepN` folders, of which `latest` is taken.
        settings: Savanna's YAML files and `key=value` of its keys; needed where the folder has no `configs/`.

    Raises:
        ConversionError: a file is missing or broken, ranks are of different steps, or weights and configuration
            don't fit.
    """
    folder = find_folder(path)
    states = read_ranks(folder)
    modules = [state["module"] for state in states]
    kept = [
        only_tensors(folder, {plain_norm(name): value for name, value in module.items() if not is_unread(name)})
        for module in modules
    ]
    found = merge_foreign([*sorted((folder / "configs").glob("*.y*ml")), *settings])
    if is_hybrid(found, list(kept[0])):
        weights = read_hybrid(folder, kept, found)
    else:
        weights = _isotropic(folder, modules, kept, found, saved_args(states[0]))
    dropped = sum(name.endswith(EXTRA_STATE) for name in modules[0])
    notes = [f"{dropped} entries of TransformerEngine's fp8 state ({EXTRA_STATE}) were left out"] if dropped else []
    return dataclasses.replace(weights, notes=(*notes, *weights.notes))


def _isotropic(
    folder: Path,
    modules: Sequence[Mapping[str, LazyTensor]],
    kept: Sequence[Mapping[str, LazyTensor]],
    found: Mapping[str, Any],
    args: Mapping[str, Any],
) -> ModelWeights:
    inferred = infer(modules, args)
    config = parse_settings(found, inferred, str(folder))
    config, notes = with_stored_rotary(config, modules[0], INVERSE_FREQUENCIES["savanna"], str(folder))
    merged = merge_ranks(folder, kept, places(config), config.stack)
    if "hyena_mr" in config.stack.blocks:
        config, more = with_stored_decay(config, merged)
        notes += more
    tensors = _to_ours(folder, merged, config)
    window_bases = found.get("seq_length", inferred.get("seq_length"))
    if "hyena_mr" in config.stack.blocks and inferred["seq_length"] > config.stack.hyena.mr_taps:
        notes.append(
            f"taps of hyena_mr beyond the first {config.stack.hyena.mr_taps}, which are never read, were left out"
        )
    return ModelWeights(config, tensors, window_bases=window_bases, notes=tuple(notes))


def _to_ours(folder: Path, merged: Mapping[str, LazyTensor], config: IsotropicConfig) -> dict[str, LazyTensor]:
    wanted = state_shapes(config)
    ours, given = to_ours(merged, places(config), config.stack.hyena.mr_taps)
    check_tensors(str(folder), {place.savanna: wanted[place.ours] for place in places(config)}, given)
    return {name: ours["embedding.weight" if name not in ours else name] for name in wanted}


def write(weights: ModelWeights, folder: Path) -> list[str]:
    """Writes a checkpoint of one rank, with the YAML file of its architecture and the file `latest`.

    Args:
        weights: of an isotropic model, or of a hybrid.
        folder: exists, and is written whole by the caller.

    Returns:
        What Savanna's checkpoint can't hold, in words.

    Raises:
        ConversionError: the model has parts that Savanna has no place for.
        DiskFullError: there is not enough space.
    """
    if isinstance(weights.config, HyenaBLTConfig):
        settings, module, notes = hybrid_to_savanna(weights)
    else:
        config = isotropic_config(weights, "Savanna")
        settings = describe(config, window_of(weights))
        module, notes = to_savanna(weights)
    assert isinstance(weights.config, HyenaBLTConfig | IsotropicConfig)
    stack = stack_of(weights.config)
    step = folder / STEP_FOLDER
    (step / "configs").mkdir(parents=True)
    (step / "configs" / "model.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    state = {
        "module": module,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "global_steps": 0,
        "global_samples": 0,
        "skipped_steps": 0,
        "iteration": 0,
        "args": {key: settings[key] for key in _ARGS},
    }
    write_torch(step / RANK_FILE.format(0), state)
    (folder / "latest").write_text(STEP_FOLDER)
    if weights.patcher is not None:
        weights.patcher.save(step / PATCHER)
    if stack.hyena.mr_decay == "none" and "hyena_mr" in stack.blocks:
        notes.append("hyena_mr has no decay: Savanna must load the buffers filter.decay of ones with the weights")
    return notes


def window_of(weights: ModelWeights) -> int:
    """Savanna's seq_length: the window, where it is known, and at least as long as hyena_mr's filters."""
    assert isinstance(weights.config, IsotropicConfig)
    hyena = weights.config.stack.hyena
    return max(weights.window_bases or hyena.mr_decay_length, hyena.mr_taps)


def to_savanna(weights: ModelWeights) -> tuple[dict[str, LazyTensor], list[str]]:
    """The weights under Savanna's names, in its layouts, with all buffers and unread weights of its own model.

    Args:
        weights: of an isotropic model all of whose parts Savanna has.

    Returns:
        Tensors by name, and what differs, in words.
    """
    assert isinstance(weights.config, IsotropicConfig)
    stack = weights.config.stack
    prefixes = [block_prefixes(index)["savanna"] for index in range(len(stack.blocks))]
    return to_savanna_layouts(weights.tensors, places(weights.config), prefixes, stack, window_of(weights))
