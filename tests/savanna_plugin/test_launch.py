"""The command of a run inside Savanna: with upstream's code, and without."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hyena_blt_savanna.conversion.convert import Conversion, convert
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.savanna_plugin import checkout, pretrain
from hyena_blt_savanna.training.ranks import Ranks

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launch" / "train_savanna.sh"


def test_help_is_what_the_script_begins_with() -> None:
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True)
    assert "launch/train_savanna.sh configs/savanna/quickstart.yml" in done.stdout
    assert "#" not in done.stdout


@pytest.mark.parametrize("is_there", [False, True])
def test_mistakes_end_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_there: bool
) -> None:
    monkeypatch.setattr(pretrain, "join_ranks", lambda: Ranks(0, 1, torch.device("cpu")))
    monkeypatch.setattr(pretrain, "log_to_terminal", lambda is_first: None)
    monkeypatch.setattr(checkout, "FOLDER", tmp_path)
    monkeypatch.setattr(checkout, "_found_elsewhere", lambda: is_there)
    with caplog.at_level(logging.ERROR):
        code = pretrain.main([str(ROOT / "configs/savanna/quickstart.yml")])
    assert code == 2
    [said] = [record.getMessage() for record in caplog.records]
    if is_there:
        # The quickstart's file leaves the data to the command line.
        assert "train-data-paths must list the datasets" in said
    else:
        assert f"the code of Savanna is not in {tmp_path}: run `git submodule update --init savanna`" in said


@pytest.mark.slow
def test_two_ranks_under_the_launcher(upstream: Path, toy_data: Path, tmp_path: Path) -> None:
    paths = [f"{split}-data-paths=[{toy_data}/train]" for split in ("train", "valid", "test")]
    short = ["seq_length=512", "max_position_embeddings=512", "hyena-blt.window_patches=256", "train-iters=2"]
    kept = [f"save={tmp_path}/saved", "checkpoint_factor=2", "eval_iters=1"]
    done = subprocess.run(
        [SCRIPT, ROOT / "configs/savanna/quickstart.yml", *paths, *short, *kept],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "NUM_RANKS": "2", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    convert(Conversion(tmp_path / "saved", tmp_path / "native", "savanna", "native"))
    assert read_native(tmp_path / "native").config.global_model.blocks == [
        "hyena_se",
        "hyena_mr",
        "hyena_li",
        "hyena_se",
    ]
    # What Savanna prints for each matrix product is kept away.
    assert "DEBUG::ColumnParallelLinear" not in done.stdout
