"""Dropout by position: what is left out at a base does not depend on the rank that computes it, nor on what else it
computes beside it. Ranks that hold slices of one window each draw for the bases that their slices share."""

from __future__ import annotations

import torch
from torch import Tensor

LONGEST_ROW = 2**32
"""Positions of a row that have numbers of their own."""
_INCREMENT, _FIRST_FACTOR, _SECOND_FACTOR = (
    value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def draw_seed() -> int:
    """A seed from torch's default generator on the CPU: ranks whose generators agree get the same one."""
    return int(torch.randint(2**63 - 1, ()))


def dropout_shares(seed: int, dropout: float, positions_BL: Tensor, num_columns: int) -> Tensor:
    """What dropout multiplies with at each position: 0, or what makes up for those left out.

    Args:
        seed: of all draws.
        dropout: chance of a 0, from 0 to below 1.
        positions_BL: int64 [B, L], below `LONGEST_ROW`; rows are told apart by their places in the batch.
        num_columns: draws at a position.

    Returns:
        float32 [B, L, num_columns].
    """
    rows = torch.arange(len(positions_BL), device=positions_BL.device)[:, None] * LONGEST_ROW
    columns = torch.arange(num_columns, device=positions_BL.device)
    numbers = _split_mix((rows + positions_BL)[..., None] * num_columns + columns, seed)
    kept = numbers >= round(dropout * 2**64) - 2**63
    return kept.float() / (1 - dropout)


def _split_mix(index: Tensor, seed: int) -> Tensor:
    """The numbers of a SplitMix64 generator at given places, as signed integers; overwrites the places.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; the constants are those of
    Vigna's splitmix64.c.
    """
    mixed = index.add_(1).mul_(_INCREMENT).add_(seed)
    for shift, factor in ((30, _FIRST_FACTOR), (27, _SECOND_FACTOR)):
        mixed.bitwise_xor_(_shifted_right(mixed, shift)).mul_(factor)
    return mixed.bitwise_xor_(_shifted_right(mixed, 31))


def _shifted_right(values: Tensor, num_bits: int) -> Tensor:
    """Integers shifted as if they had no sign: what comes in on the left is zeros."""
    return (values >> num_bits).bitwise_and_((1 << (64 - num_bits)) - 1)
