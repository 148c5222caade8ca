"""The training loop: steps, validation, checkpoints and metrics, from wherever a run stands to its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from hyena_blt_savanna.training.checkpoints import Checkpoints, Progress
from hyena_blt_savanna.training.engine import Totals, TrainingBatch, TrainingEngine
from hyena_blt_savanna.training.loss import NATS_PER_BIT
from hyena_blt_savanna.training.metrics import Reporter, readable_seconds, training_line
from hyena_blt_savanna.training.schedule import (
    ScheduleConfig,
    StageConfig,
    learning_rate,
    place_of,
    total_steps,
)
from hyena_blt_savanna.training.validation import Validation

logger = logging.getLogger(__name__)


class BatchSource(Protocol):
    """Opens the stream of this rank's micro batches of a stage."""

    def __call__(self, stage: int, start_step: int) -> AbstractContextManager[Iterator[TrainingBatch]]:
        """Micro batches from the stage's step `start_step` to its part's last, those of a step one after the other."""


@dataclass(frozen=True)
class Plan:
    """What the loop follows.

    Attributes:
        stages: in order.
        schedule: of the learning rate.
        peak_lr: its highest.
        log_every_steps: length of a logging interval.
        validate_every_steps: between validations; not looked at without validation.
        checkpoint_every_steps: between checkpoints.
    """

    stages: Sequence[StageConfig]
    schedule: ScheduleConfig
    peak_lr: float
    log_every_steps: int
    validate_every_steps: int
    checkpoint_every_steps: int

    @property
    def num_steps(self) -> int:
        """Of all stages."""
        return total_steps(self.stages)


