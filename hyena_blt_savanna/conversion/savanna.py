"""Savanna's checkpoints: `mp_rank_XX_model_states.pt`, one a rank of tensor parallelism, and YAML files beside them.

SAVE/latest                                               name of the newest folder
SAVE/global_stepN/mp_rank_00_model_states.pt, ...         `module` holds the weights
SAVE/global_stepN/configs/*.yml                           what it was trained with

What is written has one rank. It holds all that Savanna's own model has, what it never reads included, so that Savanna
loads it strictly.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from hyena_blt_savanna.conversion.foreign_yaml import merge_foreign
from hyena_blt_savanna.conversion.names import (
    EXTRA_STATE,
    INVERSE_FREQUENCIES,
    TIME,
    UNREAD_NORMS,
    Layout,
    Place,
    block_prefixes,
    places,
)
from hyena_blt_savanna.conversion.savanna_config import describe, parse_settings
from hyena_blt_savanna.conversion.savanna_inferred import infer, with_stored_decay, with_stored_rotary
from hyena_blt_savanna.conversion.savanna_ranks import RANK_FILE, find_folder, merge_ranks, read_ranks, saved_args
from hyena_blt_savanna.conversion.torch_files import write_torch
from hyena_blt_savanna.conversion.weights import (
    ModelWeights,
    check_tensors,
    isotropic_config,
    only_tensors,
    state_shapes,
)
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, lazy
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.operators import decay_grid

STEP_FOLDER = "global_step0"
_ARGS = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "make_vocab_size_divisible_by",
         "tokenizer_type", "model_parallel_size")  # fmt: skip
_DIMENSIONS: dict[Layout, tuple[int, ...]] = {
    "taps": (2, 3),
    "narrow_taps": (2, 3),
    "padded_taps": (2,),
    "padded_decay": (2,),
}
_UNREAD = (*UNREAD_NORMS, TIME, INVERSE_FREQUENCIES["savanna"])


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
        only_tensors(folder, {_plain_norm(name): value for name, value in module.items() if not _is_unread(name)})
        for module in modules
    ]
    dropped = sum(name.endswith(EXTRA_STATE) for name in modules[0])
    found = merge_foreign([*sorted((folder / "configs").glob("*.y*ml")), *settings])
    inferred = infer(modules, saved_args(states[0]))
    config = parse_settings(found, inferred, str(folder))
    notes = [f"{dropped} entries of TransformerEngine's fp8 state ({EXTRA_STATE}) were left out"] if dropped else []
    config, more = with_stored_rotary(config, modules[0], INVERSE_FREQUENCIES["savanna"], str(folder))
    notes += more
    merged = merge_ranks(folder, kept, config)
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


def _is_unread(name: str) -> bool:
    plain = _plain_norm(name)
    return name.endswith(EXTRA_STATE) or any(plain.endswith("." + ending) for ending in _UNREAD)


def _plain_norm(name: str) -> str:
    """TransformerEngine calls a norm's scale its weight."""
    return re.sub(r"((?:layernorm)|(?:sequential\.\d+\.norm))\.weight$", r"\1.scale", name)


def _to_ours(folder: Path, merged: Mapping[str, LazyTensor], config: IsotropicConfig) -> dict[str, LazyTensor]:
    wanted = state_shapes(config)
    given = {name: tensor.shape for name, tensor in merged.items()}
    ours = {}
    for place in places(config):
        tensor = merged.get(place.savanna)
        # A tensor of another number of dimensions is reported as it is.
        if tensor is not None and len(tensor.shape) in _DIMENSIONS.get(place.layout, (len(tensor.shape),)):
            tensor = _by_lag(tensor, place.layout, config.stack.hyena.mr_taps)
            given[place.savanna] = tensor.shape
        if tensor is not None:
            ours[place.ours] = tensor
    check_tensors(str(folder), {place.savanna: wanted[place.ours] for place in places(config)}, given)
    return {name: ours["embedding.weight" if name not in ours else name] for name in wanted}


