"""Floating-point operations of training, for utilisation."""

from __future__ import annotations

from hyena_blt_savanna.model.flops import BACKWARD_RATIO, Architecture, count_flops
from hyena_blt_savanna.model.hyena_blt import Objective


def training_flops_per_base(
    config: Architecture,
    window_bases: int,
    mean_patch_bases: float | None,
    objective: Objective = "next_base",
) -> float:
    """Operations of a forward and a backward pass, a base; what is computed a second time does not count.

    Losses of the model's own do: they are a part of what a step costs, and of no evaluation.

    Args:
        config: of the model.
        window_bases: bases of a window.
        mean_patch_bases: bases of a patch, on average; not read for a model of single bases. None for one that finds
            its own patches before it has found any: it counts with the mean length that it is drawn to.
        objective: what is trained.
    """
    num_patches = round(window_bases / mean_patch_bases) if mean_patch_bases else 0
    forward = count_flops(config, window_bases, num_patches, objective, training=True)["total"]
    return (1 + BACKWARD_RATIO) * forward / window_bases
