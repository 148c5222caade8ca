"""Vortex's inference layout, which the published Evo 2 weights have: a state dictionary in one file, and a YAML file.

FOLDER/NAME.pt      weights by Vortex's names
FOLDER/NAME.yml     its configuration

Rate and step of hyena_li are one number there, and the decay of hyena_mr is in its taps. Read back, these are the poles
as steps at a rate of 1, and taps with a decay of none: the same filters, but not the weights that were trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hyena_blt_savanna.conversion.names import (
    EXTRA_STATE,
    INVERSE_FREQUENCIES,
    LOG_POLES,
    TIME,
    Place,
    block_prefixes,
    places,
)
from hyena_blt_savanna.conversion.savanna import window_of
from hyena_blt_savanna.conversion.savanna_inferred import with_stored_rotary
from hyena_blt_savanna.conversion.savanna_layouts import inverse_frequencies
from hyena_blt_savanna.conversion.torch_files import read_torch, write_torch
from hyena_blt_savanna.conversion.vortex_config import describe, parse_settings, read_settings
from hyena_blt_savanna.conversion.weights import (
    ConversionError,
    ModelWeights,
    check_tensors,
    isotropic_config,
    only_tensors,
    state_shapes,
)
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, lazy
from hyena_blt_savanna.model.isotropic import IsotropicConfig

NAME = "model"
_UNEMBED = "unembed.weight"


def read(path: Path, settings: Sequence[str] = ()) -> ModelWeights:
    """Reads weights of an Evo 2 model.

    Args:
        path: the .pt file, or a folder with one and its YAML file.
        settings: Vortex's YAML files and `key=value` of its keys; needed where no YAML file is beside the weights.

    Raises:
        ConversionError: a file is missing or broken, or weights and configuration don't fit.
    """
    file, beside = _find(path)
    state = read_torch(file)
    if isinstance(state, dict) and isinstance(state.get("module"), dict):
        state = state["module"]
    if not isinstance(state, dict) or "embedding_layer.weight" not in state:
        raise ConversionError(f"{file} has no embedding_layer.weight: it is no state dictionary of Vortex's")
    known = read_settings([*beside, *settings], str(file))
    config = parse_settings(known, str(file))
    dropped = sum(name.endswith(EXTRA_STATE) for name in state)
    notes = [f"{dropped} entries of TransformerEngine's fp8 state ({EXTRA_STATE}) were left out"] if dropped else []
    config, more = with_stored_rotary(config, state, INVERSE_FREQUENCIES["vortex"], str(file))
    tensors = _to_ours(file, state, config)
    return ModelWeights(config, tensors, window_bases=known.get("max_seqlen"), notes=(*notes, *more))


def _find(path: Path) -> tuple[Path, list[Path]]:
    """The file of weights, and the YAML file beside it."""
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("*.pt")) if path.is_dir() else [path]
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ConversionError(f"{path} should hold one .pt file of weights, and has: {names}; give the file")
    beside = [file for suffix in (".yml", ".yaml") if (file := files[0].with_suffix(suffix)).is_file()]
    if not beside and path.is_dir():
        beside = sorted(folder.glob("*.y*ml"))
    if len(beside) > 1:
        names = ", ".join(file.name for file in beside)
        raise ConversionError(f"{path} has several YAML files ({names}): leave that of {files[0].name} alone beside it")
    return files[0], beside


def _to_ours(file: Path, state: Mapping[str, Any], config: IsotropicConfig) -> dict[str, LazyTensor]:
    unread = (TIME, EXTRA_STATE, INVERSE_FREQUENCIES["vortex"])
    given = only_tensors(
        file,
        {
            name: value
            for name, value in state.items()
            if not name.endswith(unread) and (name != _UNEMBED or config.head == "untied")
        },
    )
    wanted = state_shapes(config)
    wanted_there = {}
    ours: dict[str, LazyTensor] = {}
    for place in places(config):
        if place.ours not in wanted or place.vortex is None:
            continue
        shape = wanted[place.ours]
        wanted_there[place.vortex] = shape if place.layout == "same" else (shape[0], 1, shape[1])
        if place.vortex in given:
            ours[place.ours] = given[place.vortex]
    for index, block in enumerate(config.stack.blocks):
        prefix = block_prefixes(index)
        if block == "hyena_li":
            name = prefix["vortex"] + LOG_POLES
            wanted_there[name] = (*wanted[prefix["ours"] + "mixer.operator.log_step"], 1)
            if name in given:
                ours |= _steps(file, name, given[name], prefix["ours"] + "mixer.operator.")
        if block == "hyena_mr":
            decay = prefix["ours"] + "mixer.operator.decay"
            ours[decay] = lazy(torch.ones(wanted[decay]))
    check_tensors(str(file), wanted_there, {name: value.shape for name, value in given.items()})
    for place in places(config):
        if place.ours in ours:
            ours[place.ours] = _by_lag(ours[place.ours], place)
    return {name: ours["embedding.weight" if name not in ours else name] for name in wanted}


def _by_lag(tensor: LazyTensor, place: Place) -> LazyTensor:
    if place.layout in ("taps", "narrow_taps"):
        return tensor.map(lambda taps: taps[:, 0].flip(1))
    return tensor.map(lambda taps: taps[:, 0]) if place.layout == "padded_taps" else tensor


def _steps(file: Path, name: str, log_poles: LazyTensor, prefix: str) -> dict[str, LazyTensor]:
    """Poles as steps at a rate of exp(0) = 1: one number is rounded once, where two would be rounded twice."""
    shape = log_poles.shape[:2]

    def load() -> Tensor:
        poles = log_poles.load()[..., 0].double()
        if bool((poles > 0).any()):
            raise ConversionError(f"{file}: {name} has values above 0, whose filters grow: these have no place here")
        return (-poles).log().float()

    return {
        prefix + "log_step": LazyTensor(shape, torch.float32, load),
        prefix + "log_rate": LazyTensor(shape, torch.float32, lambda: torch.zeros(shape)),
    }


def write(weights: ModelWeights, folder: Path) -> list[str]:
    """Writes weights and configuration for inference.

    Args:
        weights: of an isotropic model.
        folder: exists, and is written whole by the caller.

    Returns:
        What the inference layout can't hold, in words.

    Raises:
        ConversionError: the model has parts that Vortex doesn't compute.
        DiskFullError: there is not enough space.
    """
    config = isotropic_config(weights, "Vortex")
    settings = describe(config, window_of(weights), NAME)
    (folder / f"{NAME}.yml").write_text(yaml.safe_dump(settings, sort_keys=False))
    write_torch(folder / f"{NAME}.pt", to_vortex(weights))
    return _lost(weights, config)


def to_vortex(weights: ModelWeights) -> dict[str, LazyTensor]:
    """The weights under Vortex's names, in its layouts.

    Args:
        weights: of an isotropic model all of whose parts Vortex has.
    """
    assert isinstance(weights.config, IsotropicConfig)
    config, tensors = weights.config, weights.tensors
    state: dict[str, LazyTensor] = {}
    for place in places(config):
        if place.vortex is not None and place.ours in tensors:
            state[place.vortex] = _to_layout(tensors, place, config)
    for index, block in enumerate(config.stack.blocks):
        prefix = block_prefixes(index)
        if block == "hyena_li":
            state[prefix["vortex"] + LOG_POLES] = _log_poles(tensors, prefix["ours"] + "mixer.operator.", config)
        if block == "attention":
            state[prefix["vortex"] + INVERSE_FREQUENCIES["vortex"]] = lazy(inverse_frequencies(config.stack))
    state.setdefault(_UNEMBED, state["embedding_layer.weight"])
    return state


def _to_layout(tensors: Mapping[str, LazyTensor], place: Place, config: IsotropicConfig) -> LazyTensor:
    tensor = tensors[place.ours]
    if place.layout in ("taps", "narrow_taps"):
        return tensor.map(lambda taps: taps.flip(1)[:, None])
    if place.layout == "padded_taps":
        decay = tensors[place.ours.removesuffix("taps") + "decay"]
        groups, num_taps = tensor.shape
        load = lambda: (tensor.load().float() * decay.load().float())[:, None]  # noqa: E731
        return LazyTensor((groups, 1, num_taps), torch.float32, load)
    if place.ours.endswith("operator.residues"):
        return tensor.map(lambda residues: _for_each_channel(residues, config))
    return tensor


def _log_poles(tensors: Mapping[str, LazyTensor], prefix: str, config: IsotropicConfig) -> LazyTensor:
    rate, step = tensors[prefix + "log_rate"], tensors[prefix + "log_step"]

    def load() -> Tensor:
        poles = -(rate.load().float() + step.load().float()).exp()
        return _for_each_channel(poles, config)[..., None]

    return LazyTensor((config.stack.width, rate.shape[1], 1), torch.float32, load)


def _for_each_channel(filters: Tensor, config: IsotropicConfig) -> Tensor:
    """[G, O] to [M, O]: Vortex has one hyena_li filter a channel."""
    return filters.repeat_interleave(config.stack.width // len(filters), 0)


def _lost(weights: ModelWeights, config: IsotropicConfig) -> list[str]:
    stack, hyena = config.stack, config.stack.hyena
    lost = [
        (
            "hyena_mr" in stack.blocks and hyena.mr_decay != "none",
            f"hyena_mr: the decay ({hyena.mr_decay} over {hyena.mr_decay_length:,} bases) is multiplied into the "
            f"{hyena.mr_taps} taps (filter.h)",
        ),
        ("hyena_li" in stack.blocks, "hyena_li: log_rate and log_step are merged into poles (filter.log_poles)"),
        (
            "hyena_li" in stack.blocks and (hyena.li_groups or stack.width) < stack.width,
            f"hyena_li: each of the {hyena.li_groups} filters is repeated for its channels (li_groups)",
        ),
        (
            stack.norm.epsilon_inside_root,
            "norms: Vortex adds epsilon outside the root (norm.epsilon_inside_root), which changes the logits a little",
        ),
        (weights.trained_on is not None, "the digest of the training data (trained_on)"),
    ]
    return [text for holds, text in lost if holds]
