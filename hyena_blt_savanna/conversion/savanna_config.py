"""The architecture in Savanna's configuration, read and written.

Keys may be spread over several files, as Savanna keeps copies of them in `configs/` beside a checkpoint. Without any
file the architecture is inferred from the weights, and what they don't tell is asked for.

Source: Savanna's `arguments/global_config.py` (defaults), `utils.py` (`expand_operator_types`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.conversion.foreign_yaml import check_whole_numbers
from hyena_blt_savanna.conversion.names import BLOCKS
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.mlp import MLPConfig
from hyena_blt_savanna.nucleotides import VOCABULARY_SIZE

ATTENTION = ("flash", "flash_v2", "flash_te", "ring", "global")
OPERATORS = {
    "hyena_se": "hyena_se",
    "hyena_mr": "hyena_mr",
    "hyena": "hyena_li",
    **dict.fromkeys(ATTENTION, "attention"),
}
"""Savanna's operators, and our blocks."""
WRITTEN_OPERATORS = {"hyena_se": "hyena_se", "hyena_mr": "hyena_mr", "hyena_li": "hyena", "attention": "flash_v2"}

DEFAULTS: dict[str, Any] = {
    "hyena_se_len": 3,
    "hyena_mr_len": 64,
    "short_conv_L": None,
    "explicit_filter_decay_preset": "normal",
    "explicit_filter_num_decay_repeats": 1,
    "hyena_filter_order": 64,
    "num_groups_hyena": None,
    "num_groups_hyena_medium": None,
    "num_groups_hyena_short": None,
    "interleave_projections": True,
    "make_gated_mlp_multiple_of": 16,
    "pad_mlp_weights": False,
    "parallel_glu_activation_default": None,
    "activation": "gelu",
    "rms_norm_epsilon": 1e-8,
    "use_fp8_norm": False,
    "rotary_emb_base": 10_000,
    "rotary_emb_scaling_factor": 1.0,
    "no_weight_tying": False,
    "make_vocab_size_divisible_by": 128,
    "model_parallel_size": 1,
}
"""What Savanna takes where its files say nothing."""

FIXED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "mlp_type": ("regular", ("llama",)),
    "norm": ("layernorm", ("rmsnorm",)),
    "prenorm": (True, (True,)),
    "postnorm": (False, (False,)),
    "pre_mlp_norm": (False, (True,)),
    "outer_mlp_norm": (False, (False,)),
    "gpt_j_residual": (False, (False,)),
    "identity_mlp": (False, (False,)),
    "use_cgcg": (False, (False,)),
    "hyena_se_pregate": (True, (True,)),
    "hyena_se_postgate": (True, (True,)),
    "hyena_width_expansion": (1.0, (1.0,)),
    "proj_groups": (1, (1,)),
    "use_slow_heads": (False, (False,)),
    "bidirectional": (False, (False,)),
    "use_mup": (False, (False,)),
    "gating_act": ("identity", ("identity",)),
}
"""Keys that can have one value only: Savanna's default, and what is converted."""
FIXED_WITH: dict[str, dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "hyena_li": {"hyena_filter_cls": ("implicit", ("implicit_modal",))},
    "hyena_mr": {"hyena_medium_filter_cls": (None, ("explicit_single_decay",))},
    "attention": {"pos_emb": ("learned", ("rotary", "rotary_linear_scaled")), "rotary_pct": (1.0, (1.0,))},
}
"""Likewise, where there are blocks of a kind."""
_WHOLE_NUMBERS = ("num_layers", "hidden_size", "num_attention_heads", "num_groups_hyena", "num_groups_hyena_medium",
                  "num_groups_hyena_short", "seq_length", "short_conv_L", "hyena_se_len", "hyena_mr_len",
                  "hyena_filter_order", "explicit_filter_num_decay_repeats", "make_gated_mlp_multiple_of",
                  "make_vocab_size_divisible_by", "model_parallel_size")  # fmt: skip
