"""Pretrains a model: the entry that every rank of a run starts in.

launch/train.sh configs/training/quickstart.yaml run=runs/mine
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyena_blt_savanna.model.convolution import prefer_backend
from hyena_blt_savanna.model.fp8 import Fp8Layers, use_fp8
from hyena_blt_savanna.model.hyena_blt import UNREAD_WEIGHTS
from hyena_blt_savanna.model.stack import global_stack
from hyena_blt_savanna.parallel.context import ContextParallel
from hyena_blt_savanna.training.checkpoints import Checkpoints, Progress
from hyena_blt_savanna.training.engine import DivergedError, TrainingEngine, faster_precision
from hyena_blt_savanna.training.first_weights import check_patterns, freeze, load_first_weights
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.fp8_gate import DriftedError, Fp8Gate
from hyena_blt_savanna.training.logs import log_to_file, log_to_terminal
from hyena_blt_savanna.training.loop import Plan, StoppedError, TrainingLoop
from hyena_blt_savanna.training.meshes import check_meshes, fitting_ranks
from hyena_blt_savanna.training.metrics import Reporter, measure_peak_flops
from hyena_blt_savanna.training.model_config import build_model
from hyena_blt_savanna.training.ranks import Ranks, find_launched, join_ranks, on_first_rank
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData
from hyena_blt_savanna.training.run_folder import RunFolder, RunLock
from hyena_blt_savanna.training.schedule import place_of, total_steps
from hyena_blt_savanna.training.slurm import requeue
from hyena_blt_savanna.training.stop_signals import StopSignals
from hyena_blt_savanna.training.watchdog import Watchdog

logger = logging.getLogger(__name__)

DIVERGED = 3
"""The exit code of a run whose gradients are no longer finite, or whose FP8 is too far from bf16."""
STOPPED = 75
"""The exit code of a run that was asked to stop, has saved, and is to be started again (sysexits.h: EX_TEMPFAIL)."""
_OTHERS_WAIT_SECONDS = 5.0
_POLL_SECONDS = 0.1


def main(arguments: Sequence[str], signals: StopSignals | None = None) -> int:
    """Trains as YAML files and `key=value` overrides say.

    Args:
        arguments: of the command line.
        signals: that ask this process to stop; None: nothing asks.

    Returns:
        The exit code: 0; 2 after a mistake, 3 when the training has diverged or its FP8 drifted, told in the log; 75
        when it was asked to stop and has saved. A job of Slurm is back in the queue by then, unless somebody
        cancelled it.
    """
    rank, num_given = find_launched()
    log_to_terminal(rank == 0)
    try:
        config = RunConfig.load(arguments)
        num_ranks = fitting_ranks(config, num_given)
        if rank >= num_ranks:
            return 0
        if num_ranks < num_given:
            os.environ["WORLD_SIZE"] = str(num_ranks)
            if rank == 0:
                logger.warning("%d of the %d ranks share the batch evenly; the others leave", num_ranks, num_given)
        pretrain(config, join_ranks(), signals)
    except StoppedError as stopped:
        heard = f" (rank 0 got {signals.received})" if signals and signals.received else ""
        logger.warning("%s%s", stopped, heard)
        if rank == 0:
            requeue(os.environ)
        return STOPPED
    except (ValueError, OSError, DivergedError, DriftedError) as error:
        # What is wrong with the input is wrong on every rank: the first one says it, unless it has not met it.
        if rank > 0:
            _wait(_OTHERS_WAIT_SECONDS, signals)
        logger.error("%s", error)
        # Not a logger of this package: the traceback goes to the log file, not to the terminal.
        logging.getLogger("traceback").info("raised here", exc_info=True)
        return DIVERGED if isinstance(error, DivergedError | DriftedError) else 2
    return 0


def _wait(seconds: float, signals: StopSignals | None) -> None:
    """Waits, but not against a signal: srun kills what lingers, and would hand on that exit code in place of ours."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (signals and signals.received):
        time.sleep(_POLL_SECONDS)


