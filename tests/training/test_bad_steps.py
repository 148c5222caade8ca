"""Steps that are not learned from leave no trace, and are told with their samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_training import ToyBatch, ToyModel, split_windows, toy_windows
from hyena_blt_savanna.training.bad_steps import BadStepsConfig, why_bad
from hyena_blt_savanna.training.checkpoints import CheckpointConfig, Checkpoints, Progress
from hyena_blt_savanna.training.engine import DivergedError, TrainingEngine
from hyena_blt_savanna.training.loop import Plan, TrainingLoop
from hyena_blt_savanna.training.metrics import Reporter
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.schedule import ScheduleConfig, StageConfig

NUM_WINDOWS = 4


def test_why_a_loss_is_bad():
    config = BadStepsConfig(spike_deviations=3.0, history_steps=4)
    recent = [1.0, 1.2, 1.0, 1.2]
    assert why_bad(1.39, recent, config) is None
    assert why_bad(1.41, recent, config) == (
        "the loss is 1.4100, above 1.4000: 3 standard deviations of 0.1000 above the mean 1.1000 of the last 4 steps"
    )
    assert why_bad(9.0, recent[1:], config) is None
    assert why_bad(9.0, recent, BadStepsConfig()) is None
    assert why_bad(math.nan, recent, BadStepsConfig()) == "the loss is nan"


def build(ranks: Ranks, zero_stage: int) -> TrainingEngine:
    torch.manual_seed(3)
    block = {"zero_optimization": {"stage": zero_stage}}
    return TrainingEngine(ToyModel(), ranks, OptimizerConfig(lr=1e-2), 1.0, deepspeed_block=block)


def learn(engine: TrainingEngine, ranks: Ranks, batch: ToyBatch, is_good: bool = True) -> float:
    mine = split_windows(split_windows(batch, ranks.num_ranks)[ranks.rank], 2)
    engine.accumulate(mine, is_good=lambda nats: is_good)
    return engine.update(1e-2)


def check_no_trace(ranks: Ranks, zero_stage: int) -> None:
    batches = [toy_windows(NUM_WINDOWS, seed=seed) for seed in range(3)]
    plain, disturbed = build(ranks, zero_stage), build(ranks, zero_stage)
    for engine in (plain, disturbed):
        learn(engine, ranks, batches[0])
    with pytest.raises(DivergedError, match="the weights are those before this step"):
        learn(disturbed, ranks, batches[1], is_good=False)
    assert disturbed.deepspeed.global_steps == 2
    norms = [learn(engine, ranks, batches[2]) for engine in (plain, disturbed)]
    assert norms[0] == norms[1], f"ZeRO {zero_stage}"
    found, wanted = disturbed.consolidated_weights(), plain.consolidated_weights()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), f"ZeRO {zero_stage}: {name}"


class ToyLoop:
    """Steps on one batch but for the bad ones; a constant rate, so that a step's number decides nothing."""

    def __init__(self, folder: Path, ranks: Ranks, steps: int, bad: tuple[int, ...] = (), **bad_steps: object) -> None:
        folder.mkdir(exist_ok=True)
        self.bad, self.ranks = bad, ranks
        self.metrics = folder / "metrics.jsonl"
        self.engine = build(ranks, 0)
        plan = Plan(
            [StageConfig(steps=steps, window_bases=16, batch_windows=NUM_WINDOWS)],
            ScheduleConfig(warmup_steps=0, min_lr_ratio=1.0),
            1e-2,
            1,
            0,
            3,
            BadStepsConfig.parse(bad_steps),
        )
        self.loop = TrainingLoop(
            plan,
            self.engine,
            self.open_stage,
            Checkpoints(folder / "checkpoints", CheckpointConfig(every_steps=3), {}, ranks),
            Reporter(self.metrics, ranks.is_first, steps),
            None,
            lambda stage, patch: 1.0,
            1e12,
        )

    @contextmanager
    def open_stage(self, stage: int, start_step: int) -> Iterator[Iterator[ToyBatch]]:
        yield (self.batch(step) for step in range(start_step, 100))

    def batch(self, step: int) -> ToyBatch:
        batch = toy_windows(NUM_WINDOWS, seed=7 if step in self.bad else 0)
        return split_windows(batch, self.ranks.num_ranks)[self.ranks.rank]

    def run(self) -> dict[str, torch.Tensor]:
        assert self.loop.run(Progress()).step == self.loop.plan.num_steps
        return self.engine.consolidated_weights()

    def events(self) -> list[dict]:
        return [line for line in map(json.loads, self.metrics.read_text().splitlines()) if line["kind"] == "bad_step"]


SPIKES = {"spike_deviations": 0.01, "history_steps": 3}


def check_policies(ranks: Ranks, folder: Path) -> None:
    # Nine steps of which the eighth is bad: as eight good ones; or, from the checkpoint of step 6, as seven.
    for action, num_like, rolled_back in (("skip", 8, None), ("roll_back", 7, 6)):
        run = ToyLoop(folder / action, ranks, 9, bad=(7,), action=action, **SPIKES)
        found, wanted = run.run(), ToyLoop(folder / f"like_{action}", ranks, num_like).run()
        for name in wanted:
            assert torch.equal(found[name], wanted[name]), f"{action}: {name}"
        assert run.engine.deepspeed.global_steps == 9
        if ranks.is_first:
            [event] = run.events()
            assert (event["step"], event["action"], event["stage"]) == (8, action, 0)
            assert (event["first_sample"], event["last_sample"]) == (28, 31)
            assert "standard deviations" in event["reason"]
            assert event.get("rolled_back_to_step") == rolled_back
            steps = [line["step"] for line in map(json.loads, run.metrics.read_text().splitlines())]
            assert steps.count(8) == 1
    for action, bad, at in (("stop", (5,), 6), ("skip", (5, 6, 7), 7)):
        run = ToyLoop(folder / f"stops_{action}", ranks, 12, bad=bad, action=action, most_in_a_row=2, **SPIKES)
        with pytest.raises(DivergedError):
            run.run()
        if ranks.is_first:
            assert (run.events()[-1]["step"], run.events()[-1]["action"]) == (at, "stop")


def all_cases(folder: Path) -> None:
    ranks = join_ranks()
    for zero_stage in (0, 1, 2, 3):
        check_no_trace(ranks, zero_stage)
    check_policies(ranks, folder)


@pytest.mark.slow
def test_bad_steps_leave_no_trace(tmp_path):
    run_ranks(all_cases, 2, tmp_path)