def _by_lag(tensor: LazyTensor, layout: Layout, num_taps: int) -> LazyTensor:
    if layout in ("taps", "narrow_taps"):
        return tensor.map(lambda taps: taps.flatten(1).flip(1))
    if layout in ("padded_taps", "padded_decay"):
        return tensor.map(lambda taps: taps[:, :num_taps].clone())
    return tensor


def write(weights: ModelWeights, folder: Path) -> list[str]:
    """Writes a checkpoint of one rank, with the YAML file of its architecture and the file `latest`.

    Args:
        weights: of an isotropic model.
        folder: exists, and is written whole by the caller.

    Returns:
        What Savanna's checkpoint can't hold, in words.

    Raises:
        ConversionError: the model has parts that Savanna has no place for.
        DiskFullError: there is not enough space.
    """
    config = isotropic_config(weights, "Savanna")
    settings = describe(config, window_of(weights))
    step = folder / STEP_FOLDER
    (step / "configs").mkdir(parents=True)
    (step / "configs" / "model.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    module, notes = to_savanna(weights)
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
    if config.stack.hyena.mr_decay == "none" and "hyena_mr" in config.stack.blocks:
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
    config, window_bases = weights.config, window_of(weights)
    module, without_bias = {}, 0
    for place in places(config):
        if place.ours in weights.tensors:
            module[place.savanna] = _to_layout(weights.tensors[place.ours], place, config, window_bases)
        else:
            # The only weights that a model of ours may lack.
            assert place.ours.endswith("out_projection.bias")
            module[place.savanna] = _filled(config.stack.width, 0.0, torch.float32)
            without_bias += 1
    for index, block in enumerate(config.stack.blocks):
        prefix = block_prefixes(index)["savanna"]
        scale = module[prefix + "input_layernorm.scale"]
        module |= {prefix + name: _filled(config.stack.width, 1.0, scale.dtype) for name in UNREAD_NORMS}
        if block == "hyena_li":
            module[prefix + TIME] = lazy(torch.arange(window_bases, dtype=torch.float32)[None, None])
        if block == "attention":
            module[prefix + INVERSE_FREQUENCIES["savanna"]] = lazy(inverse_frequencies(config))
    if config.stack.norm.epsilon_inside_root:
        module = {_transformer_engine_norm(name): tensor for name, tensor in module.items()}
    notes = [f"{without_bias} output projections without a bias have one of zeros"] if without_bias else []
    return module, notes


def _filled(size: int, value: float, dtype: torch.dtype) -> LazyTensor:
    return LazyTensor((size,), dtype, lambda: torch.full((size,), value, dtype=dtype))


def inverse_frequencies(config: IsotropicConfig) -> Tensor:
    """base^(-2i / d), fp32 [d / 2], as Savanna computes them."""
    head_width = config.stack.width // config.stack.num_heads
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    return 1.0 / config.stack.attention.rotary.base**exponents


def _transformer_engine_norm(name: str) -> str:
    return re.sub(r"((?:layernorm)|(?:sequential\.\d+\.norm))\.scale$", r"\1.weight", name)


def _to_layout(tensor: LazyTensor, place: Place, config: IsotropicConfig, window_bases: int) -> LazyTensor:
    if place.layout == "narrow_taps":
        return tensor.map(lambda taps: taps.flip(1))
    if place.layout == "taps":
        return tensor.map(lambda taps: taps.flip(1)[:, None])
    if place.layout == "padded_taps":
        return tensor.map(lambda taps: torch.nn.functional.pad(taps, (0, window_bases - taps.shape[1])))
    if place.layout == "padded_decay":
        hyena = config.stack.hyena.model_copy(update={"mr_taps": window_bases})

        def widened(decay: Tensor) -> Tensor:
            with decay.device:
                grid = decay_grid(len(decay), hyena).to(decay.dtype)
            grid[:, : decay.shape[1]] = decay
            return grid

        return tensor.map(widened)
    return tensor
