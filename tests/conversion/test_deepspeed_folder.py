"""A real run's training checkpoint: weights from its shards, its universal form, and a run that goes on from that."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from hyena_blt_savanna.conversion import deepspeed_folder
from hyena_blt_savanna.conversion.convert import Conversion
from hyena_blt_savanna.conversion.convert import convert as run_tool
from hyena_blt_savanna.conversion.universal import convert
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.data.errors import DiskFullError
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.evaluation.sealed_folder import seal, verify
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_genomes import write_toy_data
from hyena_blt_savanna.training import universal as universal_form
from hyena_blt_savanna.training.pretrain import pretrain
from hyena_blt_savanna.training.ranks import join_ranks
from hyena_blt_savanna.training.run_config import RunConfig

STEP = "step_00000006"


def run_all(runs: list[list[str]]) -> None:
    ranks = join_ranks()
    for arguments in runs:
        pretrain(RunConfig.load(arguments), ranks)


def losses(run: Path) -> dict[tuple[str, int], float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(line["kind"], line["step"]): line["loss"] for line in lines if "loss" in line}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_toy_data(folder, train=4000, validation=1000)
    path = folder / "run.yaml"
    # Losses are means over four steps, and the checkpoint lies half-way.
    training = {
        "stages": [{"steps": 12, "window_bases": 64, "batch_windows": 4}],
        "frozen": ["global_model.*"],
        "schedule": {"warmup_steps": 2},
        "validation": {"every_steps": 12, "num_bases": 500},
        "checkpoints": {"every_steps": 6, "keep_last": 2},
        "logging": {"every_steps": 4},
    }
    model = {
        "kind": "hyena_blt",
        "local_width": 8,
        "max_patch_bases": 8,
        "kmers": {"sizes": [2, 3]},
        "global_model": {"width": 10, "num_heads": 1, "blocks": ["hyena_se"]},
    }
    path.write_text(yaml.safe_dump({"data": {"folder": str(folder)}, "model": model, "training": training}))
    return path


@pytest.fixture(scope="module")
def runs(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs: `two`, of two ranks under ZeRO 3, and `one`, of one rank that went on from its universal form."""
    folder = tmp_path_factory.mktemp("runs")
    stage = "deepspeed.zero_optimization.stage"
    run_ranks(run_all, 2, [[str(config), f"run={folder / 'two'}", f"{stage}=3"]], timeout_seconds=300)
    # The universal form is made without the native part.
    bare = without_native(folder / "two" / "checkpoints" / STEP, folder / "bare" / STEP)
    notes = convert(bare, folder / "one" / "checkpoints" / STEP)
    assert notes[0] == "written after step 6 by 2 rank(s) under ZeRO 3"
    assert "RUN/checkpoints/step_00000006" in notes[1]
    run_ranks(run_all, 1, [[str(config), f"run={folder / 'one'}", f"{stage}=1"]], timeout_seconds=300)
    return folder


