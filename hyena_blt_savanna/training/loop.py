"""The training loop: steps, validation, checkpoints and metrics, from wherever a run stands to its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import psutil  # type: ignore[import-untyped]

from hyena_blt_savanna.training.bad_steps import BadStepsConfig, why_bad
from hyena_blt_savanna.training.checkpoints import CheckpointError, Checkpoints, Progress
from hyena_blt_savanna.training.engine import DivergedError, Totals, TrainingBatch, TrainingEngine, weight_of
from hyena_blt_savanna.training.fp8_gate import DriftedError, Fp8Gate
from hyena_blt_savanna.training.loss import NATS_PER_BIT
from hyena_blt_savanna.training.metrics import Reporter, training_line
from hyena_blt_savanna.training.saving import Saver
from hyena_blt_savanna.training.schedule import (
    ScheduleConfig,
    StageConfig,
    learning_rate,
    place_of,
    total_steps,
)
from hyena_blt_savanna.training.stragglers import describe_ranks, peak_memory_bytes
from hyena_blt_savanna.training.validation import Validation

logger = logging.getLogger(__name__)


class BatchSource(Protocol):
    """Opens the stream of this rank's micro batches of a stage."""

    def __call__(self, stage: int, start_step: int) -> AbstractContextManager[Iterator[TrainingBatch]]:
        """Micro batches from the stage's step `start_step` to its part's last, those of a step one after the other."""