_EXAMPLES = {
    "rms_norm_epsilon": "1e-6",
    "interleave_projections": "true",
    "parallel_glu_activation_default": "null (Evo 2: GELU in the first block alone) or gelu",
    "hyena_mr_len": "128",
    "pos_emb": "rotary or rotary_linear_scaled",
    "rotary_emb_base": "10000",
    "rotary_emb_scaling_factor": "128",
    "num_attention_heads": "32",
}


def parse_settings(settings: Mapping[str, Any], inferred: Mapping[str, Any], where: str) -> IsotropicConfig:
    """Our configuration of the model that Savanna's keys describe.

    Args:
        settings: Savanna's keys, without hyphens; empty where no file was given.
        inferred: what the weights tell, under the same keys, and `hidden_width` of the MLP and `num_rows` of the
            embedding.
        where: the checkpoint, for messages.

    Raises:
        ConversionError: a key is missing, or has a value that isn't converted.
    """
    check_whole_numbers(settings, _WHOLE_NUMBERS, where)
    # Empty is what is not said.
    settings = {key: value for key, value in settings.items() if value is not None or key not in _WHOLE_NUMBERS}
    has_files = "num_layers" in settings
    known = {**(DEFAULTS if has_files else {}), **inferred, **settings}
    blocks = _blocks(known, where)
    if has_files:
        _check_fixed(known, blocks, where)
    missing = [key for key in _asked_for(blocks, known) if key not in known]
    if missing:
        lines = "".join(f"\n  {key}=... such as {_EXAMPLES.get(key, '(see the configuration it was trained with)')}"
                        for key in missing)  # fmt: skip
        raise ConversionError(
            f"{where}: the weights alone don't tell {len(missing)} thing(s); give the YAML file that Savanna trained "
            f"with, or these keys:{lines}"
        )
    width = known["hidden_size"]
    tree = {
        "stack": {
            "width": width,
            "num_heads": known.get("num_attention_heads") or 1,
            "blocks": blocks,
            "hyena": _hyena(known, blocks),
            "attention": {"rotary": _rotary(known)} if "attention" in blocks else {},
            "mlp": _mlp(known, width, where),
            "norm": {"epsilon": known["rms_norm_epsilon"], "epsilon_inside_root": bool(known.get("use_fp8_norm"))},
        },
        "head": "untied" if known.get("no_weight_tying") else "tied",
        "round_vocabulary_to": _vocabulary_multiple(known),
    }
    try:
        return IsotropicConfig.parse(tree, where)
    except ConfigError as error:
        raise ConversionError(str(error)) from error