def without_native(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    shutil.rmtree(to / "native")
    return to


@pytest.mark.slow
def test_one_rank_goes_on_with_a_run_of_two(runs):
    wanted, found = losses(runs / "two"), losses(runs / "one")
    assert found.keys() == {("training", 8), ("training", 12), ("validation", 12)}
    for place, loss in found.items():
        assert math.isclose(loss, wanted[place], rel_tol=0, abs_tol=1e-5), place


@pytest.mark.slow
def test_weights_with_and_without_the_native_part(runs, tmp_path):
    path = runs / "two" / "checkpoints" / STEP
    native = read_native(path)
    wanted = native.module.state_dict()
    bare = without_native(path, tmp_path / STEP)
    for found in (deepspeed_folder.read(path), deepspeed_folder.read(bare)):
        assert found.config == native.config
        assert found.window_bases == native.window_bases == 64
        assert found.tensors.keys() == wanted.keys()
        assert all(torch.equal(found.tensors[name].load(), wanted[name]) for name in wanted)
    assert deepspeed_folder.read(path).trained_on == native.trained_on
    assert any("patcher is not known" in note for note in deepspeed_folder.read(bare).notes)
    newest = deepspeed_folder.read(runs / "two")
    assert not torch.equal(newest.tensors["encoder.to_patches.weight"].load(), wanted["encoder.to_patches.weight"])


@pytest.mark.slow
def test_a_universal_checkpoint_is_sealed_and_can_be_read(runs):
    universal = runs / "one" / "checkpoints" / STEP
    verify(universal)
    wanted = deepspeed_folder.read(runs / "two" / "checkpoints" / STEP).tensors
    found = deepspeed_folder.read(universal).tensors
    assert all(torch.equal(found[name].load(), wanted[name].load()) for name in wanted)
    with pytest.raises(ConversionError, match="is universal already"):
        convert(universal, runs / "twice")
    assert not (runs / "twice").exists()


@pytest.mark.slow
def test_the_tool_converts_training_checkpoints(runs, tmp_path):
    bare = without_native(runs / "two" / "checkpoints" / STEP, tmp_path / STEP)
    done = run_tool(Conversion(bare, tmp_path / "universal", "deepspeed", "deepspeed"))
    assert any("by 2 rank(s) under ZeRO 3" in note for note in done["notes"])
    done = run_tool(Conversion(bare, tmp_path / "native", "deepspeed", "native"))
    assert done["check"]["largest_difference"] == 0
    wanted = read_native(runs / "two" / "checkpoints" / STEP).module.state_dict()
    for folder in ("universal", "native"):
        found = read_native(tmp_path / folder).module.state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_the_native_part_goes_along(runs, tmp_path):
    source = runs / "two" / "checkpoints"
    convert(source / STEP, tmp_path / "universal")
    for name in ("model.safetensors", "config.yaml", "manifest.json"):
        assert (tmp_path / "universal" / "native" / name).read_bytes() == (source / STEP / "native" / name).read_bytes()


@pytest.mark.slow
def test_a_source_that_may_only_be_read(runs, tmp_path):
    source = tmp_path / "archive" / STEP
    shutil.copytree(runs / "two" / "checkpoints" / STEP, source)
    for path in [source, *source.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    convert(source, tmp_path / "universal")
    # Or its files could not be sealed, and its folders not be removed.
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "universal").rglob("*"))
    assert read_native(tmp_path / "universal").config == read_native(source).config
    for path in [source, *source.rglob("*")]:
        path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda path: next(path.glob("deepspeed/*rank_1*optim*")).unlink(),
            r"lacks deepspeed/zero_pp_rank_1_mp_rank_00_optim_states\.pt.*files that don't verify are not opened",
        ),
        (lambda path: (path / "manifest.json").unlink(), "it was not finished"),
        (lambda path: (path / "state.json").unlink(), "holds no whole training checkpoint"),
        (lambda path: edit_config(path, lambda tree: tree.update(colour="red")), "colour"),
        (
            lambda path: edit_config(path, lambda tree: tree["model"].update(kmers={"sizes": [2]})),
            r"encoder\.embedding\.kmers\.weight has shape",
        ),
    ],
)
@pytest.mark.parametrize("action", [deepspeed_folder.read, lambda path: convert(path, path.parent / "universal")])
def test_broken_checkpoints_are_refused(runs, tmp_path, damage, says, action):
    path = without_native(runs / "two" / "checkpoints" / STEP, tmp_path / STEP)
    damage(path)
    with pytest.raises(ConversionError, match=says):
        action(path)
    assert [left.name for left in tmp_path.iterdir()] == [STEP]


def edit_config(path: Path, change) -> None:
    tree = yaml.safe_load((path / "config.yaml").read_text())
    change(tree)
    (path / "config.yaml").write_text(yaml.safe_dump(tree))
    seal(path, {})


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(runs, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise DiskFullError("no space left")

    monkeypatch.setattr(universal_form, "write_safetensors", fail)
    with pytest.raises(DiskFullError):
        convert(runs / "two", tmp_path / "universal")
    assert list(tmp_path.iterdir()) == []
