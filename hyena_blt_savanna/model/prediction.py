"""What a model gives in training when there is more to tell than logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """Logits, what a model adds to the loss, and what it has cut. A model with nothing to add gives the logits alone.

    If losses of its own look at more of a batch than bases and patch lengths, the model names its fields in a property
    `auxiliary_inputs`, and is given them by these names in training.

    Attributes:
        logits: float [B, L, C]; those at t score base t + 1.
        auxiliary_nats: scalar; the sum over the batch of the model's own losses, each times its coefficient. It is
            divided by the step's scored weight as the bases' nats are, so that a loss of one nat a base with a
            coefficient of 1 weighs as much as the bases themselves. None without such losses.
        num_patches: int64 scalar; patches of the batch that the model has found itself, for what they cost to be
            known. None for a model that is given its patches.
    """

    logits: Tensor
    auxiliary_nats: Tensor | None = None
    num_patches: Tensor | None = None


def as_prediction(output: Tensor | Prediction) -> Prediction:
    """What a model gives, logits alone or more, under names. Engines may rebuild a named tuple as a plain one."""
    return Prediction(output) if isinstance(output, Tensor) else Prediction(*output)
