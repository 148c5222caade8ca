"""One command trains stages of other meshes, positions and windows: as the same stages run one by one."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from torch import distributed as dist

from hyena_blt_savanna.conversion.deepspeed_folder import weights_of
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_training import toy_windows
from hyena_blt_savanna.training import pretrain
from hyena_blt_savanna.training.loop import TrainingLoop
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.universal import read_training_state

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODEL = {
    "kind": "hyena_blt",
    "local_width": 16,
    "max_patch_bases": 8,
    "kmers": {"sizes": [2, 3]},
    "global_model": {"width": 16, "num_heads": 4, "blocks": ["hyena_se", "attention"]},
}
SHORT = {"steps": 3, "window_bases": 128, "batch_windows": 4}
LONG = {"steps": 4, "window_bases": 256, "batch_windows": 2, "rotary": {"position_scale": 2}}
BORDER, LAST = "step_00000003", "step_00000007"


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def staged(toy_config: Path, tmp_path: Path) -> Path:
    """A run of two stages, of which the second shares windows among two ranks and presses positions together."""
    tree = yaml.safe_load(toy_config.read_text())
    tree["training"] |= {
        "stages": [SHORT, LONG | {"context": 2}],
        # So that the rate does not depend on how many steps there are to come.
        "schedule": {"warmup_steps": 100},
        "validation": {"every_steps": 3, "num_bases": 500},
        "checkpoints": {"every_steps": 2, "keep_last": 9},
        "logging": {"every_steps": 2},
    }
    path = tmp_path / "staged.yaml"
    path.write_text(yaml.safe_dump({**tree, "model": MODEL, "run": str(tmp_path / "run")}))
    return path


@contextmanager
def killed_before(event: int | str) -> Iterator[None]:
    """Ends the run before a step, counted over all stages, or before the engine of a later stage is built."""
    step, build = TrainingLoop._step, pretrain.build_engine

    def step_or_die(loop: TrainingLoop, progress: Any, *args: Any) -> None:
        if progress.step == event:
            raise KilledError
        step(loop, progress, *args)

    def build_or_die(config: RunConfig, ranks: Ranks, stage: int, *args: Any) -> Any:
        if event == "border" and stage == 1:
            raise KilledError
        return build(config, ranks, stage, *args)

    with (
        patch.object(TrainingLoop, "_step", step_or_die),
        patch.object(pretrain, "build_engine", build_or_die),
        pytest.raises(KilledError),
    ):
        yield


def train(ranks: Ranks, *sources: str) -> None:
    pretrain.pretrain(RunConfig.load(sources), ranks)


def train_whole_killed_and_by_hand(path: str, folder: str) -> None:
    ranks = join_ranks()
    pretrain.measure_peak_flops = lambda device, dtype: 1e9  # type: ignore[assignment]
    zero = "deepspeed.zero_optimization.stage=1"
    train(ranks, path, zero, f"run={folder}/whole")
    # Before the border, at it, behind it and before the next checkpoint, and later.
    for event in (2, "border", 3, 5):
        with killed_before(event):
            train(ranks, path, zero, f"run={folder}/killed")
    train(ranks, path, zero, f"run={folder}/killed")
    train(ranks, path, zero, f"run={folder}/by_hand", f"training.stages={[SHORT]}")
    train(ranks, path, zero, f"run={folder}/by_hand", f"training.stages={[SHORT, LONG]}", "parallel.context=2")
    train(ranks, path, "deepspeed.zero_optimization.stage=3", f"run={folder}/zero3")
    check_memory_is_let_go(ranks, RunConfig.load([path]))


def check_memory_is_let_go(ranks: Ranks, config: RunConfig) -> None:
    """When an engine is closed and forgotten, neither its weights nor its optimizer's state stay."""
    for zero_stage in (0, 1, 2, 3):
        config = RunConfig.parse(config.to_dict() | {"deepspeed": {"zero_optimization": {"stage": zero_stage}}})
        context = ranks.with_context(2).mesh.build_context()
        engine = pretrain.build_engine(config, ranks, 0, context)
        engine.accumulate([toy_windows(2, 40)])
        engine.update(1e-3)
        optimizer = engine.deepspeed.optimizer
        optimizer = getattr(optimizer, "optimizer", optimizer)
        tensors = [tensor for state in optimizer.state.values() for tensor in state.values()]
        held = [weakref.ref(each) for each in [*engine.module.parameters(), *tensors]]
        assert len(held) > 20
        engine.close()
        context.close()
        with pytest.raises(ValueError, match="not registered"):
            dist.get_rank(context.group)  # type: ignore[attr-defined]
        del engine, context, optimizer, tensors
        gc.collect()
        assert not [each for each in held if each() is not None], f"ZeRO {zero_stage}"


