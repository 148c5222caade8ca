"""What the names and shapes of a Savanna checkpoint tell of its architecture."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hyena_blt_savanna.conversion.names import INVERSE_FREQUENCIES, places
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.operators import HyenaConfig, decay_grid

_SAME_GRID = 1e-6
_SAME_BASE = 1e-3
_VECTORS = ("norm.weight", "norm.scale", "bias", "inv_freq")


def infer(modules: Sequence[Mapping[str, Any]], args: Mapping[str, Any]) -> dict[str, Any]:
    """What names and shapes tell, under Savanna's keys; `hidden_width` and `num_rows` of MLP and embedding besides.

    Args:
        modules: weights of each tensor-parallel rank, by Savanna's names.
        args: what Savanna saves of its configuration beside the weights.
    """
    first, num_ranks = modules[0], len(modules)
    # Of a weight with another number of dimensions nothing is told; it is reported later.
    shapes = {
        name: value.shape
        for name, value in first.items()
        if isinstance(value, LazyTensor) and len(value.shape) >= (1 if name.endswith(_VECTORS) else 2)
    }
    layers = sorted({int(match[1]) for name in shapes if (match := re.match(r"sequential\.(\d+)\.mixer\.", name))})

    def find(ending: str) -> tuple[int, ...] | None:
        return next((shape for name, shape in shapes.items() if name.endswith(ending)), None)

    inferred: dict[str, Any] = {"num_layers": len(layers), "model_parallel_size": num_ranks}
    inferred |= {key: args[key] for key in ("num_attention_heads",) if args.get(key)}
    inferred["operator_config"] = [_kind(layer, shapes) for layer in layers]
    inferred["use_fp8_norm"] = find("input_layernorm.weight") is not None
    inferred["no_weight_tying"] = find("final_linear.weight") is not None
    if embedding := find("word_embeddings.weight"):
        inferred |= {"num_rows": embedding[0] * num_ranks, "hidden_size": embedding[1]}
    else:
        inferred["num_rows"] = 0
    gate = find("mlp.w1.weight")
    inferred["hidden_width"] = gate[0] * num_ranks if gate else 0
    for key, ending, sharded, dim in (
        ("short_conv_L", "hyena_proj_conv.short_conv_weight", False, -1),
        ("hyena_se_len", "short_conv.short_conv_weight", False, -1),
        ("num_groups_hyena_short", "short_conv.short_conv_weight", True, 0),
        ("seq_length", "filter.t", False, -1),
        ("seq_length", "filter.h", False, -1),
        ("num_groups_hyena_medium", "filter.h", True, 0),
        ("num_groups_hyena", "filter.gamma", True, 0),
        ("hyena_filter_order", "filter.gamma", False, -1),
    ):
        if shape := find("." + ending):
            inferred[key] = shape[dim] * (num_ranks if sharded else 1)
    name = next((name for name in shapes if name.endswith(INVERSE_FREQUENCIES["savanna"])), None)
    if name is not None and "hidden_size" in inferred:
        inferred["num_attention_heads"] = inferred["hidden_size"] // (2 * shapes[name][0])
        inferred["rotary_emb_base"] = rotary_base(first[name].load())
    return inferred


def _kind(layer: int, shapes: Mapping[str, Any]) -> str:
    prefix = f"sequential.{layer}.mixer.mixer."
    for kind, ending in (("hyena_se", "short_conv.short_conv_weight"), ("hyena_mr", "filter.h"), ("hyena", "filter.R")):
        if prefix + ending in shapes:
            return kind
    return "flash_v2"


def rotary_base(inverse_frequencies: Tensor) -> float:
    """The base of frequencies base^(-2i / d), i below d / 2; to four digits, which are more than bases are given with.

    Args:
        inverse_frequencies: [d / 2]; of fewer bits than fp32, two digits are all that they tell.
    """
    num = len(inverse_frequencies)
    if num < 2:
        return 10_000.0
    # The last one has the largest exponent, and so the least error.
    base = float(inverse_frequencies[-1].double()) ** (-num / (num - 1))
    return float(f"{base:.{4 if inverse_frequencies.dtype.itemsize >= 4 else 2}g}")


def with_stored_rotary(
    config: IsotropicConfig, state: Mapping[str, Any], ending: str, where: str
) -> tuple[IsotropicConfig, list[str]]:
    """The configuration with the base of the stored frequencies, which are loaded over the configured ones.

    Args:
        config: what the settings say.
        state: weights and buffers by foreign names.
        ending: of the buffers' names.
        where: the checkpoint, for messages.

    Returns:
        The configuration, and what was found, in words.

    Raises:
        ConversionError: the attention blocks have different frequencies.
    """
    names = [name for name, value in state.items() if name.endswith(ending) and isinstance(value, LazyTensor)]
    if not names or "attention" not in config.stack.blocks:
        return config, []
    frequencies = state[names[0]].load()
    if any(not torch.equal(state[name].load(), frequencies) for name in names):
        raise ConversionError(f"{where}: {', '.join(names)} are not the same, and have to be")
    rotary = config.stack.attention.rotary
    configured = rotary.base ** -(torch.arange(len(frequencies)) / len(frequencies)).double()
    stored = rotary_base(frequencies)
    if torch.equal(configured.to(frequencies.dtype), frequencies) or abs(stored - rotary.base) <= _SAME_BASE * stored:
        return config, []
    changed = rotary.model_copy(update={"base": stored})
    attention = config.stack.attention.model_copy(update={"rotary": changed})
    stack = config.stack.model_copy(update={"attention": attention})
    note = (
        f"the rotary base is {stored:g}, that of the stored frequencies, and not {rotary.base:g} of the configuration"
    )
    return config.model_copy(update={"stack": stack}), [note]


def with_stored_decay(config: IsotropicConfig, merged: Mapping[str, LazyTensor]) -> tuple[IsotropicConfig, list[str]]:
    """The configuration whose decay grid is the stored one, which may be that of an earlier, shorter window.

    Args:
        config: what the settings say.
        merged: weights by Savanna's names.

    Returns:
        The configuration, and what was found, in words.
    """
    name = next((place.savanna for place in places(config) if place.layout == "padded_decay"), "")
    if name not in merged or len(merged[name].shape) != 2:
        return config, []
    hyena = config.stack.hyena
    stored = merged[name].load()[:, : hyena.mr_taps].float()
    groups = len(stored)
    default = HyenaConfig().mr_decay_length
    candidates: list[HyenaConfig] = [hyena, hyena.model_copy(update={"mr_decay": "none", "mr_decay_length": default})]
    fastest = float(stored[groups // hyena.mr_decay_repeats - 1, 1]) if groups >= hyena.mr_decay_repeats else 0.0
    if 0 < fastest < 1:
        length = round(1 - 100 / math.log(fastest))
        powers = 2 ** round(math.log2(max(length, 2)))
        candidates += [
            hyena.model_copy(update={"mr_decay": preset, "mr_decay_length": max(2, guess)})
            for guess in (length, powers)
            for preset in ("weak", "normal", "strong")
        ]
    for candidate in candidates:
        grid = decay_grid(groups, candidate)
        if grid.shape == stored.shape and float((grid - stored).abs().max()) <= _SAME_GRID:
            if candidate == hyena:
                note = []
            elif candidate.mr_decay == "none":
                note = ["the decay of hyena_mr is 1 everywhere (mr_decay: none)"]
            else:
                note = [
                    f"the decay grid of hyena_mr is that of a window of {candidate.mr_decay_length:,} bases, not of "
                    f"{hyena.mr_decay_length:,}, and is kept (mr_decay: {candidate.mr_decay})"
                ]
            stack = config.stack.model_copy(update={"hyena": candidate})
            return config.model_copy(update={"stack": stack}), note
    return config, ["the decay grid of hyena_mr follows none of the presets, and is kept as it is stored"]
