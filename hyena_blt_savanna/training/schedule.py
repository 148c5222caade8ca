"""What each step of training uses: the stage with its window, batch and mesh, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from hyena_blt_savanna.config import Config


class LengthWarmupConfig(Config):
    """Windows that grow within a stage, each twice as long as the one before it.

    A step reads as many bases as the stage's own: half the window, twice the windows. So neither the noise of the
    gradients nor the time and memory of a step change with the window, and the ranks that share the stage's batch
    share these. HyenaDNA keeps the number of windows instead, which makes the batch grow along.

    Source: HyenaDNA (arXiv:2306.15794), section 3.2; GrowLength (arXiv:2310.00576).
    """

    steps: PositiveInt
    """Steps of the stage with shorter windows, shared out evenly among their lengths."""
    from_bases: PositiveInt
    """Bases of a window at first: the stage's, halved once or more."""


class StageRotaryConfig(Config):
    """Rotary positions of the global model's attention in a stage, as in its attention.rotary."""

    base: float | None = Field(None, gt=1)
    """Ratio of the slowest wavelength to the fastest; null: the model's."""
    position_scale: PositiveFloat | None = None
    """Positions are divided by this; null: the model's."""


class StageConfig(Config):
    """A stretch of training with one window length, one batch and one mesh."""

    steps: PositiveInt
    """Optimizer steps of the stage."""
    window_bases: PositiveInt
    """Bases of a window."""
    batch_windows: PositiveInt
    """Windows of one optimizer step, over all ranks."""
    micro_batch_windows: PositiveInt | None = None
    """Windows of one forward and backward pass of one rank; left out, a rank takes its whole share at once."""
    context: PositiveInt | None = None
    """Ranks that hold slices of the same windows; null: parallel.context."""
    rotary: StageRotaryConfig = StageRotaryConfig()
    """Positions of the attention blocks; what is left out is the model's, whatever the stage before has."""
    length_warmup: LengthWarmupConfig | None = None
    """Shorter windows at first; null: all windows are of one length."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        warmup = self.length_warmup
        if warmup is None:
            return self
        fitting = _halves(self.window_bases)
        if warmup.from_bases not in fitting:
            raise ValueError(
                f"length_warmup.from_bases {warmup.from_bases} can't be doubled to window_bases {self.window_bases}: "
                + (f"choose from {', '.join(map(str, fitting))}" if fitting else "give an even window_bases")
            )
        num_shorter = fitting.index(warmup.from_bases) + 1
        if not num_shorter <= warmup.steps < self.steps:
            raise ValueError(
                f"length_warmup.steps {warmup.steps}: {num_shorter} lengths from {warmup.from_bases} bases on need at "
                f"least {num_shorter} steps, and the window itself at least 1 of the stage's {self.steps}"
            )
        return self

    @property
    def first_window_bases(self) -> int:
        """Bases of the stage's shortest windows."""
        return self.length_warmup.from_bases if self.length_warmup else self.window_bases

    @property
    def first_window_key(self) -> str:
        """The key that sets them."""
        return "length_warmup.from_bases" if self.length_warmup else "window_bases"

    @property
    def parts(self) -> list[StageConfig]:
        """The stage as stages of one window length each, in order: itself alone where it has no warm-up."""
        if self.length_warmup is None:
            return [self]
        lengths = [length for length in reversed(_halves(self.window_bases)) if length >= self.first_window_bases]
        ends = [self.length_warmup.steps * index // len(lengths) for index in range(len(lengths) + 1)]
        shorter = [
            self._part(end - begin, length) for begin, end, length in zip(ends[:-1], ends[1:], lengths, strict=True)
        ]
        return [*shorter, self._part(self.steps - self.length_warmup.steps, self.window_bases)]

    def part_at(self, step: int) -> tuple[StageConfig, int]:
        """The part that a step of the stage lies in, and the part's steps before it.

        Args:
            step: from 0, below `steps`.
        """
        for part in self.parts:
            if step < part.steps:
                return part, step
            step -= part.steps
        raise AssertionError(f"step {step} behind the stage's {self.steps}")

    def _part(self, steps: int, window_bases: int) -> StageConfig:
        factor = self.window_bases // window_bases
        changes = {"steps": steps, "window_bases": window_bases, "length_warmup": None}
        changes["batch_windows"] = self.batch_windows * factor
        if self.micro_batch_windows is not None:
            changes["micro_batch_windows"] = self.micro_batch_windows * factor
        return self.model_copy(update=changes)

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


def _halves(window_bases: int) -> list[int]:
    """A window's half, the half of that and so on, as far as they are whole."""
    lengths = []
    while window_bases % 2 == 0:
        window_bases //= 2
        lengths.append(window_bases)
    return lengths


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
