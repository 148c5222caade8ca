"""Law 5: a run that is stopped and resumed equals the run that was not, bit for bit."""

from __future__ import annotations

import json
import logging
import math
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_training import ToyBatch, ToyModel, split_windows, toy_windows
from hyena_blt_savanna.training.checkpoints import CheckpointConfig, CheckpointError, Checkpoints, Progress
from hyena_blt_savanna.training.engine import TrainingEngine
from hyena_blt_savanna.training.loop import Plan, TrainingLoop
from hyena_blt_savanna.training.metrics import Reporter
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.schedule import ScheduleConfig, StageConfig
from hyena_blt_savanna.training.validation import Validation, validate

STAGES = [
    StageConfig(steps=4, window_bases=16, batch_windows=4, micro_batch_windows=2),
    StageConfig(steps=5, window_bases=32, batch_windows=8, micro_batch_windows=2),
]
RUN_CONFIG = {"model": {"kind": "toy", "width": 16}}


class KilledError(Exception):
    """Stands for the end of the process."""


class ToyRun:
    """A run in a folder, on batches that are a function of stage, step and rank.

    Args:
        folder: of the run.
        ranks: of this group.
        zero_stage: of DeepSpeed.
        kill_at: the batches of this step, counted over all stages, are never given.
        random_weights: whether each rank's generators decide what is learned, as with dropout.
    """

    def __init__(
        self, folder: Path, ranks: Ranks, zero_stage: int, kill_at: int | None = None, random_weights: bool = True
    ) -> None:
        self.ranks = ranks
        self.kill_at = kill_at
        self.random_weights = random_weights
        torch.manual_seed(3)
        self.engine = TrainingEngine(
            ToyModel(),
            ranks,
            OptimizerConfig(lr=1e-2),
            1.0,
            deepspeed_block={"zero_optimization": {"stage": zero_stage}},
        )
        self.checkpoints = Checkpoints(
            folder / "checkpoints", CheckpointConfig(every_steps=3, keep_last=2, keep_every=0), RUN_CONFIG, ranks
        )
        folder.mkdir(exist_ok=True)
        self.metrics = folder / "metrics.jsonl"

    @contextmanager
    def open_stage(self, stage: int, start_step: int) -> Iterator[Iterator[ToyBatch]]:
        yield self.micro_batches(stage, start_step)

    def micro_batches(self, stage: int, start_step: int) -> Iterator[ToyBatch]:
        settings = STAGES[stage]
        for step in range(start_step, settings.steps):
            if self.kill_at == step + sum(earlier.steps for earlier in STAGES[:stage]):
                raise KilledError
            batch = toy_windows(settings.batch_windows, settings.window_bases, seed=100 * stage + step)
            draw = torch.rand(()) + np.random.random() if self.random_weights else 1.0
            mine = split_windows(batch, self.ranks.num_ranks)[self.ranks.rank]
            mine = ToyBatch(mine.bases, mine.patch_lengths, mine.loss_weights * draw)
            yield from split_windows(mine, settings.num_micro_batches(self.ranks.num_ranks))

    def validate(self, stage: int) -> Validation:
        windows = toy_windows(5, seed=999)
        totals = validate(
            self.engine,
            range(5),
            2,
            lambda chosen: ToyBatch(
                windows.bases[list(chosen)], windows.patch_lengths[list(chosen)], windows.loss_weights[list(chosen)]
            ),
        )
        return Validation({"toy": totals}, {"toy": 1.0})

    def run(self) -> Progress:
        torch.manual_seed(17 + self.ranks.rank)
        np.random.seed(17 + self.ranks.rank)
        newest = self.checkpoints.find_newest()
        progress = self.checkpoints.load(self.engine, newest) if newest else Progress()
        plan = Plan(STAGES, ScheduleConfig(warmup_steps=2), 1e-2, 2, 4, 3)
        reporter = Reporter(self.metrics, self.ranks.is_first, plan.num_steps)
        reporter.start(progress.step, {})
        loop = TrainingLoop(
            plan,
            self.engine,
            self.open_stage,
            self.checkpoints,
            reporter,
            self.validate,
            lambda stage, patch: 10.0 * patch,
            peak_flops=1e12,
        )
        return loop.run(progress)


def lines_of(path: Path) -> list[dict]:
    timed = ("second", "utilisation", "patches_per", "slowest_rank", "memory")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # A checkpoint is told of when it is written, which may be at a later step.
    lines.sort(key=lambda line: line["kind"] == "checkpoint")
    return [
        {key: value for key, value in line.items() if not any(word in key for word in timed)}
        for line in lines
        if line["kind"] not in ("start", "first_step")
    ]


def check_resumed_equals_undisturbed(ranks: Ranks, folder: Path, zero_stage: int) -> None:
    whole = ToyRun(folder / "whole", ranks, zero_stage)
    done = whole.run()
    wanted = whole.engine.consolidated_weights()
    assert done.step == 9
    # Killed in the first stage without a checkpoint, between checkpoints, and right before the last step.
    for kill_at in (2, 5, 8):
        with pytest.raises(KilledError):
            ToyRun(folder / "killed", ranks, zero_stage, kill_at).run()
    resumed = ToyRun(folder / "killed", ranks, zero_stage)
    again = resumed.run()
    assert (again.step, again.bases) == (done.step, done.bases)
    found = resumed.engine.consolidated_weights()
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), f"ZeRO {zero_stage}: {name}"
    if ranks.is_first:
        lines = lines_of(resumed.metrics)
        assert lines == lines_of(whole.metrics)
        assert [line["step"] for line in lines if line["kind"] == "training"] == [2, 4, 6, 8, 9]
        assert [line["step"] for line in lines if line["kind"] == "validation"] == [4, 8, 9]
        assert [line["step"] for line in lines if line["kind"] == "checkpoint"] == [3, 6, 9]
        assert sorted(path.name for path in resumed.checkpoints.folder.iterdir()) == ["step_00000006", "step_00000009"]
    ranks.wait()