def pretrain(config: RunConfig, ranks: Ranks, signals: StopSignals | None = None) -> Progress:
    """Trains to the end, from the newest checkpoint of the run folder if there is one. Every rank calls.

    Where a stage has another mesh or another model than the one before it, the run saves a checkpoint, lets its engine
    go, and goes on from the checkpoint as if it had been started again.

    Args:
        config: of the run.
        ranks: from `join_ranks`.
        signals: that ask this process to stop; None: nothing asks.

    Returns:
        Where the run stands.

    Raises:
        RunInUseError: another job works in the run folder.
        DataError: the data or their boundaries are missing, broken, too short, or don't belong together.
        PretrainedError: there is no whole checkpoint to start from.
        ScheduleError: the batch of a stage can't be shared among the ranks.
        ConfigError: the ranks are no multiple of a stage's context ranks.
        CheckpointError: the run folder's checkpoint, or the one to start from, is of another model, or one can't be
            written.
        DivergedError: the gradients are no longer finite.
        DriftedError: FP8 and bf16 differ by more than `training.fp8` allows; the run has saved.
        KernelError: the convolution backend or the FP8 that is asked for can't be had here.
        StoppedError: a rank was asked to stop, and the run has saved.
    """
    signals = signals or StopSignals()
    check_meshes(config, ranks.num_ranks)
    folder = RunFolder(config.run)
    with ExitStack() as stack:
        lock = RunLock(folder.path)
        on_first_rank(ranks, lambda: _open(folder, lock))
        stack.callback(lock.release)
        log_to_file(folder.logs, ranks.rank)
        data = RunData(config, ranks)
        checkpoints = Checkpoints(
            folder.checkpoints, config.training.checkpoints, config.to_dict(), ranks, data.native_writer()
        )
        newest = checkpoints.find_newest()
        progress = checkpoints.progress_of(newest) if newest else Progress()
        num_steps = total_steps(config.training.stages)
        if progress.step >= num_steps:
            logger.info("%s is finished: all %d steps are done", folder.path, num_steps)
        run = _Run(config, ranks, folder, data, checkpoints, lambda: on_first_rank(ranks, lock.check), signals)
        while progress.step < num_steps:
            progress = run.train_on_one_mesh(progress.step, newest)
            newest = checkpoints.path(progress.step)
            # DeepSpeed's engine is a knot of references: its memory is wanted for the next one.
            gc.collect()
            if ranks.device.type != "cpu":
                torch.get_device_module(ranks.device).empty_cache()
    return progress


@dataclass(frozen=True)
class _Run:
    """What stays when a run goes on on another mesh."""

    config: RunConfig
    ranks: Ranks
    folder: RunFolder
    data: RunData
    checkpoints: Checkpoints
    check: Callable[[], None]
    signals: StopSignals

    def train_on_one_mesh(self, step: int, checkpoint: Path | None) -> Progress:
        """Trains from a step on, through all stages that share mesh and model with the step's; saves at their end.

        Args:
            step: how many are done.
            checkpoint: of that step; None begins the run.
        """
        config = self.config
        plan = make_plan(config)
        stage = place_of(step, plan.stages).stage
        stop_step = total_steps(plan.stages[: self._last_like(stage) + 1])
        ranks = self.ranks.with_context(config.num_context(stage))
        checkpoints = replace(self.checkpoints, ranks=ranks)
        context = ranks.mesh.build_context()
        engine = build_engine(config, ranks, stage, context, None if checkpoint else config.start_from)
        progress = checkpoints.load(engine, checkpoint) if checkpoint else Progress()
        # Not before: a run that is refused must leave the folder's configuration as it is.
        on_first_rank(ranks, lambda: config.save(self.folder.config))
        reporter = Reporter(self.folder.metrics, ranks.is_first, plan.num_steps, engine.deepspeed.monitor)
        watchdog = Watchdog(
            config.training.watchdog_seconds,
            self.folder.logs / f"stacks_{ranks.rank:05d}.txt",
            lambda: reporter.event("stalled", {"step": progress.step}),
        )
        with closing(reporter), watchdog:
            facts = describe(engine, config)
            reporter.start(progress.step, {**facts, "num_steps": plan.num_steps})
            _say_hello(config, progress, checkpoint, facts)
            loop = TrainingLoop(
                plan=plan,
                engine=engine,
                batches=self.data.open_stage,
                checkpoints=checkpoints,
                reporter=reporter,
                validate=self.data.validator(engine),
                flops_per_base=lambda part, patch: training_flops_per_base(
                    config.model, part.window_bases, patch, config.training.objective
                ),
                peak_flops=facts["peak_flops"],
                check=self.check,
                is_asked_to_stop=lambda: self.signals.received is not None,
                beat=watchdog.beat,
                fp8_gate=self._gate(engine),
            )
            progress = loop.run(progress, stop_step)
        engine.close()
        context.close()
        return progress

    def _gate(self, engine: TrainingEngine) -> Fp8Gate | None:
        settings = self.config.training.fp8
        if settings is None:
            return None
        score = self.data.validator(engine, settings.gate_windows)
        assert engine.fp8 is not None
        assert score is not None, "the run's configuration asks for it"
        return Fp8Gate(settings, engine.fp8, score)

    def _last_like(self, stage: int) -> int:
        """The last stage that a stage shares mesh and model with, and all stages between them do."""
        config = self.config
        wanted = config.num_context(stage), config.model_of(stage)
        last = stage
        for index in range(stage + 1, len(config.training.stages)):
            if (config.num_context(index), config.model_of(index)) != wanted:
                break
            last = index
        return last


