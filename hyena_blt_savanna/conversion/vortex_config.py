"""The architecture in the configuration of Vortex, as the Evo 2 models have it, read and written.

Source: Vortex's `model/model.py`, `model/layers.py` and `configs/evo2-*.yml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.conversion.foreign_yaml import check_whole_numbers, merge_foreign
from hyena_blt_savanna.conversion.savanna_config import num_groups
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.mlp import MLPConfig

LAYER_LISTS = {
    "hcs_layer_idxs": "hyena_se",
    "hcm_layer_idxs": "hyena_mr",
    "hcl_layer_idxs": "hyena_li",
    "attn_layer_idxs": "attention",
}
"""Keys that list the layers of a kind."""
SHORTEST_MEDIUM_TAPS = 128
"""Vortex convolves shorter filters as it does hyena_se's: in the other order, and without a skip."""

_NEEDED = ("hidden_size", "num_layers", "num_attention_heads", "vocab_size", "eps", *LAYER_LISTS)
_FIXED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "short_filter_bias": (False, (False,)),
    "qkv_proj_bias": (True, (False,)),
    "column_split_hyena": (True, (False,)),
    "column_split": (True, (True,)),
    "hyena_flip_x1x2": (False, (False,)),
    "proj_groups": (1, (1,)),
    "smeared_gqa": (False, (False,)),
    "final_norm": (True, (True,)),
    "long_fir_threshold": (None, (None,)),
    "mlp_activation": ("gelu", ("gelu", "silu")),
}
"""Keys that can have these values only, behind Vortex's default."""
_WHOLE_NUMBERS = ("hidden_size", "num_layers", "num_attention_heads", "vocab_size", "state_size", "short_filter_length",
                  "hcs_filter_length", "hcs_filter_groups", "hcm_filter_length", "hcm_filter_groups", "inner_mlp_size",
                  "inner_size_multiple_of", "model_parallel_size", "max_seqlen")  # fmt: skip


def read_settings(sources: Sequence[str | Path], where: str) -> dict[str, Any]:
    """Merges Vortex's YAML files and `key=value`.

    Args:
        sources: files and settings; the last one of a key holds.
        where: the checkpoint, for messages.

    Raises:
        ConversionError: a file is no YAML mapping, a key is missing, or a value isn't converted.
    """
    settings = merge_foreign(sources)
    missing = [key for key in _NEEDED if key not in settings]
    if missing:
        raise ConversionError(
            f"{where}: its configuration lacks {', '.join(missing)}; give the YAML file of the model behind the paths, "
            "such as Vortex's configs/evo2-7b-1m.yml"
        )
    wrong = [
        f"{key} is {settings.get(key, default)!r}{'' if key in settings else ' by default'}; "
        f"only {' or '.join(repr(value) for value in allowed)} is converted"
        for key, (default, allowed) in _FIXED.items()
        if settings.get(key, default) not in allowed
    ]
    if wrong:
        raise ConversionError(f"{where} is another model than Evo 2:\n" + "\n".join(f"  {line}" for line in wrong))
    empty = [key for key in _WHOLE_NUMBERS if key in _NEEDED and settings[key] is None]
    if empty:
        raise ConversionError(f"{where}: {', '.join(empty)} are empty: give numbers")
    check_whole_numbers(settings, _WHOLE_NUMBERS, where)
    return settings


def parse_settings(settings: Mapping[str, Any], where: str) -> IsotropicConfig:
    """Our configuration of the model that Vortex's keys describe.

    Args:
        settings: of `read_settings`.
        where: the checkpoint, for messages.

    Raises:
        ConversionError: the keys contradict each other, or have no counterpart.
    """
    blocks = _blocks(settings, where)
    width = settings["hidden_size"]
    scaled = settings.get("use_interpolated_rotary_pos_emb", False)
    hyena: dict[str, Any] = {
        "featurizer_taps": settings.get("short_filter_length", 3),
        "interleaved_projection": settings.get("interleave", False),
        "output_bias": bool(settings.get("hyena_out_proj_bias")),
    }
    if "hyena_se" in blocks:
        hyena |= {"se_taps": settings.get("hcs_filter_length"), "se_groups": num_groups(settings, "hcs_filter_groups")}
    if "hyena_mr" in blocks:
        hyena |= {"mr_taps": settings.get("hcm_filter_length"), "mr_groups": num_groups(settings, "hcm_filter_groups")}
        # The decay is in the taps.
        hyena |= {"mr_decay": "none"}
    if "hyena_li" in blocks:
        hyena |= {"li_order": settings.get("state_size")}
    tree = {
        "stack": {
            "width": width,
            "num_heads": settings["num_attention_heads"],
            "blocks": blocks,
            "hyena": hyena,
            "attention": {
                "output_bias": settings.get("mha_out_proj_bias", True),
                "rotary": {
                    "base": settings.get("rotary_emb_base", 1_000_000),
                    "position_scale": settings.get("rotary_emb_scaling_factor", 1.0) if scaled else 1.0,
                },
            },
            "mlp": _mlp(settings, blocks, where),
            "norm": {"epsilon": settings["eps"], "epsilon_inside_root": False},
        },
        "head": "tied" if settings.get("tie_embeddings") else "untied",
        "round_vocabulary_to": 8 if settings["vocab_size"] == 512 else settings["vocab_size"],
    }
    try:
        return IsotropicConfig.parse(tree, where)
    except ConfigError as error:
        raise ConversionError(str(error)) from error


