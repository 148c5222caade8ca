"""What each step of training uses: the stage with its window and batch, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field, PositiveInt

from hyena_blt_savanna.config import Config


class StageConfig(Config):
    """A stretch of training with one window length and one batch.

    Stages that start short and double the window are sequence-length warm-up.

    Source: HyenaDNA (arXiv 2306.15794), section 3.2.
    """

    steps: PositiveInt
    """Optimizer steps of the stage."""
    window_bases: PositiveInt
    """Bases of a window."""
    batch_windows: PositiveInt
    """Windows of one optimizer step, over all ranks."""
    micro_batch_windows: PositiveInt | None = None
    """Windows of one forward and backward pass of one rank; left out, a rank takes its whole share at once."""

    def micro_batch(self, num_ranks: int) -> int:
        """Windows of one forward and backward pass of each of `num_ranks` ranks.

        Raises:
            ScheduleError: the batch can't be divided evenly.
        """
        if self.batch_windows < num_ranks:
            raise ScheduleError(
                f"there are more ranks ({num_ranks}) than windows in a step (batch_windows: {self.batch_windows}): "
                f"use at most {self.batch_windows} ranks, or raise batch_windows to a multiple of {num_ranks}"
            )
        micro = self.micro_batch_windows or self.batch_windows // num_ranks
        if self.batch_windows % (num_ranks * micro):
            raise ScheduleError(
                f"batch_windows {self.batch_windows} can't be divided among {num_ranks} rank(s) in micro batches of "
                f"{micro}: make it a multiple of {num_ranks * micro}, or change micro_batch_windows"
            )
        return micro

    def num_micro_batches(self, num_ranks: int) -> int:
        """Forward and backward passes of one rank in a step."""
        return self.batch_windows // (num_ranks * self.micro_batch(num_ranks))


class ScheduleConfig(Config):
    """The learning rate over all steps, stages included: linear warm-up, then a cosine."""

    warmup_steps: int = Field(100, ge=0)
    """Steps over which the rate rises from nothing."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """The last step's rate as a fraction of the highest."""


class ScheduleError(ValueError):
    """Stages that can't be run on the ranks that there are."""


@dataclass(frozen=True)
class Place:
    """Where a step lies: `step_in_stage` of stage `stage`, both from 0."""

    stage: int
    step_in_stage: int


def total_steps(stages: Sequence[StageConfig]) -> int:
    """Optimizer steps of all stages."""
    return sum(stage.steps for stage in stages)


def place_of(step: int, stages: Sequence[StageConfig]) -> Place:
    """The stage of a step.

    Args:
        step: from 0, below `total_steps`.
        stages: at least one.
    """
    begin = 0
    for index, stage in enumerate(stages):
        if step < begin + stage.steps:
            return Place(index, step - begin)
        begin += stage.steps
    raise AssertionError(f"step {step} of {begin}")


def learning_rate(step: int, num_steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """The learning rate of a step.

    Args:
        step: from 0; the first step of the warm-up already learns.
        num_steps: steps of the whole run.
        peak: the highest rate.
        schedule: warm-up and floor.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / (schedule.warmup_steps + 1)
    done = (step - schedule.warmup_steps) / max(1, num_steps - 1 - schedule.warmup_steps)
    ratio = schedule.min_lr_ratio
    return peak * (ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
