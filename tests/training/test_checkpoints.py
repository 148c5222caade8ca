"""Checkpoints as files: which are kept, which are whole, what differs. The engine is a stand-in."""

from __future__ import annotations

import errno
import json
import random
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hyena_blt_savanna.training.checkpoints import (
    CheckpointConfig,
    CheckpointError,
    Checkpoints,
    Progress,
)
from hyena_blt_savanna.training.engine import Totals
from hyena_blt_savanna.training.metrics import Reporter
from hyena_blt_savanna.training.ranks import Ranks
from hyena_blt_savanna.training.saving import Saver

RANKS = Ranks(0, 1, torch.device("cpu"))


class FakeEngine:
    """Writes one file where DeepSpeed writes its own."""

    zero_stage = 0
    fp8 = None
    optimizer_names = ("weight",)
    tied_names: dict[str, str] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.deepspeed = SimpleNamespace(save_checkpoint=self._save, load_checkpoint=self._load, checkpoint_engine=None)
        self.loaded: list[tuple] = []

    def _save(self, folder: str, tag: str, save_latest: bool) -> None:
        assert not save_latest
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "states.pt").write_bytes(b"weights")

    def _load(self, folder: str, tag: str) -> None:
        self.loaded.append((folder, tag))

    def consolidated_weights(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.ones(2)}


def make(folder: Path, **kept: int) -> Checkpoints:
    return Checkpoints(folder, CheckpointConfig(**kept), {"model": {"kind": "toy"}}, RANKS)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ({"keep_last": 2}, [50, 60]),
        ({"keep_last": 1, "keep_every": 20}, [20, 40, 60]),
        ({"keep_last": 3, "keep_every": 30}, [30, 40, 50, 60]),
    ],
)
def test_which_checkpoints_are_kept(tmp_path, kept, left):
    checkpoints = make(tmp_path, **kept)
    for step in (10, 20, 30, 40, 50, 60):
        checkpoints.save(FakeEngine(), Progress(step=step))
    assert names(tmp_path) == [f"step_{step:08d}" for step in left]


def test_a_checkpoint_holds_progress_and_random_states(tmp_path):
    checkpoints = make(tmp_path)
    progress = Progress(7, 1.5, 1e6, Totals(0.1, 3.0, 5.0, 2.0, 1.0), 3, 0.25)
    torch.manual_seed(1)
    np.random.seed(1)
    path = checkpoints.save(FakeEngine(), progress)
    drawn = torch.rand(3), np.random.random(3)
    engine = FakeEngine()
    assert checkpoints.find_newest() == path
    assert checkpoints.load(engine, path) == progress
    assert engine.loaded == [(str(path), "deepspeed")]
    assert torch.equal(torch.rand(3), drawn[0])
    assert np.array_equal(np.random.random(3), drawn[1])
    assert json.loads((path / "state.json").read_text())["versions"]["torch"] == torch.__version__


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = make(tmp_path)
    checkpoints.save(FakeEngine(), Progress(step=7))
    path = checkpoints.save(FakeEngine(), Progress(step=7, seconds=9.0))
    assert names(tmp_path) == [path.name]
    assert checkpoints.load(FakeEngine(), path).seconds == 9.0


def test_consolidated_weights_are_written_beside(tmp_path):
    seen = []
    checkpoints = Checkpoints(
        tmp_path,
        CheckpointConfig(),
        {},
        RANKS,
        lambda folder, weights, num_steps, trained_in: seen.append((folder.name, weights.keys(), num_steps)),
    )
    engine, progress = SlowEngine(), Progress(step=1)
    writing = checkpoints.begin(engine, progress)  # type: ignore[arg-type]
    # Training goes on meanwhile.
    progress.step = 2
    engine.may_write.set()
    assert checkpoints.finish(writing) == checkpoints.path(1)
    assert seen == [("native", {"weight"}, 1)]


def test_random_states_of_a_rank_more_than_there_were_follow_from_rank_and_step(tmp_path, caplog):
    path = make(tmp_path).save(FakeEngine(), Progress(step=1))
    drawn = []
    for rank in (1, 1, 2):
        ranks = Ranks(rank, 3, torch.device("cpu"))
        added = Checkpoints(tmp_path, CheckpointConfig(), {"model": {"kind": "toy"}}, ranks)
        assert added.load(FakeEngine(), path).step == 1
        drawn.append((float(torch.rand(())), np.random.random(), random.random()))
    assert drawn[0] == drawn[1]
    assert all(found != other for found, other in zip(drawn[0], drawn[2], strict=True))
    assert "rank_00001.pt: a rank more than there were" in caplog.text


