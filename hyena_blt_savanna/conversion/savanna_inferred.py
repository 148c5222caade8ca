"""What the names and shapes of a Savanna checkpoint tell of its architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hyena_blt_savanna.conversion.names import INVERSE_FREQUENCIES, places
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.operators import HyenaConfig, decay_grid

_SAME_GRID = 1e-6


def infer(modules: Sequence[Mapping[str, Any]], args: Mapping[str, Any]) -> dict[str, Any]:
    """What names and shapes tell, under Savanna's keys; `hidden_width` and `num_rows` of MLP and embedding besides.

    Args:
        modules: weights of each tensor-parallel rank, by Savanna's names.
        args: what Savanna saves of its configuration beside the weights.
    """
    first, num_ranks = modules[0], len(modules)
    shapes = {name: value.shape for name, value in first.items() if isinstance(value, LazyTensor)}
    layers = sorted({int(name.split(".")[1]) for name in shapes if ".mixer." in name})

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
        inverse_frequencies: [d / 2].
    """
    num = len(inverse_frequencies)
    if num < 2:
        return 10_000.0
    # The last one has the largest exponent, and so the least error.
    base = float(inverse_frequencies[-1].double()) ** (-num / (num - 1))
    return float(f"{base:.4g}")


def with_stored_decay(config: IsotropicConfig, merged: Mapping[str, LazyTensor]) -> tuple[IsotropicConfig, list[str]]:
    """The configuration whose decay grid is the stored one, which may be that of an earlier, shorter window.

    Args:
        config: what the settings say.
        merged: weights by Savanna's names.

    Returns:
        The configuration, and what was found, in words.
    """
    name = next((place.savanna for place in places(config) if place.layout == "padded_decay"), "")
    if name not in merged:
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
