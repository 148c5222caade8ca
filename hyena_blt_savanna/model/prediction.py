"""What a model gives in training when it has losses of its own besides the one of the bases."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """Logits, and what a model adds to the loss. A model without losses of its own gives the logits alone.

    If those losses look at more of a batch than bases and patch lengths, the model names its fields in a property
    `auxiliary_inputs`, and is given them by these names in training.

    Attributes:
        logits: float [B, L, C]; those at t score base t + 1.
        auxiliary_nats: scalar; the sum over the batch of the model's own losses, each times its coefficient. It is
            divided by the step's scored weight as the bases' nats are, so that a loss of one nat a base with a
            coefficient of 1 weighs as much as the bases themselves.
    """

    logits: Tensor
    auxiliary_nats: Tensor


def split_prediction(output: Tensor | Prediction) -> tuple[Tensor, Tensor | None]:
    """The logits, and the auxiliary nats where the model has any."""
    # Engines and checkpointing may rebuild a named tuple as a plain one.
    if isinstance(output, Tensor):
        return output, None
    logits, auxiliary_nats = output
    return logits, auxiliary_nats
