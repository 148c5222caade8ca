"""What a model gives when it is asked for nats in place of logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Prediction(NamedTuple):
    """What a batch costs: given `loss_weights`, a model's forward pass ends here, so that logits need never exist.

    If losses of its own look at more of a batch than bases, patch lengths and weights, the model names its fields in a
    property `auxiliary_inputs`, and is given them by these names in training.

    Attributes:
        nats: scalar; weighted negative log-likelihood of the batch's bases.
        auxiliary_nats: scalar; the sum over the batch of the model's own losses, each times its coefficient. It is
            divided by the step's scored weight as the bases' nats are, so that a loss of one nat a base with a
            coefficient of 1 weighs as much as the bases themselves. None without such losses, and in evaluation.
        num_patches: int64 scalar; patches of the batch that the model has found itself, for what they cost to be
            known. None for a model that is given its patches.
    """

    nats: Tensor
    auxiliary_nats: Tensor | None = None
    num_patches: Tensor | None = None