class TrainingLoop:
    """Runs a plan.

    Args:
        plan: what to do.
        engine: of the model.
        batches: opens a stage's data.
        checkpoints: where to save.
        reporter: where metrics go.
        validate: scores the validation windows of a stage; None never validates.
        flops_per_base: of a training step, for a part of a stage and a mean number of bases a patch.
        peak_flops: of all ranks' devices together.
        check: called at every logging interval; raises to stop the run.
    """

    def __init__(
        self,
        plan: Plan,
        engine: TrainingEngine,
        batches: BatchSource,
        checkpoints: Checkpoints,
        reporter: Reporter,
        validate: Callable[[int], Validation] | None,
        flops_per_base: Callable[[StageConfig, float], float],
        peak_flops: float,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.batches = batches
        self.checkpoints = checkpoints
        self.reporter = reporter
        self.validate = validate
        self.flops_per_base = flops_per_base
        self.peak_flops = peak_flops
        self.check = check
        self._local = Totals()

    def run(self, progress: Progress, stop_step: int | None = None) -> Progress:
        """Trains to the end of the plan, or to the end of an earlier stage; there it saves a checkpoint.

        Args:
            progress: where the weights in the engine stand.
            stop_step: the last step of a stage; None: the plan's.

        Returns:
            Where they stand now.

        Raises:
            DivergedError: the gradients are no longer finite.
            CheckpointError: a checkpoint can't be written.
        """
        stop_step = self.plan.num_steps if stop_step is None else stop_step
        while progress.step < stop_step:
            place = place_of(progress.step, self.plan.stages)
            part, num_done = self.plan.stages[place.stage].part_at(place.step_in_stage)
            mesh = self.engine.ranks.mesh
            self.engine.set_batch(part.batch_windows, part.micro_batch(mesh.num_data))
            logger.info(
                "stage %d: %d steps of %d windows of %s bases%s",
                place.stage,
                part.steps - num_done,
                part.batch_windows,
                f"{part.window_bases:,}",
                f", each shared by {mesh.num_context} ranks" if mesh.num_context > 1 else "",
            )
            with self.batches(place.stage, place.step_in_stage) as micro_batches:
                for _ in range(num_done, part.steps):
                    self._step(progress, place.stage, part, micro_batches)
                    if progress.step % self.plan.checkpoint_every_steps == 0 or progress.step == stop_step:
                        self._save(progress)
        return progress

    def _step(self, progress: Progress, stage: int, part: StageConfig, micro_batches: Iterator[TrainingBatch]) -> None:
        num_micro_batches = part.num_micro_batches(self.engine.ranks.mesh.num_data)
        began = time.perf_counter()
        lr = learning_rate(progress.step, self.plan.num_steps, self.plan.peak_lr, self.plan.schedule)
        self._local += self.engine.accumulate(list(islice(micro_batches, num_micro_batches)))
        grad_norm = self.engine.update(lr)
        progress.step += 1
        progress.interval_steps += 1
        took = time.perf_counter() - began
        progress.interval_seconds += took
        progress.seconds += took
        self.reporter.advance()
        is_last = progress.step == self.plan.num_steps
        if progress.step % self.plan.log_every_steps == 0 or is_last:
            self._log(progress, stage, part, lr, grad_norm)
        if self.validate is not None and (progress.step % self.plan.validate_every_steps == 0 or is_last):
            self._validate(progress, stage, self.validate)

    def _collect(self, progress: Progress) -> None:
        """Moves this rank's sums into the progress, which is the same on all ranks."""
        everywhere = Totals(*self.engine.ranks.sum(self._local.values()))
        self._local = Totals()
        progress.bases += everywhere.bases
        progress.interval += everywhere

    def _log(self, progress: Progress, stage: int, part: StageConfig, lr: float, grad_norm: float) -> None:
        self.check()
        self._collect(progress)
        interval = progress.interval
        mean_patch = interval.bases / interval.patches if interval.patches else 1.0
        self.reporter.training(
            training_line(
                step=progress.step,
                stage=stage,
                nats_per_base=interval.nats_per_base,
                auxiliary_nats_per_base=interval.auxiliary_nats_per_base,
                lr=lr,
                grad_norm=grad_norm,
                num_steps=progress.interval_steps,
                bases=interval.bases,
                patches=interval.patches,
                cut_patches=interval.cut_patches,
                padding_share_of_bases=interval.padding_share_of_bases,
                padding_share_of_patches=interval.padding_share_of_patches,
                interval_seconds=progress.interval_seconds,
                seconds=progress.seconds,
                flops_per_base=self.flops_per_base(part, mean_patch),
                peak_flops=self.peak_flops,
            )
        )
        progress.interval, progress.interval_steps, progress.interval_seconds = Totals(), 0, 0.0

    def _validate(self, progress: Progress, stage: int, validate: Callable[[int], Validation]) -> None:
        began = time.perf_counter()
        found = validate(stage)
        line = {"step": progress.step, "stage": stage, **self._scores(found.total, found.nats_per_base)}
        if len(found.by_source) > 1:
            line["sources"] = {
                name: self._scores(totals, totals.nats_per_base) for name, totals in found.by_source.items()
            }
        self.reporter.validation({**line, "validation_seconds": time.perf_counter() - began})

    def _scores(self, totals: Totals, nats_per_base: float) -> dict[str, Any]:
        shares = {}
        if self.engine.objective == "autoencoder":
            judged = totals.judged_patches
            shares["share_of_patches_exact"] = totals.exact_patches / judged if judged else None
        return {
            "loss": nats_per_base,
            "bits_per_base": nats_per_base / NATS_PER_BIT,
            "num_bases": totals.weight,
            "mean_patch_bases": totals.bases / totals.patches if totals.patches else None,
            **shares,
        }

    def _save(self, progress: Progress) -> None:
        began = time.perf_counter()
        self._collect(progress)
        path = self.checkpoints.save(self.engine, progress)
        took = time.perf_counter() - began
        self.reporter.event("checkpoint", {"step": progress.step, "name": path.name, "save_seconds": took})
        logger.info("step %d: saved %s in %s", progress.step, path.name, readable_seconds(took))
