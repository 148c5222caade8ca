"""What may be said about where a base or a patch stands: switches, and the vectors of biological periods."""

from __future__ import annotations

import math

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from hyena_blt_savanna.config import Config


class PositionConfig(Config):
    """Which positions the local modules are told."""

    patch_length: bool = True
    """The length of a finished patch: a vector added to the patch's own, which nothing but the finished patch sees."""
    place: bool = False
    """How many bases of its patch precede a base: a vector added to its embedding and, in a decoder without a map for
    each place, one for the base to be predicted."""
    periods: list[float] = Field([])
    """Periods in bases, such as 3 (codons), 10.5 (a turn of the helix), 147 (a nucleosome): see `Periods`."""

    @field_validator("periods")
    @classmethod
    def _check_periods(cls, periods: list[float]) -> list[float]:
        if len(set(periods)) != len(periods) or any(not (math.isfinite(period) and period > 1) for period in periods):
            raise ValueError("periods must be different numbers of bases above 1, such as [3, 10.5, 147]")
        return sorted(periods)


class Periods(nn.Module):
    """Sine and cosine of each base's position in each period, through one linear map to the base's width.

    Position 0 is the first base of the sequence that is given. In training and evaluation that is the byte in front of
    a window, so that the phase is the window's, not the genome's or a gene's: two windows over the same base differ by
    a shift, and a model can use how far bases are apart, in step or not, but not where a codon begins. While
    generating, the prompt's byte in front is position 0.

    Args:
        periods: in bases.
        width: D.
    """

    def __init__(self, periods: list[float], width: int) -> None:
        super().__init__()
        self.periods = tuple(periods)
        self.weight = nn.Parameter(torch.empty(width, 2 * len(periods)))

    def reset_parameters(self, std: float) -> None:
        """Draws the map so that its output has standard deviation `std`: sine and cosine have power 1/2 each."""
        nn.init.normal_(self.weight, std=std * len(self.periods) ** -0.5)

    def forward(self, num_bases: int, first_position: int | Tensor = 0) -> Tensor:
        """Positions `first_position` to `first_position + num_bases - 1`: [L, D]; [B, L, D] for integers [B]."""
        # In fp64: at position 1,000,000 an fp32 phase would be wrong by a hundredth of a turn.
        steps = torch.arange(num_bases, dtype=torch.float64, device=self.weight.device)
        position = steps + (first_position[:, None] if isinstance(first_position, Tensor) else first_position)
        turns = torch.stack([position / period for period in self.periods], -1)
        angles = (2 * math.pi) * (turns - turns.floor())
        waves = torch.cat([angles.sin(), angles.cos()], -1).to(self.weight.dtype)
        return nn.functional.linear(waves, self.weight)