class StoppedError(RuntimeError):
    """The run was asked to stop and has left a checkpoint; started again, it goes on from there."""


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
        bad_steps: what happens to steps whose loss or gradients are out of line.
    """

    stages: Sequence[StageConfig]
    schedule: ScheduleConfig
    peak_lr: float
    log_every_steps: int
    validate_every_steps: int
    checkpoint_every_steps: int
    bad_steps: BadStepsConfig = field(default_factory=BadStepsConfig)

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
        is_asked_to_stop: whether this rank has heard that the run should save and leave; one rank is enough.
        beat: called whenever there is progress.
        fp8_gate: compares FP8 with bf16 at each checkpoint; None: the training is not in FP8.
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
        is_asked_to_stop: Callable[[], bool] = lambda: False,
        beat: Callable[[], None] = lambda: None,
        fp8_gate: Fp8Gate | None = None,
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
        self.is_asked_to_stop = is_asked_to_stop
        self.beat = beat
        self.fp8_gate = fp8_gate
        self.saver = Saver(checkpoints, engine, reporter)
        self._local = Totals()
        self._num_asked_to_stop = 0.0
        self._why_bad: str | None = None
        self._has_stepped = False

    def run(self, progress: Progress, stop_step: int | None = None) -> Progress:
        """Trains to the end of the plan, or to the end of an earlier stage; there it saves a checkpoint.

        Args:
            progress: where the weights in the engine stand.
            stop_step: the last step of a stage; None: the plan's.

        Returns:
            Where they stand now.

        Raises:
            DivergedError: the gradients are no longer finite.
            DriftedError: FP8 is too far from bf16, and the run is to stop then; it has saved.
            CheckpointError: a checkpoint can't be written.
            StoppedError: a rank was asked to stop; the step is finished and saved.
        """
        stop_step = self.plan.num_steps if stop_step is None else stop_step
        try:
            while progress.step < stop_step:
                self._run_part(progress, stop_step)
        except DivergedError:
            # On all ranks at once, so that they can still seal what is on its way.
            self.saver.settle()
            raise
        finally:
            self.saver.abandon()
        return progress

    def _run_part(self, progress: Progress, stop_step: int) -> None:
        """The steps of a stage that share their window, from where the progress stands."""
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
            for step_in_part in range(num_done, part.steps):
                try:
                    self._step(progress, place.stage, part, micro_batches)
                except DivergedError as error:
                    self._leave_out(progress, place.stage, part, step_in_part, error)
                self.beat()
                stops = self._num_asked_to_stop > 0 and progress.step < self.plan.num_steps
                is_due = progress.step == stop_step or progress.step % self.plan.checkpoint_every_steps == 0
                # Who is asked to stop has no time to lose.
                drifted = None if stops or not is_due else self._compare(progress, place.stage)
                if progress.step == stop_step or stops or drifted:
                    self._collect(progress)
                    is_saved = self._save(progress, may_fail=stops)
                elif is_due:
                    self._collect(progress)
                    self.saver.begin(progress)
                if drifted:
                    raise DriftedError(drifted)
                if stops:
                    self.reporter.event("stopped", {"step": progress.step})
                    how = "saved" if is_saved else "could not save"
                    raise StoppedError(f"asked to stop: {how} after step {progress.step}")

    def _compare(self, progress: Progress, stage: int) -> str | None:
        """Lets the gate look at FP8; what it says if the run is to stop for it."""
        gate = self.fp8_gate
        if gate is None:
            return None
        began = time.perf_counter()
        gap = gate.compare(progress.step, stage)
        progress.fp8_gap, reason = gap.to_dict(), gate.why_drifted(gap)
        found = {**progress.fp8_gap, "is_within": reason is None, "tolerance_bits": gate.config.tolerance_bits}
        self.reporter.event("fp8_gate", {**found, "gate_seconds": time.perf_counter() - began})
        if reason is None:
            logger.info("step %d: FP8 and bf16 are %.5f bits per base apart", progress.step, gap.bits)
            return None
        if gate.config.on_drift == "stop":
            return f"step {progress.step}: {reason}"
        logger.error("step %d: %s", progress.step, reason)
        return None

    def _save(self, progress: Progress, may_fail: bool) -> bool:
        try:
            self.saver.save(progress)
        except CheckpointError as error:
            # A run that is asked to stop has to, and goes on from the checkpoint before.
            if not may_fail:
                raise
            logger.error("%s", error)
            return False
        return True

    def _step(self, progress: Progress, stage: int, part: StageConfig, micro_batches: Iterator[TrainingBatch]) -> None:
        num_micro_batches = part.num_micro_batches(self.engine.ranks.mesh.num_data)
        began = time.perf_counter()
        lr = learning_rate(progress.step, self.plan.num_steps, self.plan.peak_lr, self.plan.schedule)
        with self.engine.clock.working():
            mine = list(islice(micro_batches, num_micro_batches))
        # Whether somebody is asked to stop, and who has written their part of a checkpoint, travels with the weight
        # that every step sums over the ranks anyway: all know it at the same step, and it costs nothing.
        told = [weight_of(mine), float(self.is_asked_to_stop()), float(self.saver.is_written)]
        total_weight, self._num_asked_to_stop, num_written = self.engine.ranks.sum(told)
        if num_written == self.engine.ranks.num_ranks:
            self.saver.settle()
        totals = self.engine.accumulate(mine, total_weight, self._judge(progress, total_weight))
        grad_norm = self.engine.update(lr)
        self._local += totals
        progress.num_bad_steps = 0
        self._count_step(progress, time.perf_counter() - began)
        is_last = progress.step == self.plan.num_steps
        if progress.step % self.plan.log_every_steps == 0 or is_last:
            self._log(progress, stage, part, lr, grad_norm)
        if self.validate is not None and (progress.step % self.plan.validate_every_steps == 0 or is_last):
            self._validate(progress, stage, self.validate)

    def _count_step(self, progress: Progress, took_seconds: float) -> None:
        progress.step += 1
        progress.interval_steps += 1
        progress.interval_seconds += took_seconds
        progress.seconds += took_seconds
        self.reporter.advance()
        if not self._has_stepped:
            self._has_stepped = True
            # Everything counts: the interpreter's start, imports, the search for a checkpoint, the first windows.
            seconds = time.time() - psutil.Process().create_time()
            self.reporter.event("first_step", {"step": progress.step, "seconds_since_start": seconds})
            logger.info("step %d: the first one, %.1f s after the start of the process", progress.step, seconds)

    def _judge(self, progress: Progress, total_weight: float) -> Callable[[float], bool] | None:
        """What decides whether a step is learned from; None where it is left to the gradients."""
        self._why_bad = None
        config = self.plan.bad_steps
        if config.spike_deviations is None:
            return None

        def is_good(nats: float) -> bool:
            [total_nats] = self.engine.ranks.sum([nats])
            loss = total_nats / total_weight if total_weight else 0.0
            self._why_bad = why_bad(loss, progress.recent_losses, config)
            if self._why_bad is None:
                progress.recent_losses = [*progress.recent_losses, loss][-config.history_steps :]
            return self._why_bad is None

        return is_good

    def _leave_out(
        self, progress: Progress, stage: int, part: StageConfig, step_in_part: int, error: DivergedError
    ) -> None:
        """Goes on after a step that was not learned from, as the configuration says.

        Raises:
            DivergedError: it says to stop, or there were too many.
        """
        config = self.plan.bad_steps
        progress.num_bad_steps += 1
        reason = self._why_bad or str(error).partition(":")[0]
        event = {
            "step": progress.step + 1,
            "stage": stage,
            "reason": reason,
            "action": config.action,
            "window_bases": part.window_bases,
            # Places of the step's windows in the order of the stage, or of its part with such windows.
            "first_sample": step_in_part * part.batch_windows,
            "last_sample": (step_in_part + 1) * part.batch_windows - 1,
        }
        if config.action == "stop" or progress.num_bad_steps >= config.most_in_a_row:
            self.reporter.event("bad_step", {**event, "action": "stop"})
            raise error
        newest = None
        if config.action == "roll_back":
            # The newest one may be on its way.
            self.saver.settle()
            newest = self.checkpoints.find_newest()
        self._count_step(progress, 0.0)
        if newest is not None:
            event["rolled_back_to_step"] = self.checkpoints.progress_of(newest).step
            self.checkpoints.load(self.engine, newest)
            self.engine.deepspeed.global_steps = progress.step
        self.reporter.event("bad_step", event)
        logger.warning("step %d is not learned from (%s): %s", progress.step, event["action"], reason)

    def _collect(self, progress: Progress) -> None:
        """Moves this rank's sums into the progress, which is the same on all ranks."""
        self._add(progress, self.engine.ranks.sum(self._local.values()))

    def _add(self, progress: Progress, sums: list[float]) -> None:
        everywhere = Totals(*sums)
        self._local = Totals()
        progress.bases += everywhere.bases
        progress.interval += everywhere

    def _collect_ranks(self, progress: Progress) -> dict[str, Any]:
        """As `_collect`; and in the same sum, what each rank has worked and how much memory it has had."""
        ranks = self.engine.ranks
        mine = [0.0] * (2 * ranks.num_ranks)
        mine[ranks.rank] = self.engine.clock.take()
        mine[ranks.num_ranks + ranks.rank] = peak_memory_bytes(ranks.device)
        local = self._local.values()
        sums = ranks.sum([*local, *mine])
        self._add(progress, sums[: len(local)])
        of_ranks = sums[len(local) :]
        return describe_ranks(of_ranks[: ranks.num_ranks], of_ranks[ranks.num_ranks :])

    def _log(self, progress: Progress, stage: int, part: StageConfig, lr: float, grad_norm: float) -> None:
        self.check()
        about_ranks = self._collect_ranks(progress)
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
            | about_ranks
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
