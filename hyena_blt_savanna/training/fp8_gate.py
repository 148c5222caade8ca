"""The gate of a training in FP8: at each checkpoint its weights score the same windows in FP8 and in bf16.

Some published models are right under the FP8 of one card and library only. What was found is kept with the checkpoint,
so that its reader knows whether bf16, or anything else, computes the same model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from hyena_blt_savanna.model.fp8 import Fp8Layers, Fp8Recipe
from hyena_blt_savanna.training.loss import NATS_PER_BIT
from hyena_blt_savanna.training.validation import Validation

logger = logging.getLogger(__name__)


class Fp8Config(Fp8Recipe):
    """How a training computes in FP8, and how far it may be from bf16."""

    tolerance_bits: PositiveFloat = 0.01
    """Bits per base by which FP8 and bf16 may differ on the same weights and windows."""
    gate_windows: PositiveInt = 16
    """Validation windows that are scored in both at each checkpoint; of several sources so many of each."""
    on_drift: Literal["warn", "stop"] = "warn"
    """What happens beyond the tolerance: warn goes on; stop ends the run with exit code 3, its checkpoint saved."""


class DriftedError(RuntimeError):
    """FP8 and bf16 differ by more than the tolerance; the run has saved."""


@dataclass(frozen=True)
class Gap:
    """What the gate found.

    Attributes:
        step: finished steps.
        bits_fp8: bits per base in FP8.
        bits_bf16: in bf16.
        num_bases: scored.
    """

    step: int
    bits_fp8: float
    bits_bf16: float
    num_bases: float

    @property
    def bits(self) -> float:
        """How far apart they are."""
        return abs(self.bits_fp8 - self.bits_bf16)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "difference_bits": self.bits}


class Fp8Gate:
    """Scores windows in both.

    Args:
        config: of the training.
        layers: those in FP8.
        score: of the windows of a stage, as the model computes now; every rank calls.
    """

    def __init__(self, config: Fp8Config, layers: Fp8Layers, score: Callable[[int], Validation]) -> None:
        self.config = config
        self._layers = layers
        self._score = score

    def compare(self, step: int, stage: int) -> Gap:
        """Where the present weights stand. Every rank calls."""
        in_fp8 = self._score(stage)
        with self._layers.off():
            in_bf16 = self._score(stage)
        bits_fp8, bits_bf16 = (found.nats_per_base / NATS_PER_BIT for found in (in_fp8, in_bf16))
        return Gap(step, bits_fp8, bits_bf16, in_fp8.total.weight)

    def why_drifted(self, gap: Gap) -> str | None:
        """What is wrong with a gap; None if nothing is."""
        tolerance = self.config.tolerance_bits
        # So that a gap that is no number is too wide.
        if gap.bits <= tolerance:
            return None
        return (
            f"FP8 scores {gap.bits_fp8:.4f} bits per base and bf16 {gap.bits_bf16:.4f} with the same weights on "
            f"{gap.num_bases:,.0f} bases: {gap.bits:.4f} apart, and training.fp8.tolerance_bits is {tolerance:g}. Go "
            "on in bf16 (training.precision=bf16 training.fp8=null), or leave more blocks in bf16 "
            "(training.fp8.bf16_blocks) in a new run that starts from an earlier checkpoint (start_from)"
        )
