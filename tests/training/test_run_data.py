"""What a run reads: without boundaries, without a fold, cut anew; and what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.data.folds import LeftOut
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import read_manifest
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.parallel.mesh import ParallelConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import StaticRule
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset
from hyena_blt_savanna.training.ranks import Ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData

RANKS = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
ISOTROPIC = {"kind": "isotropic", "stack": {"width": 16, "blocks": ["hyena_se"]}}


def config_for(toy_config: Path, folder: Path, *overrides: str, model: dict | None = None) -> RunConfig:
    tree = yaml.safe_load(toy_config.read_text())
    tree["run"], tree["data"]["folder"] = "runs/toy", str(folder)
    if model is not None:
        tree["model"] = model
    path = toy_config.parent / "here.yaml"
    path.write_text(yaml.safe_dump(tree))
    return RunConfig.load([path, *overrides])


def patch_means(data: RunData, stage: int, steps: range) -> list[float]:
    """Mean patch of steps of a stage."""
    means = []
    with data.open_stage(stage, steps.start) as batches:
        for _ in steps:
            batch = next(batches)
            means.append(batch.num_bases / float((batch.patch_lengths > 0).sum() - len(batch.patch_lengths)))
    return means


def test_single_bases_need_no_boundaries(toy_config, tmp_path):
    for name, num_bases in (("train", 3000), ("validation", 800)):
        write_dataset(tmp_path / name, [random_genome(num_bases, seed=1)])
    data = RunData(config_for(toy_config, tmp_path, "data.annotation=null", model=ISOTROPIC), RANKS)
    assert patch_means(data, 0, range(3)) == [1.0] * 3


def test_a_limit_rises_over_all_stages(toy_config, annotated):
    overrides = ["data.cuts.first_factor=0.5", "data.cuts.last_factor=1.5", "data.cuts.settled_at=1.0"]
    data = RunData(config_for(toy_config, annotated, *overrides), RANKS)
    first, last = patch_means(data, 0, range(24)), patch_means(data, 1, range(16))
    thirds = [sum(part) / len(part) for part in (first[:8], first[8:16], first[16:], last[:8], last[8:])]
    assert thirds == sorted(thirds)
    assert thirds[0] < 3 < 4.5 < thirds[-1]


def test_a_checkpoint_knows_what_it_was_trained_on(toy_config, annotated, tmp_path):
    overrides = ["data.left_out.fold=1", "data.left_out.folds=3"]
    config = config_for(toy_config, annotated, *overrides)
    RunData(config, RANKS).native_writer()(tmp_path / "native", config.model.build().state_dict(), 1)
    native = read_native(tmp_path / "native")
    sha256 = read_manifest(annotated / "train").data_sha256
    assert native.trained_on == {"data_sha256": sha256, "left_out": {"fold": 1, "folds": 3}}
    assert native.patcher is not None
    assert native.patcher.describe() == Patcher.load(annotated / "patches.patcher").describe()


def test_a_fold_that_is_left_out_is_not_read(toy_config, annotated):
    config = config_for(
        toy_config, annotated, "data.left_out.fold=0", "data.left_out.folds=3", "data.annotation=null", model=ISOTROPIC
    )
    stream = bytes(IndexedReader(annotated / "train").stream).upper()
    start, stop = fold_edges(len(stream), 3)[:2]
    assert config.data.left_out == LeftOut(fold=0, folds=3)
    seen = set()
    with RunData(config, RANKS).open_stage(0, 0) as batches:
        for _ in range(60):
            for row in next(batches).bases.tolist():
                text = bytes(row[1:])
                seen |= {text[i : i + 24] for i in range(len(text) - 23)}
    left_out = {stream[i : i + 24] for i in range(start, stop - 23)}
    kept = {stream[i : i + 24] for i in range(stop, len(stream) - 23)}
    assert not seen & left_out
    assert len(seen & kept) > 0.8 * len(kept)


@pytest.mark.parametrize(
    ("model", "overrides", "says"),
    [
        (None, ["data.annotation=null"], "data.annotation is null, and model.kind hyena_blt reads patches"),
        (ISOTROPIC, ["data.cuts.spread=2"], "data.cuts is for a model of patches, and model.kind is isotropic"),
        (ISOTROPIC, ["data.cuts.spread=2", "data.annotation=null"], "cuts changes the patches of an annotation"),
        (None, ["data.left_out.fold=2", "data.left_out.folds=2"], "give at most 1"),
        (None, ["data.left_out={fold: 0, folds: 2}", "start_from=a"], "start_from may have seen it"),
    ],
)
def test_settings_that_contradict_each_other(toy_config, annotated, model, overrides, says):
    with pytest.raises(ConfigError, match=says):
        config_for(toy_config, annotated, *overrides, model=model)


def test_data_that_lack_what_is_asked_for(toy_config, toy_data, annotated, tmp_path):
    with pytest.raises(DataError, match=r"patches\.patcher: no such folder, and data\.cuts multiplies the limit"):
        RunData(config_for(toy_config, toy_data, "data.cuts.spread=2"), RANKS)
    unfinished = shutil.copytree(annotated, tmp_path / "unfinished")
    patcher = Patcher.load(annotated / "patches.patcher")
    for other in (patcher.scaled(2.0), Patcher(None, StaticRule())):
        other.save(unfinished / "patches.patcher")
        with pytest.raises(
            DataError, match=r"patches\.patcher is not the patcher that cut .*unfinished: .*not finished"
        ):
            RunData(config_for(toy_config, unfinished), RANKS)
    with pytest.raises(DataError, match=r"up to 12 bases, and the model has places for 8: set model\.max_patch_bases"):
        RunData(config_for(toy_config, annotated, "data.cuts.static_share=0.5"), RANKS)


def windows_of_step(config: RunConfig, num_ranks: int, num_context: int, step: int) -> list[tuple[bytes, list, list]]:
    """Bases, patches and weights of the windows of a step in order, put together from what all ranks read."""
    found = []
    config = config.model_copy(update={"parallel": ParallelConfig(context=num_context)})
    for data_rank in range(num_ranks // num_context):
        slices = []
        for context_rank in range(num_context):
            ranks = Ranks(data_rank * num_context + context_rank, num_ranks, torch.device("cpu"))
            with RunData(config, ranks).open_stage(0, step) as batches:
                num_own = 4 * num_context // num_ranks
                slices.append([batch for batch, _ in zip(batches, range(num_own), strict=False)])
        for parts in zip(*slices, strict=True):
            bases, lengths, weights = b"", [], []
            for part in parts:
                own = slice(int(part.patch_lengths[0, : part.left_patches].sum()), int(part.patch_lengths[0].sum()))
                bases += bytes(part.bases[0, own].tolist())
                weights += part.loss_weights[0, own].tolist()
                lengths += [length for length in part.patch_lengths[0, part.left_patches :].tolist() if length]
            found.append((bases, lengths, weights))
    return found


@pytest.mark.parametrize("cuts", ["null", "{spread: 1.5, random_share: 0.5, blind_patch_bases: [2, 8]}"])
def test_all_meshes_see_the_same_windows(toy_config, annotated, cuts):
    stages = "training.stages=[{steps: 3, window_bases: 128, batch_windows: 4, micro_batch_windows: 1}]"
    config = config_for(toy_config, annotated, stages, f"data.cuts={cuts}")
    alone = windows_of_step(config, 1, 1, step=2)
    assert len({bases for bases, _, _ in alone}) == 4
    for num_ranks, num_context in ((4, 1), (4, 2), (4, 4)):
        assert windows_of_step(config, num_ranks, num_context, step=2) == alone


@pytest.mark.parametrize(
    ("window_bases", "overrides", "says"),
    [
        (
            31,
            [],
            r"stages\.0\.window_bases 31 may be as few as 3 patches of 8 bases in .*parallel\.context 4 .*"
            r"at most 3, or windows of at least 32 bases",
        ),
        (
            256,
            [
                *("training.stages.1.context=4", "parallel.context=1", "data.window_patches=3"),
                *("training.stages.1.window_bases=512", "training.stages.1.length_warmup={steps: 5, from_bases: 256}"),
            ],
            r"window \(training\.stages\.1\.context 4\): take training\.stages\.1\.context of at most 3",
        ),
        (256, ["data.window_patches=3"], r"window_patches 3 leaves fewer .*at most 3, or window_patches of at least 4"),
        (32, ["data.window_patches=4"], None),
    ],
)
def test_windows_of_fewer_patches_than_context_ranks_are_refused(toy_config, toy_data, window_bases, overrides, says):
    ranks = Ranks(rank=1, num_ranks=4, device=torch.device("cpu"))
    stages = [{"steps": 6, "window_bases": bases, "batch_windows": 4} for bases in (window_bases, 256)]
    shared = f"training.stages={json.dumps(stages)}", "parallel.context=4", "model.global_model.num_heads=4"
    config = config_for(toy_config, toy_data, *shared, *overrides)
    with pytest.raises(DataError, match=says) if says else nullcontext():
        RunData(config, ranks)


def test_validation_takes_the_windows_that_are_named(toy_config, annotated, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "hyena_blt_savanna.training.run_data.validate", lambda engine, indices, size, batch_of: taken.append(indices)
    )
    config = config_for(toy_config, annotated, "training.validation.windows=[3, 0]")
    RunData(config, RANKS).validator(SimpleNamespace(ranks=RANKS))(0)
    assert taken == [[3, 0]]


def test_validation_is_of_the_stages_own_windows(toy_config, toy_data, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "hyena_blt_savanna.training.run_data.validate",
        lambda engine, indices, size, batch_of: taken.append((list(indices), size, batch_of(indices).bases.shape[1])),
    )
    for overrides in ([], ["training.validation.window_bases=64", "training.validation.micro_batch_windows=5"]):
        score = RunData(config_for(toy_config, toy_data, *overrides), RANKS).validator(SimpleNamespace(ranks=RANKS))
        for stage in (0, 1):
            score(stage)
    # 1,000 of 1,501 bases; four windows of a rank at once in the first stage, and one in the second.
    of_stages, of_64 = taken[:2], taken[2:]
    assert [(indices, size) for indices, size, _ in of_stages] == [([0, 1, 3, 5, 6, 8, 10], 4), ([0, 2, 4], 1)]
    assert [128 < width <= 128 * (1 + stage) + 8 for stage, (_, _, width) in enumerate(of_stages)] == [True, True]
    assert of_64[0] == of_64[1]
    assert (len(of_64[0][0]), of_64[0][1]) == (15, 5)


def test_a_validation_window_that_is_not_there_is_refused(toy_config, annotated):
    config = config_for(toy_config, annotated, "training.validation.windows=[0, 999]")
    with pytest.raises(
        DataError, match=r"training\.validation\.windows names window 999, and .* has \d+ of 128 bases to validate"
    ):
        RunData(config, RANKS)
