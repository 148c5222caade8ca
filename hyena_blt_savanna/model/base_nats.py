"""Nats of bases under a model: what is trained, whoever asks for it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model.precision import widen


def base_nats(logits: Tensor, bases: Tensor, class_of_byte: Tensor) -> Tensor:
    """Negative log-likelihood of every base but the first.

    Args:
        logits: float [B, L, C]; those at t - 1 score base t.
        bases: int64 [B, L], upper case.
        class_of_byte: int64 [512], column of each byte; -1 for bytes that are never scored.

    Returns:
        float32 at least [B, L - 1], nats of bases 1 to L - 1; 0 for a base that is never scored.
    """
    classes = class_of_byte[bases[:, 1:]]
    # One row a base: with the classes in the middle, torch copies the logits and walks them with a stride.
    scores = widen(logits[:, :-1]).flatten(0, 1)
    return functional.cross_entropy(scores, classes.flatten(), ignore_index=-1, reduction="none").view_as(classes)


def weighted_nats(logits: Tensor, bases: Tensor, loss_weights: Tensor, class_of_byte: Tensor) -> Tensor:
    """Sum over a batch of each base's nats times its weight.

    Args:
        logits: float [B, L, C].
        bases: int64 [B, L].
        loss_weights: float32 [B, L]; weight of base t as a target, 0 for letters without a column.
        class_of_byte: int64 [512].

    Returns:
        A scalar, float32 at least, nats.
    """
    return (base_nats(logits, bases, class_of_byte) * loss_weights[:, 1:]).sum()
