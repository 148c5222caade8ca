"""Another window for trained weights: what depends on length is derived again."""

from __future__ import annotations

import dataclasses

from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import StackConfig


def with_window(weights: ModelWeights, window_bases: int) -> ModelWeights:
    """The same weights for windows of another length.

    Rotary positions of a longer window are pressed into the angles of the one trained on; hyena_mr's decay keeps the
    rates that it was trained with; hyena_li's filters have no length. Grids that Savanna stores are as long as the
    window when they are written.

    Args:
        weights: of an isotropic model or a hybrid.
        window_bases: the new window, in bases.

    Returns:
        Weights with `window_bases`, and in their notes, what was done.

    Raises:
        ConversionError: the window trained on isn't known, or the model is of another kind.

    Source: linear scaling of positions, Chen et al. 2023 (arXiv:2306.15595); Savanna's `extend_filter.py`.
    """
    config = weights.config
    if window_bases < 1:
        raise ConversionError(f"window_bases is {window_bases}: give a number of bases above 0")
    if isinstance(config, IsotropicConfig):
        stack, notes = _stretched(config.stack, weights.window_bases, window_bases)
        config = config.model_copy(update={"stack": stack})
    elif isinstance(config, HyenaBLTConfig):
        stack, notes = _stretched(config.global_model, weights.window_bases, window_bases)
        config = config.model_copy(update={"global_model": stack})
    else:
        kind = config.to_dict()["kind"]
        raise ConversionError(
            f"windows are changed of isotropic models and of hyena_blt, and this one is of kind {kind}"
        )
    return dataclasses.replace(weights, config=config, window_bases=window_bases, notes=(*weights.notes, *notes))


def _stretched(stack: StackConfig, trained_bases: int | None, window_bases: int) -> tuple[StackConfig, list[str]]:
    notes = []
    if stack.attends_to_all:
        if trained_bases is None:
            raise ConversionError(
                "the checkpoint doesn't say which window it was trained on, and rotary positions are scaled by it: "
                "give window_bases in its manifest.json"
            )
        rotary = stack.attention.rotary
        factor = max(1.0, window_bases / trained_bases)
        scale = rotary.position_scale * factor
        stack = stack.with_rotary(position_scale=scale)
        notes.append(
            f"attention: rotary positions are divided by {scale:g} (before: {rotary.position_scale:g}), because the "
            f"window is {window_bases:,} bases and was {trained_bases:,}"
            if factor > 1
            else f"attention: rotary positions stay; {window_bases:,} bases are no more than were trained on"
        )
    if "hyena_mr" in stack.blocks and stack.hyena.mr_decay != "none":
        notes.append(
            f"hyena_mr: the decay keeps the rates of {stack.hyena.mr_decay_length:,} bases; where Savanna stores its "
            f"grid, it and the taps are filled up to {window_bases:,}"
        )
    if "hyena_li" in stack.blocks:
        notes.append(
            f"hyena_li: filters are sums of exponentials and go on; where Savanna stores their times, it is 0 to "
            f"{window_bases - 1:,}"
        )
    if "hyena_implicit" in stack.blocks:
        notes.append(
            f"hyena_implicit: the time of the filters still runs from 0 to 1 over {stack.hyena.implicit_length:,}"
        )
    return stack, notes