def _blocks(settings: Mapping[str, Any], where: str) -> list[str]:
    of_layer: dict[int, list[str]] = {}
    for key, block in LAYER_LISTS.items():
        layers = settings[key] or []
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
            raise ConversionError(f"{where}: {key} is {layers!r}; it must be a list of the numbers of layers")
        for layer in layers:
            of_layer.setdefault(layer, []).append(block)
    wanted = range(settings["num_layers"])
    if sorted(of_layer) != list(wanted) or any(len(found) > 1 for found in of_layer.values()):
        raise ConversionError(
            f"{where}: {', '.join(LAYER_LISTS)} must name each of the {len(wanted)} layers (num_layers) once, from 0"
        )
    return [of_layer[layer][0] for layer in wanted]


def _mlp(settings: Mapping[str, Any], blocks: list[str], where: str) -> dict[str, Any]:
    activation = settings.get("mlp_activation", "gelu")
    if settings.get("evo2_style_activations", False):
        if activation != "gelu" or not _only_first("gelu_until_long", blocks):
            raise ConversionError(
                f"{where}: evo2_style_activations with mlp_activation {activation!r} and these blocks has no "
                "counterpart: what is converted is GELU in the first block, and a hyena_mr or hyena_li as the second"
            )
        activation = "gelu_until_long"
    multiple = (settings.get("inner_size_multiple_of") or 64) * (settings.get("model_parallel_size") or 1)
    derived = MLPConfig(round_up_to=multiple).hidden_width(settings["hidden_size"])
    given = settings.get("inner_mlp_size") or derived
    return {"activation": activation} | ({"round_up_to": multiple} if given == derived else {"width": given})


def _only_first(activation: str, blocks: list[str]) -> bool:
    """Whether the MLP of the first block has GELU, and those of the others none."""
    found = MLPConfig.parse({"activation": activation}).activations(blocks)
    return found == ["gelu", *["identity"] * (len(blocks) - 1)]


def describe(config: IsotropicConfig, window_bases: int, name: str) -> dict[str, Any]:
    """Vortex's keys of a model.

    Args:
        config: all of whose parts Vortex has.
        window_bases: Vortex's max_seqlen.
        name: Vortex's model_name.

    Raises:
        ConversionError: filters or activations are such as Vortex doesn't compute.
    """
    stack, hyena, rotary = config.stack, config.stack.hyena, config.stack.attention.rotary
    blocks, activation = stack.blocks, stack.mlp.activation
    if "hyena_mr" in blocks and hyena.mr_taps < SHORTEST_MEDIUM_TAPS:
        raise ConversionError(
            f"stack.hyena.mr_taps is {hyena.mr_taps}: Vortex reads filters of less than {SHORTEST_MEDIUM_TAPS} taps in "
            "the other order and without a skip, so that these have no place there"
        )
    if "hyena_se" in blocks and hyena.se_taps >= SHORTEST_MEDIUM_TAPS:
        raise ConversionError(
            f"stack.hyena.se_taps is {hyena.se_taps}: Vortex reads filters of {SHORTEST_MEDIUM_TAPS} taps and more as "
            "hyena_mr's, so that these have no place there"
        )
    kinds = set(stack.mlp.activations(blocks))
    evo2_style = activation == "gelu_until_long" and kinds != {"gelu"}
    if "identity" in kinds and not (evo2_style and _only_first(activation, blocks)):
        raise ConversionError(
            f"stack.mlp.activation is {activation}: Vortex has GELU or SiLU in every block, or GELU in the first block "
            "alone"
        )
    base = int(rotary.base) if float(rotary.base).is_integer() else rotary.base
    return {
        "model_name": name,
        "vocab_size": config.num_rows,
        "hidden_size": stack.width,
        "num_filters": stack.width,
        **{key: [i for i, name in enumerate(blocks) if name == block] for key, block in LAYER_LISTS.items()},
        "hcs_filter_length": hyena.se_taps,
        "hcs_filter_groups": hyena.se_groups or stack.width,
        "hcm_filter_length": hyena.mr_taps,
        "hcm_filter_groups": hyena.mr_groups or stack.width,
        "hcl_filter_groups": stack.width,
        "hyena_filter_groups": 1,
        "num_layers": len(blocks),
        "short_filter_length": hyena.featurizer_taps,
        "short_filter_bias": False,
        "num_attention_heads": stack.num_heads,
        "eps": stack.norm.epsilon,
        "state_size": hyena.li_order,
        "rotary_emb_base": base,
        "rotary_emb_scaling_factor": rotary.position_scale,
        "use_interpolated_rotary_pos_emb": rotary.position_scale != 1,
        "make_vocab_size_divisible_by": config.round_vocabulary_to,
        "inner_size_multiple_of": stack.mlp.round_up_to,
        "inner_mlp_size": stack.mlp.hidden_width(stack.width),
        "proj_groups": 1,
        "column_split_hyena": False,
        "column_split": True,
        "interleave": hyena.interleaved_projection,
        "evo2_style_activations": evo2_style,
        "mlp_activation": "gelu" if evo2_style else min(kinds),
        "model_parallel_size": 1,
        "pipe_parallel_size": 1,
        "tie_embeddings": config.head == "tied",
        "mha_out_proj_bias": stack.attention.output_bias,
        "hyena_out_proj_bias": hyena.output_bias,
        "hyena_flip_x1x2": False,
        "qkv_proj_bias": False,
        "use_fp8_input_projections": False,
        "max_seqlen": window_bases,
        "max_batch_size": 1,
        "final_norm": True,
        "use_flash_attn": True,
        "use_flash_rmsnorm": False,
        "use_flash_depthwise": False,
        "use_flashfft": False,
        "use_laughing_hyena": False,
        "inference_mode": True,
        "tokenizer_type": "CharLevelTokenizer",
        "prefill_style": "fft",
        "print_activations": False,
    }