def test_ranks_that_share_windows_have_the_same_random_states(tmp_path):
    torch.manual_seed(1)
    path = make(tmp_path).save(FakeEngine(), Progress(step=1))
    wanted = float(torch.rand(()))
    drawn = []
    for rank in range(4):
        ranks = Ranks(rank, 4, torch.device("cpu"), num_context=2)
        Checkpoints(tmp_path, CheckpointConfig(), {"model": {"kind": "toy"}}, ranks).load(FakeEngine(), path)
        drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[1] == wanted
    assert drawn[2] == drawn[3] != wanted


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: (path / "manifest.json").unlink(), "it was not finished"),
        (lambda path: (path / "manifest.json").write_text("{"), "is broken"),
        (lambda path: (path / "state.json").unlink(), r"lacks state\.json"),
        (lambda path: (path / "state.json").write_text("{}"), r"state\.json has 2 bytes instead of"),
        (lambda path: (path / "deepspeed" / "states.pt").write_bytes(b"weightS"), r"states\.pt has changed"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, caplog, damage, says):
    checkpoints = make(tmp_path)
    older = checkpoints.save(FakeEngine(), Progress(step=1))
    newer = checkpoints.save(FakeEngine(), Progress(step=2))
    damage(newer)
    assert checkpoints.find_newest() == older
    [record] = caplog.records
    assert "step_00000002" in record.getMessage()
    assert re.search(says, record.getMessage())


def test_no_checkpoint_at_all(tmp_path):
    assert make(tmp_path / "nothing").find_newest() is None


def test_another_model_is_refused_with_the_keys(tmp_path):
    path = make(tmp_path).save(FakeEngine(), Progress(step=1))
    other = Checkpoints(tmp_path, CheckpointConfig(), {"model": {"kind": "toy", "width": 3}}, RANKS)
    with pytest.raises(
        CheckpointError, match=r"of another model:\n  model\.width: None in the checkpoint, 3 in the run"
    ):
        other.load(FakeEngine(), path)


class SlowEngine(FakeEngine):
    """Writes a tensor through DeepSpeed's checkpoint engine, as slowly as a disk that many share."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.weight = torch.zeros(3)
        self.deepspeed.checkpoint_engine = SimpleNamespace(save=self._write)
        self.may_write = threading.Event()
        self.fails = fails

    def _save(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir()
        (Path(folder) / tag / "script.py").write_text("pass")
        self.deepspeed.checkpoint_engine.save({"weight": self.weight}, f"{folder}/{tag}/states.pt")

    def _write(self, states: dict, path: str) -> None:
        assert self.may_write.wait(10)
        if self.fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        torch.save(states, path)


def saver_of(checkpoints: Checkpoints, engine: FakeEngine, folder: Path) -> Saver:
    return Saver(checkpoints, engine, Reporter(folder / "metrics.jsonl", True, 100))  # type: ignore[arg-type]


@pytest.mark.parametrize("local", [False, True])
def test_training_goes_on_while_a_copy_is_written(tmp_path, local):
    folder, disk, engine = tmp_path / "run", tmp_path / "local", SlowEngine()
    checkpoints = Checkpoints(
        folder, CheckpointConfig(local_folder=disk if local else None), {"model": {"kind": "toy"}}, RANKS
    )
    folder.mkdir()
    saver = saver_of(checkpoints, engine, tmp_path)
    saver.begin(Progress(step=1))
    engine.weight += 1
    assert not saver.is_written
    assert not checkpoints.path(1).exists()
    engine.may_write.set()
    path = saver.settle()
    assert path == checkpoints.find_newest() == checkpoints.path(1)
    assert torch.equal(torch.load(path / "deepspeed" / "states.pt")["weight"], torch.zeros(3))
    assert (path / "deepspeed" / "script.py").read_text() == "pass"
    assert not disk.exists() or list(disk.iterdir()) == []
    [line] = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (line["kind"], line["step"], line["name"]) == ("checkpoint", 1, path.name)
    assert 0 < line["blocked_seconds"] <= line["save_seconds"]


def test_one_checkpoint_is_on_its_way_at_a_time(tmp_path, caplog):
    engine, checkpoints = SlowEngine(), make(tmp_path / "run")
    saver = saver_of(checkpoints, engine, tmp_path)
    saver.begin(Progress(step=1))
    threading.Timer(0.2, engine.may_write.set).start()
    saver.begin(Progress(step=2))
    assert names(tmp_path / "run")[0] == "step_00000001"
    assert "the checkpoint of step 1 is still being written: training waits" in caplog.text
    assert saver.settle() == checkpoints.path(2)
    assert saver.settle() is None


def test_a_failed_save_is_told_and_stops_nothing(tmp_path, caplog):
    engine, checkpoints = SlowEngine(), make(tmp_path / "run")
    saver = saver_of(checkpoints, engine, tmp_path)
    engine.may_write.set()
    saver.save(Progress(step=1))
    engine.fails = True
    saver.begin(Progress(step=2))
    assert saver.settle() is None
    assert "No space left on device" in caplog.text
    assert "training goes on without it" in caplog.text
    assert names(tmp_path / "run") == ["step_00000001"]
    assert checkpoints.find_newest() == checkpoints.path(1)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["checkpoint", "checkpoint_failed"]
    with pytest.raises(
        CheckpointError, match=r"step_00000003: the checkpoint could not be written: rank 0: .*No space"
    ):
        saver.save(Progress(step=3))
