"""One table of names and layouts: where each weight of a stack of blocks lies in Savanna and in Vortex, and how.

Savanna numbers its layers from the embedding (0) and one that does nothing (1) on; the final norm follows another such
layer. Vortex keeps what a Savanna checkpoint says, but for three places: the gate's halves have other names, hyena_mr's
decay is multiplied into its taps, and hyena_li's rate and step into one pole.

Source: Savanna's `block.py`, `tools/*/conversion/params.py` (partition) and `tools/convert_checkpoint_to_vortex.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import StackConfig

Layout = Literal["same", "taps", "narrow_taps", "padded_taps", "padded_decay"]
"""same: the same tensor.
taps: [C, K] by lag here; last tap for lag 0 there: [C, 1, K].
narrow_taps: likewise, and Savanna has [C, K] where its fast kernel is used.
padded_taps, padded_decay: [G, K] by lag here; as wide as the window in Savanna, which reads the first K columns."""


@dataclass(frozen=True)
class Place:
    """Where a weight lies.

    Attributes:
        ours: name in our state dictionary.
        savanna: name in Savanna's.
        vortex: name in Vortex's; None where it is merged into another weight.
        shard_dim: dimension that Savanna's tensor parallelism cuts; None: every rank has all of it.
        layout: how the tensors differ.
        thirds: rows belong to x1, x2 and v.
    """

    ours: str
    savanna: str
    vortex: str | None
    shard_dim: int | None = None
    layout: Layout = "same"
    thirds: bool = False


_NORMS_AND_MLP = (
    Place("mixer_norm.scale", "input_layernorm.scale", "pre_norm.scale"),
    Place("mlp_norm.scale", "pre_mlp_layernorm.scale", "post_norm.scale"),
    Place("mlp.gate.weight", "mlp.w1.weight", "mlp.l1.weight", 0),
    Place("mlp.up.weight", "mlp.w2.weight", "mlp.l2.weight", 0),
    Place("mlp.down.weight", "mlp.w3.weight", "mlp.l3.weight", 1),
)
_HYENA = (
    *_NORMS_AND_MLP,
    Place("mixer.in_projection.weight", "mixer.dense_projection.weight", "projections.weight", 0, thirds=True),
    Place("mixer.featurizer.taps", "mixer.hyena_proj_conv.short_conv_weight", "filter.short_filter_weight", 0,
          layout="narrow_taps", thirds=True),
    Place("mixer.out_projection.weight", "mixer.dense.weight", "out_filter_dense.weight", 1),
    Place("mixer.out_projection.bias", "mixer.dense.bias", "out_filter_dense.bias"),
)  # fmt: skip
_SKIP = Place("mixer.operator.skip", "mixer.mixer.conv_bias", "filter.D", 0)

BLOCKS: dict[str, tuple[Place, ...]] = {
    "hyena_se": (
        *_HYENA,
        Place("mixer.operator.taps", "mixer.mixer.short_conv.short_conv_weight", "filter.h", 0, layout="taps"),
    ),
    "hyena_mr": (
        *_HYENA,
        _SKIP,
        Place("mixer.operator.taps", "mixer.mixer.filter.h", "filter.h", 0, layout="padded_taps"),
        Place("mixer.operator.decay", "mixer.mixer.filter.decay", None, 0, layout="padded_decay"),
    ),
    "hyena_li": (
        *_HYENA,
        _SKIP,
        Place("mixer.operator.log_step", "mixer.mixer.filter.gamma", None, 0),
        Place("mixer.operator.log_rate", "mixer.mixer.filter.p", None, 0),
        Place("mixer.operator.residues", "mixer.mixer.filter.R", "filter.residues", 0),
    ),
    "attention": (
        *_NORMS_AND_MLP,
        Place("mixer.in_projection.weight", "mixer.dense_projection.weight", "inner_mha_cls.Wqkv.weight", 0),
        Place("mixer.out_projection.weight", "mixer.dense.weight", "inner_mha_cls.out_proj.weight", 1),
        Place("mixer.out_projection.bias", "mixer.dense.bias", "inner_mha_cls.out_proj.bias"),
    ),
}
"""Weights of a block of each kind, by its name in `StackConfig.blocks`."""

LOG_POLES = "filter.log_poles"
"""Vortex's weight of a hyena_li block that takes the place of log_rate and log_step."""
INVERSE_FREQUENCIES = {"savanna": "mixer.rotary_emb.inv_freq", "vortex": "inner_mha_cls.rotary_emb.inv_freq"}
"""Buffer of an attention block."""
TIME = "mixer.mixer.filter.t"
"""Savanna's time grid of a hyena_li block, [1, 1, L]; Vortex's converter passes it on."""
UNREAD_NORMS = ("post_attention_layernorm.scale", "outer_mlp_layernorm.scale")
"""Savanna makes these in every block, and reads them in none of the models that are converted here."""
EXTRA_STATE = "_extra_state"
"""Ending of what TransformerEngine keeps of its fp8 scales."""


