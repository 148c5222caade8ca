"""Trainings side by side, each in a process of its own, stopped and resumed at will."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.model.hnet import HNet
from hyena_blt_savanna.model.kmers import KmerTables
from hyena_blt_savanna.quality.config import digest_of, flatten
from hyena_blt_savanna.quality.datasets import Datasets
from hyena_blt_savanna.quality.plan import Plan, Trial
from hyena_blt_savanna.quality.processes import StoppedError, last_line, run_process
from hyena_blt_savanna.quality.recipe import Boundaries, TrainingPlan, plan_training
from hyena_blt_savanna.quality.results import (
    CurvePoint,
    HeldOutScores,
    Results,
    TrialResult,
    current_commit,
    describe_machine,
    describe_versions,
)
from hyena_blt_savanna.quality.scoring import measure_chunks, score_checkpoint
from hyena_blt_savanna.training.pretrain import DIVERGED

logger = logging.getLogger(__name__)

_LAUNCH = 'source launch/env.sh && exec "$PYTHON" tools/train.py "$1"'
_POLL_SECONDS = 0.2


class TrialFailedError(RuntimeError):
    """A training that ended without a result; the message names its log."""


@dataclass(frozen=True)
class Progress:
    """What a call of `run_trials` did.

    Attributes:
        finished: trials that have a result now.
        failed: trials that crashed, with the reason.
        is_complete: whether nothing is left to do.
    """

    finished: list[str]
    failed: dict[str, str]
    is_complete: bool


class TrialRunner:
    """Trains and scores one trial; threads may share one.

    Args:
        plan: of the benchmark.
        datasets: what is read.
        results: where results go.
        work: folder for runs.
        config_path: of the benchmark, for the command that a result names.
        num_threads: of one training.
        keep: whether checkpoints stay when the result is written.
    """

    def __init__(
        self,
        plan: Plan,
        datasets: Datasets,
        results: Results,
        work: Path,
        config_path: str,
        num_threads: int,
        keep: bool = False,
    ) -> None:
        self._plan = plan
        self._datasets = datasets
        self._results = results
        self._work = work
        self._config_path = config_path
        self._num_threads = num_threads
        self._keep = keep
        self._stop = datasets.stop

    def stop(self) -> None:
        """Ends the running trainings; they resume from their newest checkpoints."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def run(self, trial: Trial) -> TrialResult:
        """Trains to the end, from where an earlier call was stopped, scores, and writes the result.

        Raises:
            TrialFailedError: the training crashed.
            StoppedError: `stop` was called.
            ValueError: the recipe, the data or the boundaries have mistakes.
        """
        benchmark = self._plan.benchmark
        data = self._datasets.folder(trial.genome)
        boundaries = self._datasets.boundaries(trial.contender, trial.genome)
        window_bases = self._datasets.window_bases(trial.contender)
        baseline = benchmark.config.baseline
        if window_bases != self._datasets.window_bases(baseline):
            raise ConfigError(
                f"contender {trial.contender}: training.stages has windows of {window_bases:,} bases, and "
                f"{baseline} has others: figures are compared window by window, so give all the same window_bases"
            )
        held_out = self._datasets.held_out(trial.genome, window_bases)
        folder = self._work / "trials" / f"{trial.name}.{self._plan.digest(trial)[:8]}"
        training = plan_training(benchmark, trial, folder / "run", data, boundaries, held_out.validation)
        if self.is_stopped:
            raise StoppedError(trial.name)
        logger.info(
            "%s: %s steps of %s bases, %.3g operations",
            trial.name,
            f"{training.num_steps:,}",
            f"{training.bases_per_step:,}",
            training.total_flops,
        )
        is_finished = self._train(folder, training)
        if not is_finished:
            result = self._describe(trial, training, boundaries, folder / "run")
        else:
            checkpoint = read_native(folder / "run")
            scores = score_checkpoint(
                checkpoint,
                data / "test",
                boundaries.annotation,
                window_bases,
                held_out.test,
                benchmark.config.held_out.skipped_bases,
            )
            if isinstance(checkpoint.module, HNet):
                mean, sd = measure_chunks(checkpoint.module, data / "test", window_bases, held_out.test)
                boundaries = replace(boundaries, mean_bases=mean, sd_bases=sd)
                training = replace(training, flops_per_base=_spent_per_base(folder / "run"))
            result = self._describe(
                trial,
                training,
                boundaries,
                folder / "run",
                HeldOutScores(bits_per_base=scores.bits_per_base, **_rounded(asdict(scores))),
                checkpoint.module,
            )
        self._results.write(result)
        if not self._keep:
            shutil.rmtree(folder / "run" / "checkpoints", ignore_errors=True)
        return result

    def _train(self, folder: Path, training: TrainingPlan) -> bool:
        """Whether the training came to its end; otherwise it diverged."""
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "run.yaml"
        config.write_text(yaml.safe_dump(training.config.to_dict(), sort_keys=False))
        log = folder / "train.log"
        command = ["bash", "-c", _LAUNCH, "train", str(config.resolve())]
        code = run_process(command, log, self._num_threads, self._stop)
        if code in (0, DIVERGED):
            return code == 0
        raise TrialFailedError(f"the training ended with code {code}, see {log}: {last_line(log)}")

    def _describe(
        self,
        trial: Trial,
        training: TrainingPlan,
        boundaries: Boundaries,
        run: Path,
        test: HeldOutScores | None = None,
        module: nn.Module | None = None,
    ) -> TrialResult:
        lines = _metrics(run)
        steps = [line for line in lines if line["kind"] == "training"]
        start: dict[str, Any] = next((line for line in lines if line["kind"] == "start"), {})
        facts = {
            "num_parameters": start.get("num_parameters"),
            "num_table_parameters": _table_parameters(module) if module is not None else None,
            "num_steps": training.num_steps,
            "bases_per_step": training.bases_per_step,
            "bases": training.num_steps * training.bases_per_step,
            "flops_per_base": round(training.flops_per_base),
            "entropy_flops": round(training.entropy_flops),
            "total_flops": training.total_flops,
            "mean_patch_bases": boundaries.mean_bases,
            "sd_patch_bases": boundaries.sd_bases,
            "seconds": steps[-1]["seconds"] if steps else None,
            "bases_per_second": statistics.median(line["bases_per_second"] for line in steps) if steps else None,
            "num_threads": self._num_threads,
            "precision": start.get("precision"),
        }
        return TrialResult(
            **asdict(trial),
            title=self._plan.benchmark.contenders[trial.contender].title,
            digest=self._plan.digest(trial),
            outcome="diverged" if test is None else "finished",
            command=self._plan.command(self._config_path, trial),
            commit=current_commit(),
            machine=describe_machine(),
            versions=describe_versions(),
            facts={key: value for key, value in facts.items() if value is not None},
            curve=_curve(lines, training, boundaries),
            test=test,
            recipe=_recipe(training),
        )


