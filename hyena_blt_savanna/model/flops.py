"""Floating-point operations of one forward pass, from the configuration alone.

Counted are multiplications and additions, one each, of what grows with width: matrix products (m x k by k x n is
2 m n k), convolutions and attention. Left out are norms, activations, gates, look-ups: a few operations a channel.

- shifted convolution of K taps: 2 K a position and channel
- Fourier convolution of size n: a real transform there and one back, 2.5 n log2 n each, and a complex product of
  n / 2 values at 6, for each channel; one more transform for each filter
- hyena_li filter of order O: 2 O a position and filter
- causal attention over L positions: L^2 / 2 pairs, 4 operations each a channel (query times key, weight times value);
  in a window of w positions L w - w^2 / 2 pairs, w at most L

A backward pass costs twice as much.
"""

from __future__ import annotations

import math
from collections import Counter

from torch import nn

from hyena_blt_savanna.model.convolution import LONGEST_SHIFTED, next_fast_length
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig, Objective
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.local_encoder import LocalConfig
from hyena_blt_savanna.model.operators import OPERATOR_KINDS
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import NUM_SCORED


def count_flops(
    model: nn.Module | HyenaBLTConfig | IsotropicConfig,
    num_bases: int,
    num_patches: int = 0,
    objective: Objective = "next_base",
) -> dict[str, float]:
    """Operations of one forward pass over one sequence.

    Args:
        model: a HyenaBLT or an Isotropic, or the configuration of one.
        num_bases: L.
        num_patches: P; not read for the isotropic model.
        objective: the autoencoder of patches leaves the hybrid's stack out.

    Returns:
        Operations by part: `projections`, `mlp`, `short_convolutions`, `fourier_convolutions`, `filters`, `attention`
        of the stack; `local_encoder`, `local_decoder` of the hybrid; `head`; and their sum, `total`.
    """
    config = model.config if isinstance(model, nn.Module) else model
    if isinstance(config, IsotropicConfig):
        parts = stack_flops(config.stack, num_bases)
        parts["head"] = 2.0 * config.stack.width * config.num_rows * num_bases
    else:
        assert isinstance(config, HyenaBLTConfig)
        parts = stack_flops(config.global_model, num_patches) if objective == "next_base" else {}
        width = config.local_width
        # A linear map for each place of a patch, into the global model and out of it; the start vector goes out too.
        place = 2.0 * config.max_patch_bases * width * config.global_model.width
        parts["local_encoder"] = _local_flops(config.encoder, width, num_bases) + place * num_patches
        parts["local_decoder"] = _local_flops(config.decoder, width, num_bases) + place * (num_patches + 1)
        parts["head"] = 2.0 * width * NUM_SCORED * num_bases
    return {**parts, "total": sum(parts.values())}


def stack_flops(config: StackConfig, num_positions: int) -> dict[str, float]:
    """Operations of one forward pass of a stack over one sequence, by part."""
    width, length, hyena = config.width, num_positions, config.hyena
    parts: Counter[str] = Counter()
    for name in config.blocks:
        # In (three vectors) and out (one); gate, up and down.
        parts["projections"] += 8 * width * width * length
        parts["mlp"] += 6 * width * config.mlp.hidden_width(width) * length
        if name == "attention":
            window = min(config.attention.window or length, length)
            parts["attention"] += 2 * window * (2 * length - window) * width
            continue
        parts.update(_convolution_flops(length, hyena.featurizer_taps, 3 * width, 3 * width))
        kind = OPERATOR_KINDS[name]
        groups = hyena.num_groups(kind, width)
        num_taps = {"se": hyena.se_taps, "mr": hyena.mr_taps, "li": length}[kind]
        parts.update(_convolution_flops(length, num_taps, width, groups))
        if kind == "li":
            parts["filters"] += 2 * hyena.li_order * groups * length
    return {name: float(count) for name, count in parts.items()}


def _convolution_flops(length: int, num_taps: int, channels: int, groups: int) -> dict[str, int]:
    if num_taps <= LONGEST_SHIFTED:
        return {"short_convolutions": 2 * min(num_taps, length) * channels * length}
    size = next_fast_length(length + min(num_taps, length) - 1)
    transform = 2.5 * size * math.log2(size)
    return {"fourier_convolutions": round(channels * (2 * transform + 3 * size) + groups * transform)}


def _local_flops(config: LocalConfig, width: int, num_bases: int) -> float:
    widen = 2 * config.num_taps * width * 2 * config.hidden_width
    narrow = 2 * config.hidden_width * width
    return float(config.num_blocks * (widen + narrow) * num_bases)