def lines_of(run: Path) -> list[dict[str, Any]]:
    """What is the same whenever a run is made: no times."""
    timed = ("second", "utilisation", "patches_per")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["kind"] != "start"]
    return [{key: value for key, value in line.items() if not any(word in key for word in timed)} for line in kept]


@pytest.mark.slow
def test_one_command_equals_stages_by_hand_and_killed_runs(staged, tmp_path):
    run_ranks(train_whole_killed_and_by_hand, 2, str(staged), str(tmp_path), timeout_seconds=600)
    whole = tmp_path / "whole"
    starts = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["num_context"]) for line in starts if line["kind"] == "start"] == [(0, 1), (3, 2)]
    lines = lines_of(whole)
    assert [line["step"] for line in lines if line["kind"] == "checkpoint"] == [2, 3, 4, 6, 7]
    assert [(line["step"], line["stage"]) for line in lines if line["kind"] == "training"] == [
        (2, 0),
        (4, 1),
        (6, 1),
        (7, 1),
    ]
    assert lines_of(tmp_path / "killed") == lines
    for name in ("killed", "by_hand"):
        for step in (BORDER, LAST):
            weights = f"checkpoints/{step}/native/model.safetensors"
            assert (tmp_path / name / weights).read_bytes() == (whole / weights).read_bytes(), (name, step)
    # Neither ZeRO nor the mesh changes what is learned.
    assert pretrain.main([str(staged), f"run={tmp_path / 'alone'}", "training.stages.1.context=1"]) == 0
    for name in ("whole", "zero3"):
        for found, wanted in zip(lines_of(tmp_path / name), lines_of(tmp_path / "alone"), strict=True):
            for key in {"step", "loss", "grad_norm", "mean_patch_bases", "num_bases"} & wanted.keys():
                assert found[key] == pytest.approx(wanted[key], rel=1e-5), (name, wanted["step"], key)
    check_each_stage_is_told_with_its_weights(whole)


def check_each_stage_is_told_with_its_weights(run: Path) -> None:
    for step, scale, window_bases in ((BORDER, 1, 128), (LAST, 2, 256)):
        folder = run / "checkpoints" / step
        native = read_native(folder)
        from_shards = weights_of(folder, read_training_state(folder))
        assert native.config == from_shards.config
        assert native.config.global_model.attention.rotary.position_scale == scale
        assert (native.window_bases, from_shards.window_bases) == (window_bases, window_bases)


def test_positions_of_a_stage_are_its_models(staged):
    config = RunConfig.load([staged, "model.global_model.attention.rotary.base=500", "training.stages.0.rotary.base=9"])
    rotary = [config.model_of(stage).global_model.attention.rotary for stage in (0, 1)]
    assert [(each.base, each.position_scale) for each in rotary] == [(9, 1), (500, 2)]
    back = config.model_of(1).global_model.with_rotary(position_scale=1)
    assert config.model_of(1).model_copy(update={"global_model": back}) == config.model
    # What is built keeps only the inputs of its blocks, too.
    built = config.model_copy(
        update={"training": config.training.model_copy(update={"activation_checkpointing": True})}
    ).model_to_build(1)
    assert built.global_model.activation_checkpointing
    assert built.global_model.attention.rotary.position_scale == 2
