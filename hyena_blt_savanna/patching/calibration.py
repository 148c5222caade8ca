"""The limit of a rule that gives patches of a wanted mean length on given entropies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.rules import PatchRuleConfig, PatchRuleError

_STEPS = 40
_TOLERANCE = 0.02


class Calibration(Config):
    """What calibration found; kept in the manifest."""

    wanted_mean_bases: float
    mean_bases: float
    """Reached on the entropies given."""
    limit_nats: float
    num_bases: int
    """Bases that were cut to find it."""


def calibrate(
    rule: PatchRuleConfig, bases: Bytes, entropies: NDArray[np.float32], mean_bases: float
) -> tuple[PatchRuleConfig, Calibration]:
    """Finds the limit by bisection: a higher one gives longer patches.

    Args:
        rule: its bounds hold; a limit that it has already is ignored.
        bases: uint8 [L].
        entropies: float32 [L], nats; out of fold for training data, or the limit suits the training data only.
        mean_bases: wanted mean length of a patch.

    Returns:
        The rule with its limit, and what was reached.

    Raises:
        PatchRuleError: the rule has no limit, or no limit comes within 2 % of the wanted mean.
    """
    if not len(bases):
        raise PatchRuleError("no bases to calibrate on: give some sequence")

    def mean_at(limit_nats: float) -> float:
        return len(bases) / len(cut(bases, entropies, rule.with_limit(limit_nats)))

    low, high = 0.0, float(rule.max_patch_bases * max(1.0, float(entropies.max())))
    reachable = mean_at(low), mean_at(high)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_at(middle) < mean_bases else (low, middle)
    limit = min((low, high), key=lambda candidate: abs(mean_at(candidate) - mean_bases))
    reached = mean_at(limit)
    if abs(reached - mean_bases) > _TOLERANCE * mean_bases:
        raise PatchRuleError(
            f"rule {rule.kind!r} can't give a mean patch of {mean_bases} bases here: the nearest is {reached:.3f}, "
            f"the range {reachable[0]:.2f} to {reachable[1]:.2f}; change mean_patch_bases, or min_patch_bases "
            f"({rule.min_patch_bases}) and max_patch_bases ({rule.max_patch_bases})"
        )
    return rule.with_limit(limit), Calibration(
        wanted_mean_bases=mean_bases, mean_bases=reached, limit_nats=limit, num_bases=len(bases)
    )