def check_broken_checkpoints_are_skipped(ranks: Ranks, folder: Path, caplog: list[str]) -> None:
    run = ToyRun(folder / "whole", ranks, 0)
    newest = run.checkpoints.find_newest()
    assert newest is not None
    assert newest.name == "step_00000009"
    if ranks.is_first:
        weights = next(newest.rglob("*model_states.pt"))
        with weights.open("rb+") as file:
            file.seek(1000)
            byte = file.read(1)
            file.seek(1000)
            file.write(bytes([byte[0] ^ 1]))
    ranks.wait()
    assert run.checkpoints.find_newest() == newest.with_name("step_00000006")
    if ranks.is_first:
        assert "step_00000009" in caplog[-1]
        assert "has changed" in caplog[-1]
        assert "the checkpoint before it is tried" in caplog[-1]
        (newest.with_name("step_00000006") / "manifest.json").unlink()
        # What a killed run leaves: an unfinished checkpoint, and a removal that was cut short.
        (newest.parent / "step_00000012.partial" / "deepspeed").mkdir(parents=True)
        (newest.parent / ".step_00000003.deleted").mkdir()
    ranks.wait()
    assert run.checkpoints.find_newest() is None
    if ranks.is_first:
        assert "it was not finished" in caplog[-1]
        assert sorted(path.name for path in newest.parent.iterdir()) == ["step_00000006", "step_00000009"]
    ranks.wait()


def check_other_runs_are_refused(ranks: Ranks, folder: Path) -> None:
    run = ToyRun(folder / "whole", ranks, 1)
    newest = run.checkpoints.find_newest()
    assert newest is not None
    run.checkpoints.run_config["model"] = {"kind": "toy", "width": 32, "depth": 2}
    with pytest.raises(CheckpointError) as caught:
        run.checkpoints.load(run.engine, newest)
    assert "model.width: 16 in the checkpoint, 32 in the run" in str(caught.value)
    assert "model.depth: None in the checkpoint, 2 in the run" in str(caught.value)
    run.checkpoints.run_config["model"] = {"kind": "toy", "width": 16}


def check_failed_save_leaves_the_earlier_ones(ranks: Ranks, folder: Path) -> None:
    """No file may grow beyond 8,192 bytes: DeepSpeed's own writing fails half-way, as on a full disk."""
    run = ToyRun(folder / "whole", ranks, 0)
    before = sorted(path.name for path in run.checkpoints.folder.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"step_00000100: .*could not be written.*earlier checkpoints are whole"
        ):
            run.checkpoints.save(run.engine, Progress(step=100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in run.checkpoints.folder.iterdir()) == before


def all_cases(folder: Path, between: Path, then: Sequence[Callable[[Path], None]]) -> None:
    ranks = join_ranks()
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("hyena_blt_savanna").addHandler(handler)
    for zero_stage in (0, 1, 2, 3):
        check_resumed_equals_undisturbed(ranks, folder / f"zero{zero_stage}", zero_stage)
    check_other_runs_are_refused(ranks, folder / "zero1")
    if ranks.num_ranks == 1:
        check_failed_save_leaves_the_earlier_ones(ranks, folder / "zero0")
    check_broken_checkpoints_are_skipped(ranks, folder / "zero0", warnings)
    if ranks.num_ranks == 2:
        ToyRun(between / "two", ranks, 0, random_weights=False).run()
        with pytest.raises(KilledError):
            ToyRun(between / "moved", ranks, 0, kill_at=7, random_weights=False).run()
    for case in then:
        case(between)


def goes_on_alone(folder: Path) -> None:
    """One rank goes on where two were killed, and learns from the same samples."""
    ranks = join_ranks()
    run = ToyRun(folder / "moved", ranks, 0, random_weights=False)
    assert run.run().step == 9
    for found, wanted in zip(lines_of(run.metrics), lines_of(folder / "two" / "metrics.jsonl"), strict=True):
        assert [found[key] for key in ("step", "kind")] == [wanted[key] for key in ("step", "kind")]
        for key in {"loss", "grad_norm", "lr", "mean_patch_bases", "num_bases"} & wanted.keys():
            assert math.isclose(found[key], wanted[key], rel_tol=1e-3), (found["step"], key)


@pytest.mark.slow
def test_resumed_run_equals_undisturbed_run(tmp_path: Path) -> None:
    for num_ranks, then in ((2, ()), (1, (goes_on_alone,))):
        folder = tmp_path / f"ranks{num_ranks}"
        for stage in (0, 1, 2, 3):
            (folder / f"zero{stage}").mkdir(parents=True)
        run_ranks(all_cases, num_ranks, folder, tmp_path, then, timeout_seconds=300)
