"""Weights of a stack of blocks between our names and layouts and Savanna's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hyena_blt_savanna.conversion.names import (
    EXTRA_STATE,
    INVERSE_FREQUENCIES,
    TIME,
    UNREAD_NORMS,
    Layout,
    Place,
)
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, lazy
from hyena_blt_savanna.model.operators import decay_grid
from hyena_blt_savanna.model.stack import StackConfig

_DIMENSIONS: dict[Layout, tuple[int, ...]] = {
    "taps": (2, 3),
    "narrow_taps": (2, 3),
    "padded_taps": (2,),
    "padded_decay": (2,),
}
_UNREAD = (*UNREAD_NORMS, TIME, INVERSE_FREQUENCIES["savanna"])
_NORM = r"((?:layernorm)|(?:sequential\.\d+\.norm)|(?:^global_model\.norm))"


def is_unread(name: str) -> bool:
    """Whether a weight or buffer of Savanna's has no counterpart of ours."""
    plain = plain_norm(name)
    return name.endswith(EXTRA_STATE) or any(plain.endswith("." + ending) for ending in _UNREAD)


def plain_norm(name: str) -> str:
    """A name of Savanna's with `scale` for a norm's scale, which TransformerEngine calls its weight."""
    return re.sub(_NORM + r"\.weight$", r"\1.scale", name)


def transformer_engine_norm(name: str) -> str:
    """The other way round."""
    return re.sub(_NORM + r"\.scale$", r"\1.weight", name)


def to_ours(
    merged: Mapping[str, LazyTensor], places: Sequence[Place], num_taps: int
) -> tuple[dict[str, LazyTensor], dict[str, tuple[int, ...]]]:
    """Weights of whole blocks under our names, in our layouts.

    Args:
        merged: by Savanna's names, of all ranks together.
        places: where they lie.
        num_taps: of hyena_mr.

    Returns:
        What was found, by our names; and the shapes of all that was given, by Savanna's names, to be checked.
    """
    given = {name: tensor.shape for name, tensor in merged.items()}
    ours = {}
    for place in places:
        tensor = merged.get(place.savanna)
        # A tensor of another number of dimensions is reported as it is.
        if tensor is not None and len(tensor.shape) in _DIMENSIONS.get(place.layout, (len(tensor.shape),)):
            tensor = _by_lag(tensor, place.layout, num_taps)
            given[place.savanna] = tensor.shape
        if tensor is not None:
            ours[place.ours] = tensor
    return ours, given


def _by_lag(tensor: LazyTensor, layout: Layout, num_taps: int) -> LazyTensor:
    if layout in ("taps", "narrow_taps"):
        return tensor.map(lambda taps: taps.flatten(1).flip(1))
    if layout in ("padded_taps", "padded_decay"):
        return tensor.map(lambda taps: taps[:, :num_taps].clone())
    return tensor


def to_savanna_layouts(
    tensors: Mapping[str, LazyTensor],
    places: Sequence[Place],
    prefixes: Sequence[str],
    stack: StackConfig,
    window: int,
    fast_kernel: bool = True,
) -> tuple[dict[str, LazyTensor], list[str]]:
    """The weights under Savanna's names, in its layouts, with all buffers and unread weights of its own blocks.

    Args:
        tensors: by our names.
        places: where they lie in Savanna.
        prefixes: of the names of each block there.
        stack: of the blocks.
        window: Savanna's seq_length of these blocks.
        fast_kernel: whether featurizers lie as causal_conv1d reads them (fast_conv_proj).

    Returns:
        Tensors by name, and what differs, in words.
    """
    module, without_bias = {}, 0
    for place in places:
        if place.ours in tensors:
            module[place.savanna] = _to_layout(tensors[place.ours], place, stack, window, fast_kernel)
        else:
            # The only weights that a model of ours may lack.
            assert place.ours.endswith("out_projection.bias")
            module[place.savanna] = _filled(stack.width, 0.0, torch.float32)
            without_bias += 1
    for prefix, block in zip(prefixes, stack.blocks, strict=True):
        scale = module[prefix + "input_layernorm.scale"]
        module |= {prefix + name: _filled(stack.width, 1.0, scale.dtype) for name in UNREAD_NORMS}
        if block == "hyena_li":
            module[prefix + TIME] = lazy(torch.arange(window, dtype=torch.float32)[None, None])
        if block == "attention":
            module[prefix + INVERSE_FREQUENCIES["savanna"]] = lazy(inverse_frequencies(stack))
    if stack.norm.epsilon_inside_root:
        module = {transformer_engine_norm(name): tensor for name, tensor in module.items()}
    notes = [f"{without_bias} output projections without a bias have one of zeros"] if without_bias else []
    return module, notes


def _filled(size: int, value: float, dtype: torch.dtype) -> LazyTensor:
    return LazyTensor((size,), dtype, lambda: torch.full((size,), value, dtype=dtype))


def inverse_frequencies(stack: StackConfig) -> Tensor:
    """base^(-2i / d), fp32 [d / 2], as Savanna computes them."""
    head_width = stack.width // stack.num_heads
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
    return 1.0 / stack.attention.rotary.base**exponents


def _to_layout(tensor: LazyTensor, place: Place, stack: StackConfig, window: int, fast_kernel: bool) -> LazyTensor:
    if place.layout == "narrow_taps" and fast_kernel:
        return tensor.map(lambda taps: taps.flip(1))
    if place.layout in ("taps", "narrow_taps"):
        return tensor.map(lambda taps: taps.flip(1)[:, None])
    if place.layout == "padded_taps":
        return tensor.map(lambda taps: torch.nn.functional.pad(taps, (0, window - taps.shape[1])))
    if place.layout == "padded_decay":
        hyena = stack.hyena.model_copy(update={"mr_taps": window})

        def widened(decay: Tensor) -> Tensor:
            with decay.device:
                grid = decay_grid(len(decay), hyena).to(decay.dtype)
            grid[:, : decay.shape[1]] = decay
            return grid

        return tensor.map(widened)
    return tensor