def build_engine(
    config: RunConfig, ranks: Ranks, stage: int, context: ContextParallel, start_from: Path | None = None
) -> TrainingEngine:
    """The model with its first weights, under DeepSpeed.

    Args:
        config: of the run.
        ranks: every rank calls; on the stage's mesh.
        stage: whose model is built.
        context: what its layers exchange through.
        start_from: a checkpoint that the weights come from; None draws them.

    Raises:
        PretrainedError: there is no checkpoint, or it is broken.
        CheckpointError: it is of another model.
        KernelError: the convolution backend or the FP8 that is asked for can't be had here.
        ConfigError: what `training.frozen` names isn't there, or is all there is.
    """
    prefer_backend(config.training.convolution, ranks.device)
    torch.manual_seed(config.seed)
    model = build_model(config.model_to_build(stage), context)
    if start_from is not None:
        load_first_weights(model, config.model, start_from)
    objective = config.training.objective
    check_patterns(model, config.training.frozen)
    freeze(model, (*UNREAD_WEIGHTS[objective], *config.training.frozen))
    # Ranks start from the same weights and draw different numbers from here on, but for those that share windows.
    torch.manual_seed(config.seed + 1 + ranks.mesh.data)
    training = config.training
    fp8 = None if training.fp8 is None else layers_in_fp8(model, config, ranks.device)
    return TrainingEngine(
        model,
        ranks,
        training.optimizer,
        training.gradient_clipping,
        faster_precision(ranks.device) if training.precision == "auto" else training.precision,
        config.deepspeed_block(),
        objective=objective,
        loss_chunk_bases=training.loss_chunk_bases,
        fp8=fp8,
    )


def layers_in_fp8(model: nn.Module, config: RunConfig, device: torch.device) -> Fp8Layers:
    """Lets the global model of a run with `training.fp8` multiply in FP8.

    Raises:
        KernelError: what is asked for can't be had on the device.
    """
    found, recipe = global_stack(config.model), config.training.fp8
    assert found is not None
    assert recipe is not None
    stack = getattr(model, found[0])
    return use_fp8(stack, recipe, device)


def make_plan(config: RunConfig) -> Plan:
    """What the loop follows."""
    training = config.training
    return Plan(
        stages=training.stages,
        schedule=training.schedule,
        peak_lr=training.optimizer.lr,
        log_every_steps=training.logging.every_steps,
        validate_every_steps=training.validation.every_steps if training.validation else 0,
        checkpoint_every_steps=training.checkpoints.every_steps,
        bad_steps=training.bad_steps,
    )


def describe(engine: TrainingEngine, config: RunConfig) -> dict[str, Any]:
    """Facts about model and machine that a run's metrics start with. Every rank calls."""
    # FP8 is measured against bf16, too.
    dtype = torch.float32 if engine.precision == "fp32" else torch.bfloat16
    [peak_flops] = engine.ranks.sum([measure_peak_flops(engine.ranks.device, dtype)])
    return {
        "model": config.model.kind,
        "objective": engine.objective,
        "num_parameters": engine.num_parameters,
        "num_ranks": engine.ranks.num_ranks,
        "num_context": engine.ranks.num_context,
        "num_threads": torch.get_num_threads(),
        "device": engine.ranks.device.type,
        "precision": engine.precision,
        **({"fp8": engine.fp8.numerics} if engine.fp8 else {}),
        "zero_stage": engine.zero_stage,
        "peak_flops": peak_flops,
    }


def _open(folder: RunFolder, lock: RunLock) -> None:
    lock.acquire()
    folder.make()


def _say_hello(config: RunConfig, progress: Progress, newest: Path | None, facts: dict[str, Any]) -> None:
    logger.info(
        "%s: %s, %s parameters, %d rank(s) x %d thread(s) on %s, %s, ZeRO %d, %.0f GFLOP/s at best",
        config.run,
        facts["model"],
        f"{facts['num_parameters']:,}",
        facts["num_ranks"],
        facts["num_threads"],
        facts["device"],
        facts["precision"],
        facts["zero_stage"],
        facts["peak_flops"] / 1e9,
    )
    if newest is not None:
        logger.info("going on after step %d, from %s", progress.step, newest)
