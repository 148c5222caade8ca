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
import torch
import yaml
from torch import distributed as dist

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.conversion.deepspeed_folder import weights_of
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset, write_random_boundaries
from hyena_blt_savanna.testing.toy_training import toy_windows
from hyena_blt_savanna.training import pretrain
from hyena_blt_savanna.training.loop import TrainingLoop
from hyena_blt_savanna.training.meshes import check_meshes
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData
from hyena_blt_savanna.training.schedule import ScheduleError
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
ALONE = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
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
    # With dropout, of which each group of ranks that shares windows has its own.
    shared = path, "deepspeed.zero_optimization.stage=1", "model.kmers.dropout=0.3"
    train(ranks, *shared, f"run={folder}/whole")
    # Before the border, at it, behind it and before the next checkpoint, and later.
    for event in (2, "border", 3, 5):
        with killed_before(event):
            train(ranks, *shared, f"run={folder}/killed")
    train(ranks, *shared, f"run={folder}/killed")
    train(ranks, *shared, f"run={folder}/by_hand", f"training.stages={[SHORT]}")
    train(ranks, *shared, f"run={folder}/by_hand", f"training.stages={[SHORT, LONG]}", "parallel.context=2")
    train(ranks, path, "deepspeed.zero_optimization.stage=3", f"run={folder}/plain")
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
    timed = ("second", "utilisation", "patches_per", "slowest_rank", "memory")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["kind"] not in ("start", "first_step")]
    # A checkpoint is told of when it is written, which may be at a later step.
    kept.sort(key=lambda line: line["kind"] == "checkpoint")
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
    for found, wanted in zip(lines_of(tmp_path / "plain"), lines_of(tmp_path / "alone"), strict=True):
        for key in {"step", "loss", "grad_norm", "mean_patch_bases", "num_bases"} & wanted.keys():
            assert found[key] == pytest.approx(wanted[key], rel=1e-5), (wanted["step"], key)
    check_each_stage_is_told_with_its_weights(whole)


def check_each_stage_is_told_with_its_weights(run: Path) -> None:
    for step, scale, window_bases, num_data in ((BORDER, 1, 128, 2), (LAST, 2, 256, 1)):
        folder = run / "checkpoints" / step
        assert len(list((folder / "random_states").iterdir())) == num_data
        native = read_native(folder)
        from_shards = weights_of(folder, read_training_state(folder))
        assert native.config == from_shards.config
        assert native.config.global_model.attention.rotary.position_scale == scale
        assert (native.window_bases, from_shards.window_bases) == (window_bases, window_bases)


def warmed_up(path: Path, *overrides: str) -> RunConfig:
    """One stage of windows of 64 and 128 bases for four steps, then of 256."""
    stage = {"steps": 6, "window_bases": 256, "batch_windows": 2, "micro_batch_windows": 1}
    stages = [stage | {"length_warmup": {"steps": 4, "from_bases": 64}}]
    return RunConfig.load([path, f"training.stages={json.dumps(stages)}", *overrides])


def read_windows(config: RunConfig, stage: int, step: int, num_windows: int, ranks: Ranks = ALONE) -> list[bytes]:
    """Bases of windows from a step of a stage on, without the byte in front."""
    found: list[bytes] = []
    with RunData(config, ranks).open_stage(stage, step) as batches:
        while len(found) < num_windows:
            batch = next(batches)
            num_bases = batch.patch_lengths.sum(1).tolist()
            found += [bytes(row[1:num]) for row, num in zip(batch.bases.tolist(), num_bases, strict=True)]
    return found[:num_windows]


