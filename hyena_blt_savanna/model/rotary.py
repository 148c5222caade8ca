"""Rotary positions."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.precision import widen


class RotaryConfig(Config):
    """Rotary positions of the attention blocks."""

    base: float = Field(10_000.0, gt=1)
    """Ratio of the slowest wavelength to the fastest."""
    position_scale: float = Field(1.0, gt=0)
    """Positions are divided by this: above 1 for a window longer than the one trained on."""


def rotary_tables(length: int, head_width: int, config: RotaryConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles.

    Args:
        length: number of positions.
        head_width: even.

    Returns:
        Two fp32 tensors [length, head_width / 2].

    Source: Su et al. 2021 (arXiv:2104.09864); linear scaling: Chen et al. 2023 (arXiv:2306.15595). In fp32
    step by step as Savanna does, so that angles of far positions agree with it.
    """
    positions = torch.arange(length, device=device, dtype=torch.float32)
    return angles_at(positions, head_width, config)


def angles_at(positions: Tensor, head_width: int, config: RotaryConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine as `rotary_tables` has them, fp32 [N, head_width / 2] each, of any positions [N]."""
    half = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width
    angles = torch.outer(positions.float() / config.position_scale, 1.0 / config.base**half)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turns each pair (i, i + head_width / 2) of channels by its position's angle (NeoX halves).

    Args:
        x: [..., L, head_width], any floating dtype; computed in fp32 at least.
        cosine: [L, head_width / 2].
        sine: [L, head_width / 2].

    Returns:
        [..., L, head_width], dtype of x.
    """
    first, second = widen(x).chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(x.dtype)
