"""Steps that are not learned from: a loss that is no number, or far above those before it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveFloat, PositiveInt

from hyena_blt_savanna.config import Config


class BadStepsConfig(Config):
    """What happens when the loss or the gradients of a step are no numbers, or the loss has jumped."""

    action: Literal["stop", "skip", "roll_back"] = "stop"
    """stop ends the run; skip leaves the step out; roll_back takes weights and optimizer from the newest checkpoint and
    leaves out all steps from there to the bad one."""
    spike_deviations: PositiveFloat | None = None
    """A loss is a spike if it is so many standard deviations above the mean of the latest steps; null: none is."""
    history_steps: PositiveInt = 100
    """Latest steps that mean and deviation are taken over; before there are so many, no loss is a spike."""
    most_in_a_row: PositiveInt = 10
    """After so many bad steps one after the other the run stops, whatever the action."""


def why_bad(loss: float, recent: Sequence[float], config: BadStepsConfig) -> str | None:
    """What is wrong with the loss of a step; None if nothing is.

    Args:
        loss: nats a base, over all ranks.
        recent: those of the latest steps that were learned from.
        config: what is wrong.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if config.spike_deviations is None or len(recent) < config.history_steps:
        return None
    mean, deviation = statistics.fmean(recent), statistics.pstdev(recent)
    limit = mean + config.spike_deviations * deviation
    if loss <= limit:
        return None
    return (
        f"the loss is {loss:.4f}, above {limit:.4f}: {config.spike_deviations:g} standard deviations "
        f"of {deviation:.4f} above the mean {mean:.4f} of the last {len(recent)} steps"
    )