def run_trials(
    runner: TrialRunner,
    plan: Plan,
    results: Results,
    num_workers: int,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Trains what is missing, several at a time, until all is there or the time is over.

    Args:
        runner: of single trials.
        plan: which trials there are.
        results: which of them are done.
        num_workers: trainings at a time.
        seconds: running trainings are stopped after this long; None never stops them.
        clock: seconds.

    Raises:
        ResultError: a result can't be read.
        ConfigError: a contender's file has mistakes.
    """
    began = clock()
    fresh, stale = results.fresh(plan)
    for name in stale:
        logger.info("%s: its recipe has changed, so its result is out of date", name)
    outcomes = {name: result.validation_bits for name, result in fresh.items()}
    running: dict[Future[TrialResult], Trial] = {}
    finished: list[str] = []
    failed: dict[str, str] = {}

    def is_over() -> bool:
        return seconds is not None and clock() - began >= seconds

    with ThreadPoolExecutor(num_workers) as pool:
        try:
            while True:
                left = _startable(plan, outcomes, failed, running)
                while left and len(running) < num_workers and not runner.is_stopped and not is_over():
                    trial = left.pop(0)
                    running[pool.submit(runner.run, trial)] = trial
                if not running:
                    break
                done, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    trial = running.pop(future)
                    _collect(trial, future, outcomes, finished, failed)
                if is_over() and not runner.is_stopped:
                    logger.info("the time is over: %d training(s) are stopped, and go on next time", len(running))
                    runner.stop()
        except BaseException:
            runner.stop()
            raise
    return Progress(finished, failed, is_complete=not failed and not _startable(plan, outcomes, {}, {}))


def _startable(
    plan: Plan, outcomes: dict[str, float], failed: dict[str, str], running: dict[Future[TrialResult], Trial]
) -> list[Trial]:
    busy = {trial.name for trial in running.values()}
    return [
        trial
        for trial in plan.wanted(outcomes)
        if trial.name not in outcomes and trial.name not in failed and trial.name not in busy
    ]


def _collect(
    trial: Trial,
    future: Future[TrialResult],
    outcomes: dict[str, float],
    finished: list[str],
    failed: dict[str, str],
) -> None:
    try:
        result = future.result()
    except StoppedError:
        logger.info("%s: stopped", trial.name)
    except (TrialFailedError, ValueError, OSError) as error:
        failed[trial.name] = str(error)
        logger.error("%s: failed: %s", trial.name, error)
    else:
        outcomes[trial.name] = result.validation_bits
        finished.append(trial.name)
        if result.test is None:
            logger.info("%s: diverged", trial.name)
        else:
            logger.info(
                "%s: validation %.4f, test %.4f bits per base",
                trial.name,
                result.validation_bits,
                result.test.bits_per_base,
            )


def _curve(lines: list[dict[str, Any]], training: TrainingPlan, boundaries: Boundaries) -> list[CurvePoint]:
    seconds = {line["step"]: line["seconds"] for line in lines if line["kind"] == "training"}
    points = []
    for line in lines:
        if line["kind"] != "validation" or line["bits_per_base"] is None:
            continue
        step = line["step"]
        nearest = min(seconds, key=lambda logged: abs(logged - step))
        points.append(
            CurvePoint(
                step=step,
                flops=training.flops_at(step, boundaries.cost),
                seconds=round(seconds[nearest] * step / nearest, 2),
                bases=step * training.bases_per_step,
                bits_per_base=round(line["bits_per_base"], 6),
            )
        )
    return points


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _spent_per_base(run: Path) -> float:
    """Operations of a model that finds its own chunks, of the lengths that it found."""
    return statistics.fmean(line["flops_per_base"] for line in _metrics(run) if line["kind"] == "training")


def _recipe(training: TrainingPlan) -> dict[str, Any]:
    flat = flatten(training.tree)
    local = ("run", "data.folder")
    # A list of windows is said by its digest: it follows from the data and the benchmark.
    windows = flat.pop("training.validation.windows")
    return {key: value for key, value in flat.items() if key not in local} | {
        "training.validation.windows": f"{len(windows)} windows, digest {digest_of(windows)}"
    }


def _rounded(scores: dict[str, Any]) -> dict[str, Any]:
    return {**scores, "nats": [round(nats, 2) for nats in scores["nats"]]}


def _table_parameters(module: nn.Module) -> int:
    tables = [part for part in module.modules() if isinstance(part, KmerTables)]
    return sum(weight.numel() for table in tables for weight in table.parameters())
