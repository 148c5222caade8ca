"""A run goes on from its checkpoint when settings have changed that DeepSpeed's files follow from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.testing.toy_training import split_windows, toy_windows
from hyena_blt_savanna.training.checkpoints import CheckpointConfig, CheckpointError, Checkpoints, Progress
from hyena_blt_savanna.training.engine import TrainingEngine
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.universal import read_training_state

STEPS = 2
# Its head is the module of its embedding.
MODEL = IsotropicConfig.parse({"stack": {"width": 8, "num_heads": 1, "blocks": ["hyena_se"]}})


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    return join_ranks()


class Run:
    """An engine and its checkpoints."""

    def __init__(self, folder: Path, ranks: Ranks, weight_decay: float = 0.1, **zero: Any) -> None:
        optimizer = OptimizerConfig(weight_decay=weight_decay)
        torch.manual_seed(len(zero))
        self.engine = TrainingEngine(MODEL.build(), ranks, optimizer, deepspeed_block={"zero_optimization": zero})
        config = {"training": {"optimizer": optimizer.to_dict()}, "deepspeed": {"zero_optimization": zero}}
        self.checkpoints = Checkpoints(folder, CheckpointConfig(), config, ranks)

    def train(self, start: int) -> list[float]:
        losses = []
        for step in range(start, start + STEPS):
            [windows] = split_windows(toy_windows(2, 40, seed=step), 1)
            sums = self.engine.accumulate([windows])
            self.engine.update(3e-3)
            losses.append(sums.nats / sums.weight)
        return losses

    def save(self) -> Path:
        self.train(0)
        return self.checkpoints.save(self.engine, Progress(step=STEPS))


def sub_groups(size: int) -> dict[str, int]:
    return {"stage": 3, "sub_group_size": size, "stage3_param_persistence_threshold": 60}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("was", "now"),
    [
        (sub_groups(1_000_000), sub_groups(300)),
        (sub_groups(300), sub_groups(1_000_000)),
        (sub_groups(300), {"stage": 0}),
        ({"stage": 1}, {"stage": 2, "offload_optimizer": {"device": "cpu"}}),
    ],
)
def test_other_cuts_go_on_with_the_same_losses(tmp_path: Path, ranks: Ranks, was: dict, now: dict) -> None:
    before, after = Run(tmp_path, ranks, **was), Run(tmp_path, ranks, **now)
    after.checkpoints.load(after.engine, before.save())
    assert after.train(STEPS) == pytest.approx(before.train(STEPS), abs=1e-5)


@pytest.mark.slow
def test_a_tied_weight_is_read_under_both_names(tmp_path: Path, ranks: Ranks) -> None:
    run = Run(tmp_path, ranks, stage=3)
    found = read_training_state(run.save()).weights
    wanted = run.engine.consolidated_weights()
    assert list(found) == list(wanted)
    assert "head.weight" in found
    assert all(torch.equal(found[name].load(), wanted[name]) for name in wanted)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_settings_of_the_optimizer_are_those_of_the_run(tmp_path: Path, ranks: Ranks, stage: int) -> None:
    before, after = Run(tmp_path, ranks, stage=stage), Run(tmp_path, ranks, weight_decay=0.3, stage=stage)
    after.checkpoints.load(after.engine, before.save())
    assert [group["weight_decay"] for group in after.engine.deepspeed.optimizer.param_groups] == [0.3, 0.0]
    assert after.train(STEPS) != before.train(STEPS)


@pytest.mark.slow
def test_files_that_name_wrong_places_are_not_put_together(tmp_path: Path, ranks: Ranks) -> None:
    before, after = (Run(tmp_path, ranks, stage=2, round_robin_gradients=on) for on in (True, False))
    path = before.save()
    with pytest.raises(CheckpointError, match=r"with deepspeed\.zero_optimization\.round_robin_gradients, and its"):
        after.checkpoints.load(after.engine, path)