def block_prefixes(index: int) -> dict[str, str]:
    """What the names of a block's weights begin with: ours, Savanna's, Vortex's.

    Args:
        index: of the block, from 0.
    """
    return {"ours": f"stack.blocks.{index}.", "savanna": f"sequential.{index + 2}.", "vortex": f"blocks.{index}."}


def block_places(stack: StackConfig, index: int) -> list[Place]:
    """Where the weights of a block lie, under full names.

    Args:
        stack: all of whose blocks are in BLOCKS.
        index: of the block, from 0.
    """
    prefix = block_prefixes(index)
    return [
        dataclasses.replace(
            place,
            ours=prefix["ours"] + place.ours,
            savanna=prefix["savanna"] + place.savanna,
            vortex=None if place.vortex is None else prefix["vortex"] + place.vortex,
        )
        for place in BLOCKS[stack.blocks[index]]
    ]


def outer_places(config: IsotropicConfig) -> list[Place]:
    """Where embedding, final norm and a head of its own lie, under full names.

    Args:
        config: with a final norm, and a head over all bytes.
    """
    num_blocks = len(config.stack.blocks)
    places = [
        Place("embedding.weight", "sequential.0.word_embeddings.weight", "embedding_layer.weight", 0),
        Place("stack.norm.scale", f"sequential.{num_blocks + 3}.norm.scale", "norm.scale"),
    ]
    if config.head == "untied":
        places.append(
            Place("head.weight", f"sequential.{num_blocks + 4}.final_linear.weight", "unembed.weight", 0),
        )
    return places


def places(config: IsotropicConfig) -> list[Place]:
    """Where all weights of a model lie; a tied head is the embedding's, and has no place."""
    blocks = [place for index in range(len(config.stack.blocks)) for place in block_places(config.stack, index)]
    return [*outer_places(config), *blocks]


def what_only_native_holds(model: IsotropicConfig | StackConfig) -> list[str]:
    """What of a model has no place in Savanna or Vortex, in words; empty if all has one.

    Args:
        model: configuration of an isotropic model, or of the blocks of another one.
    """
    stack = model.stack if isinstance(model, IsotropicConfig) else model
    unknown = sorted(set(stack.blocks) - set(BLOCKS))
    reasons = [
        (bool(unknown), f"blocks of kind {', '.join(unknown)} (it knows {', '.join(BLOCKS)})"),
        (not stack.final_norm, "a stack without a final norm (stack.final_norm: false)"),
        (
            "attention" in stack.blocks and stack.attention.window is not None,
            "attention within a window (stack.attention.window)",
        ),
    ]
    if isinstance(model, IsotropicConfig):
        reasons += [
            (model.kmers is not None, "tables of k-mers (kmers)"),
            (model.head == "scored", "a head of the scored bytes alone (head: scored)"),
        ]
    return [reason for holds, reason in reasons if holds]
