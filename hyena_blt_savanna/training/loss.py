"""The training objective: nats of the bases, weighed base by base."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hyena_blt_savanna.model.base_nats import base_nats, weighted_nats

__all__ = ["NATS_PER_BIT", "base_nats", "scored_weight", "weighted_nats"]

NATS_PER_BIT = math.log(2)


def scored_weight(loss_weights: Tensor) -> Tensor:
    """Sum of the weights of all targets of a batch, float64 scalar: what the weighted nats are divided by."""
    return loss_weights[:, 1:].sum(dtype=torch.float64)