def test_windows_grow_within_a_stage(staged, tmp_path):
    for name in ("train", "validation"):
        # Nothing in it comes twice, so that a window is found where it was read.
        write_dataset(tmp_path / name, [random_genome(3000, repeat_fraction=0)])
        write_random_boundaries(tmp_path / name, longest_patch_bases=8)
    config = warmed_up(staged, f"data.folder={tmp_path}", "data.strands=forward")
    ring = bytes(IndexedReader(tmp_path / "train").stream).upper()
    for step, window_bases, batch_windows in ((0, 64, 8), (2, 128, 4), (4, 256, 2)):
        windows = read_windows(config, 0, step, -(-len(ring) // window_bases))
        # A window holds the patches that start in it; an epoch holds each base.
        assert all(len(window) < window_bases + 8 for window in windows)
        starts = [(ring * 2).index(window) for window in windows]
        read = {
            (start + i) % len(ring) for start, window in zip(starts, windows, strict=True) for i in range(len(window))
        }
        assert len(read) == len(ring)
        # From any step of it, on any ranks.
        for rank in (0, 1):
            ranks = Ranks(rank, 2, torch.device("cpu"))
            mine = windows[batch_windows:][rank * batch_windows // 2 : (rank + 1) * batch_windows // 2]
            assert read_windows(config, 0, step + 1, batch_windows // 2, ranks) == mine


def test_each_stage_and_each_length_has_an_order_of_its_own(staged):
    growing = warmed_up(staged)
    stages = [{"steps": 2, "window_bases": window_bases, "batch_windows": 2} for window_bases in (64, 64, 128, 256)]
    plain = RunConfig.load([staged, f"training.stages={json.dumps(stages)}"])
    of_256 = RunConfig.load([staged, f"training.stages={json.dumps(stages[3:])}"])
    orders = [read_windows(plain, stage, 0, 20) for stage in range(2)]
    orders += [read_windows(growing, 0, 0, 20)]
    for index, order in enumerate(orders):
        assert all(order != other for other in orders[index + 1 :])
    # A window's length alone does not give its order away: 64 bases begin elsewhere than 128 do.
    assert read_windows(growing, 0, 2, 20) != read_windows(plain, 2, 0, 20)
    # A stage's own windows are those that it has without shorter ones before them.
    assert read_windows(growing, 0, 4, 20) == read_windows(of_256, 0, 0, 20)


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


def test_a_run_that_is_killed_while_windows_grow_goes_on(staged, tmp_path):
    ranks = join_ranks()
    config = warmed_up(staged, f"run={tmp_path / 'whole'}", "training.checkpoints.every_steps=3")
    pretrain.pretrain(config, ranks)
    killed = config.model_copy(update={"run": tmp_path / "killed"})
    with killed_before(5):
        pretrain.pretrain(killed, ranks)
    pretrain.pretrain(killed, ranks)
    assert lines_of(killed.run) == lines_of(config.run)
    weights = "checkpoints/step_00000006/native/model.safetensors"
    assert (killed.run / weights).read_bytes() == (config.run / weights).read_bytes()
    # Three steps have seen windows of 128 bases at most.
    longest = [read_native(config.run / "checkpoints" / step).window_bases for step in (BORDER, "step_00000006")]
    assert longest == [128, 256]


HNET = {
    "kind": "hnet",
    **{name: {"width": 16, "blocks": ["attention"]} for name in ("encoder", "main_network", "decoder")},
}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["training.stages.1.window_bases=64"],
            r"training\.stages: stage 1 begins with windows of 64 bases, and stage 0 ends with 128: give it at least",
        ),
        (
            ["training.stages.1.length_warmup={steps: 2, from_bases: 64}"],
            r"stage 1 begins with windows of 64 bases, and stage 0 ends with 128",
        ),
        (
            ["training.stages.1.length_warmup={steps: 2, from_bases: 100}"],
            r"stages\.1: length_warmup\.from_bases 100 can't be doubled to window_bases 256: choose from 128, 64, 32",
        ),
        (
            ["training.stages.1.window_bases=255", "training.stages.1.length_warmup={steps: 2, from_bases: 100}"],
            "can't be doubled to window_bases 255: give an even window_bases",
        ),
        (
            ["training.stages.0.length_warmup={steps: 1, from_bases: 32}"],
            "length_warmup.steps 1: 2 lengths from 32 bases on need at least 2 steps, and the window itself at least 1",
        ),
        (["training.stages.0.length_warmup={steps: 3, from_bases: 64}"], "at least 1 of the stage's 3"),
        (
            ["training.stages.0.window_bases=8", "training.stages.0.length_warmup={steps: 1, from_bases: 4}"],
            r"stages\.0\.length_warmup\.from_bases 4 is shorter than a patch may be \(model\.max_patch_bases 8\)",
        ),
        (
            ["training.stages.1.context=3"],
            r"training\.stages\.1\.context = 3 does not divide num_heads = 4 of the attention blocks: choose from",
        ),
        (
            ["model.global_model.blocks=[hyena_se]"],
            r"stages\.1\.rotary: no block of model\.global_model attends to the whole window.*leave rotary out",
        ),
        (["model.global_model.attention.window=9"], r"stages\.1\.rotary: no block of model\.global_model attends"),
        ([HNET], r"stages\.1\.rotary: model\.kind hnet has no one stack of blocks that reads whole windows"),
        (
            [HNET, "training.stages.1.rotary.position_scale=null"],
            r"training\.stages\.1\.context 2: windows are shared .*context=1",
        ),
    ],
)
def test_schedules_that_contradict_themselves(staged, overrides, says):
    if overrides[0] is HNET:
        tree = yaml.safe_load(staged.read_text())
        staged.write_text(yaml.safe_dump({**tree, "model": HNET}))
    with pytest.raises(ConfigError, match=says):
        RunConfig.load([staged, *(override for override in overrides if override is not HNET)])


def test_every_stage_is_checked_before_anything_is_built(staged, toy_data):
    three, four = (Ranks(0, num_ranks, torch.device("cpu")) for num_ranks in (3, 4))
    with pytest.raises(ConfigError, match=r"training\.stages\.1\.context = 2 does not divide the 3 ranks of this run"):
        pretrain.pretrain(RunConfig.load([staged, "training.stages.0.batch_windows=6"]), three)
    with pytest.raises(ScheduleError, match=r"training\.stages\.1: there are more ranks \(4\) than windows in a step"):
        pretrain.pretrain(RunConfig.load([staged, "training.stages.1.context=1"]), four)
    config = RunConfig.load([staged, "training.stages.1={window_bases: 6000, batch_windows: 8}"])
    with pytest.raises(DataError, match=r"has 4 windows of 6,000 bases, but 1 ranks with micro batches of 8 need 8"):
        RunData(config, Ranks(0, 2, torch.device("cpu")))
    config = RunConfig.load([staged, "training.validation.windows=[7]"])
    with pytest.raises(DataError, match=r"names window 7, and .* has 6 of 256 bases to validate on"):
        RunData(config, four)


@pytest.mark.parametrize(
    ("name", "model", "num_ranks", "overrides"),
    [
        ("length_warmup", "hyena_blt_10m", 1, []),
        *(("staged_1m", "hyena_blt_7b", num, [f"parallel.context={num}"]) for num in (2, 4, 8, 16)),
        ("staged_1m", "hyena_blt_1b", 8, ["model.global_model.num_heads=16"]),
        ("staged_1m", "hyena_blt_10m", 1, ["parallel.context=1", "training.stages.1.context=1"]),
        ("staged_1m", "hyena_blt_7b", 32, ["training.stages.2.batch_windows=4", "training.stages.1.batch_windows=16"]),
    ],
)
def test_presets_read_as_many_bases_in_every_step(name, model, num_ranks, overrides):
    files = [CONFIGS / "model" / f"{model}.yaml", CONFIGS / "training" / f"{name}.yaml"]
    config = RunConfig.load([*files, "run=runs/x", "data.folder=data", *overrides])
    check_meshes(config, num_ranks)
    if num_ranks <= 16:
        parts = [part for stage in config.training.stages for part in stage.parts]
        assert len({part.window_bases * part.batch_windows for part in parts}) == 1
        assert [part.window_bases for part in parts] == sorted(part.window_bases for part in parts)