def _blocks(known: Mapping[str, Any], where: str) -> list[str]:
    if "operator_config" not in known:
        raise ConversionError(f"{where}: operator_config is missing; add this key")
    given = known["operator_config"]
    names: list[str] = []
    try:
        for item in given:
            if isinstance(item, str):
                names.append(item)
                continue
            pattern, times = item
            names += list(pattern) * (known["num_layers"] // len(pattern) if times == "all" else int(times))
        unknown = sorted(set(names) - set(OPERATORS))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConversionError(
            f"{where}: operator_config is {given!r}; it must be a list like [[[hyena_se, hyena_mr], 2], [[hyena], 1]]"
        ) from error
    if unknown:
        raise ConversionError(
            f"{where}: operator_config has {', '.join(unknown)}; what is converted: {', '.join(OPERATORS)}"
        )
    if len(names) != known["num_layers"]:
        raise ConversionError(
            f"{where}: operator_config has {len(names)} blocks and num_layers is {known['num_layers']}"
        )
    return [OPERATORS[name] for name in names]


def _check_fixed(known: Mapping[str, Any], blocks: Sequence[str], where: str) -> None:
    rules = dict(FIXED)
    for kind, more in FIXED_WITH.items():
        if kind in blocks:
            rules |= more
    wrong = [
        f"{key} is {known.get(key, default)!r}{'' if key in known else ' by default'}; "
        f"only {' or '.join(repr(value) for value in allowed)} is converted"
        for key, (default, allowed) in rules.items()
        if known.get(key, default) not in allowed
    ]
    if known["parallel_glu_activation_default"] is None and known["activation"] != "gelu":
        wrong.append(f"activation is {known['activation']!r}; only 'gelu' is converted")
    if wrong:
        raise ConversionError(
            f"{where} is another model than StripedHyena 2:\n" + "\n".join(f"  {line}" for line in wrong)
        )


def _asked_for(blocks: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    keys = ["hidden_size", "rms_norm_epsilon", "parallel_glu_activation_default"]
    if set(blocks) != {"attention"}:
        keys += ["interleave_projections", "short_conv_L"]
    if "hyena_mr" in blocks:
        keys += ["hyena_mr_len", "seq_length"]
    if "attention" in blocks:
        keys += ["num_attention_heads", "pos_emb", "rotary_emb_base"]
        if known.get("pos_emb") == "rotary_linear_scaled":
            keys.append("rotary_emb_scaling_factor")
    return keys


def _hyena(known: Mapping[str, Any], blocks: Sequence[str]) -> dict[str, Any]:
    if set(blocks) == {"attention"}:
        return {}
    hyena = {"featurizer_taps": known["short_conv_L"], "interleaved_projection": known["interleave_projections"]}
    if "hyena_se" in blocks:
        hyena |= {"se_taps": known["hyena_se_len"], "se_groups": num_groups(known, "num_groups_hyena_short")}
    if "hyena_mr" in blocks:
        hyena |= {
            "mr_taps": min(known["hyena_mr_len"], known["seq_length"]),
            "mr_groups": num_groups(known, "num_groups_hyena_medium"),
            "mr_decay": known.get("explicit_filter_decay_preset", "weak"),
            "mr_decay_length": known["seq_length"],
            "mr_decay_repeats": known.get("explicit_filter_num_decay_repeats", 1),
        }
    if "hyena_li" in blocks:
        hyena |= {"li_groups": num_groups(known, "num_groups_hyena"), "li_order": known["hyena_filter_order"]}
    return hyena


def num_groups(known: Mapping[str, Any], key: str) -> int | None:
    """Number of filters; None for one a channel.

    Args:
        known: keys of Savanna's or Vortex's, `hidden_size` among them.
        key: the one that says the number, or is left out.
    """
    groups: int | None = known.get(key)
    return None if groups == known["hidden_size"] else groups


def _rotary(known: Mapping[str, Any]) -> dict[str, Any]:
    scaled = known["pos_emb"] == "rotary_linear_scaled"
    return {
        "base": known["rotary_emb_base"],
        "position_scale": known["rotary_emb_scaling_factor"] if scaled else 1.0,
    }


def _mlp(known: Mapping[str, Any], width: int, where: str) -> dict[str, Any]:
    activation = known["parallel_glu_activation_default"] or "gelu_until_long"
    if activation not in ("gelu", "silu", "identity", "gelu_until_long"):
        raise ConversionError(
            f"{where}: parallel_glu_activation_default is {activation!r}; what is converted: null, gelu, silu, identity"
        )
    multiple = known.get("make_gated_mlp_multiple_of", 16)
    hidden_width = known["hidden_width"]
    derived = MLPConfig(round_up_to=multiple).hidden_width(width)
    # Weights that are missing or have other dimensions tell no width (0).
    told = hidden_width > 0 and (known.get("pad_mlp_weights") or "make_gated_mlp_multiple_of" not in known)
    explicit = hidden_width == multiple or (told and hidden_width != derived)
    # A width that the multiple doesn't give is left to the comparison of shapes.
    return {"activation": activation} | ({"width": hidden_width} if explicit else {"round_up_to": multiple})


def _vocabulary_multiple(known: Mapping[str, Any]) -> int:
    num_rows: int = known["num_rows"]
    given = known.get("make_vocab_size_divisible_by", 8)
    candidates = (given, given * known.get("model_parallel_size", 1), num_rows or given)
    return next(
        (multiple for multiple in candidates if -(-VOCABULARY_SIZE // multiple) * multiple == num_rows), candidates[0]
    )


def describe(config: IsotropicConfig, window_bases: int) -> dict[str, Any]:
    """Savanna's keys of a model.

    Args:
        config: all of whose parts Savanna has.
        window_bases: Savanna's seq_length.

    Raises:
        ConversionError: the MLP's width is none that Savanna makes.
    """
    stack, hyena, rotary = config.stack, config.stack.hyena, config.stack.attention.rotary
    assert set(stack.blocks) <= set(BLOCKS)
    multiple = stack.mlp.width or stack.mlp.round_up_to
    if MLPConfig(round_up_to=multiple).hidden_width(stack.width) != stack.mlp.hidden_width(stack.width):
        raise ConversionError(
            f"stack.mlp.width {stack.mlp.width} is less than 8/3 of the width {stack.width}, and Savanna's gated MLP "
            "is never narrower: widen the MLP with zeros first"
        )
    scaled = rotary.position_scale != 1
    base = int(rotary.base) if float(rotary.base).is_integer() else rotary.base
    settings: dict[str, Any] = {
        "num_layers": len(stack.blocks),
        "hidden_size": stack.width,
        "num_attention_heads": stack.num_heads,
        "num_groups_hyena": hyena.li_groups or stack.width,
        "num_groups_hyena_medium": hyena.mr_groups or stack.width,
        "num_groups_hyena_short": hyena.se_groups or stack.width,
        "operator-config": [[[WRITTEN_OPERATORS[block]], 1] for block in stack.blocks],
        "seq_length": window_bases,
        "max_position_embeddings": window_bases,
        "pos_emb": "rotary_linear_scaled" if scaled else "rotary",
        "rotary_pct": 1.0,
        "rotary_emb_base": base,
        "rotary_emb_scaling_factor": rotary.position_scale,
        "short-conv-L": hyena.featurizer_taps,
        "hyena_se_len": hyena.se_taps,
        "hyena_mr_len": hyena.mr_taps,
        "hyena_filter_cls": "implicit_modal",
        "hyena_filter_order": hyena.li_order,
        "hyena_medium_filter_cls": "explicit_single_decay",
        # With no decay the grid of ones is loaded with the weights.
        "explicit_filter_decay_preset": "weak" if hyena.mr_decay == "none" else hyena.mr_decay,
        "explicit_filter_num_decay_repeats": hyena.mr_decay_repeats,
        "interleave_projections": hyena.interleaved_projection,
        "fast_conv_proj": True,
        "use_cgcg": False,
        "norm": "rmsnorm",
        "rms_norm_epsilon": stack.norm.epsilon,
        "use_fp8_norm": stack.norm.epsilon_inside_root,
        "prenorm": True,
        "postnorm": False,
        "pre_mlp_norm": True,
        "outer_mlp_norm": False,
        "mlp_type": "llama",
        "identity_mlp": False,
        "make_gated_mlp_multiple_of": multiple,
        "no_weight_tying": config.head == "untied",
        # By rows, which is its default, Savanna refuses to build a head of its own.
        "output_layer_parallelism": "column",
        "make_vocab_size_divisible_by": config.round_vocabulary_to,
        "tokenizer_type": "CharLevelTokenizer",
        "model_parallel_size": 1,
        "pipe_parallel_size": 0,
        "init_method": "small_init",
        "output_layer_init_method": "wang_init",
    }
    if stack.mlp.activation != "gelu_until_long":
        settings["parallel_glu_activation_default"] = stack.mlp.activation
    return settings
