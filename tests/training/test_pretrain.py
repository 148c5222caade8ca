"""Whole runs: under the deepspeed launcher, killed and started again, and those that are refused."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training import pretrain
from hyena_blt_savanna.training.engine import faster_precision
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_folder import RunLock

ROOT = Path(__file__).resolve().parents[2]
LAST = "checkpoints/step_00000040"


def launch(*arguments: str, num_ranks: int = 1, **changes: str) -> subprocess.Popen[str]:
    environ = {"NUM_RANKS": str(num_ranks), "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    return subprocess.Popen(
        [str(ROOT / "launch" / "train.sh"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environ, **changes},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def training_lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "stage", "loss", "lr", "grad_norm", "mean_patch_bases", "num_bases")
    return [
        {name: line[name] for name in names if name in line}
        for line in lines
        if line["kind"] in ("training", "validation")
    ]


def kinds_of(run: Path) -> list[str]:
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line)["kind"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_that_is_killed_and_then_asked_to_stop_goes_on_bit_for_bit(toy_config, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = launch(str(toy_config), f"run={whole}")
    process = launch(str(toy_config), f"run={killed}")
    wait_for(process, (killed / "checkpoints" / "step_00000016").exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (killed / LAST).exists()
    process = launch(str(toy_config), f"run={killed}")
    wait_for(process, lambda: kinds_of(killed).count("start") == 2 and kinds_of(killed)[-1] == "training")
    # To the script alone, as a supervisor would; and again, while it saves.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == pretrain.STOPPED, output
    assert "asked to stop: saved after step" in output
    assert not (killed / LAST).exists()
    assert not (killed / "lock.json").exists()
    output = finish(undisturbed)
    assert "step 40/40" in output
    # Nothing of DeepSpeed's or torch's own output reaches the terminal.
    assert not [line for line in output.splitlines() if "Warning" in line or "DeepSpeed" in line or "[INFO]" in line]
    again = finish(launch(str(toy_config), f"run={killed}"))
    assert "going on after step" in again
    assert training_lines(killed) == training_lines(whole)
    assert len(training_lines(whole)) == 42
    weights = "native/model.safetensors"
    assert (killed / LAST / weights).read_bytes() == (whole / LAST / weights).read_bytes()
    assert "DeepSpeed" in (whole / "logs" / "rank_00000.log").read_text()
    assert not (whole / "lock.json").exists()
    start = json.loads((whole / "metrics.jsonl").read_text().splitlines()[0])
    assert start["kind"] == "start"
    assert start["num_parameters"] > 1000


def refused_runs(cases: list[list[str]]) -> list[tuple[int, str]]:
    pretrain._OTHERS_WAIT_SECONDS = 0.0
    results = []
    for arguments in cases:
        errors: list[str] = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = lambda record, errors=errors: errors.append(record.getMessage())  # type: ignore[method-assign]
        pretrain.logger.addHandler(handler)
        code = pretrain.main(arguments)
        pretrain.logger.removeHandler(handler)
        results.append((code, "\n".join(errors)))
    return results


@pytest.mark.slow
def test_runs_that_are_refused_or_finished(toy_config, toy_data, tmp_path):
    short = ["training.stages=[{steps: 2, window_bases: 128, batch_windows: 4}]"]
    base = [str(toy_config), f"run={tmp_path / 'run'}", *short]
    used = tmp_path / "used"
    only_train = tmp_path / "only_train"
    only_train.mkdir()
    for path in toy_data.glob("train.*"):
        (only_train / path.name).symlink_to(path)
    cases = {
        "training.stages.0: missing": [str(toy_config), f"run={tmp_path / 'run'}", "training.stages=[{}]"],
        "did you mean 'gradient_clipping'": [*base, "training.gradient_cliping=1"],
        "there are more ranks (2) than windows in a step (batch_windows: 1)": [
            *base,
            "training.stages=[{steps: 2, window_bases: 128, batch_windows: 1}]",
        ],
        "3,000,000": [*base, "training.stages=[{steps: 2, window_bases: 3000000, batch_windows: 4}]"],
        "the convolution backend flashfftconv can't be used": [*base, "training.convolution=flashfftconv"],
        "other.manifest.json": [*base, "data.annotation=other"],
        f"{used} is in use by job": [*base[:1], f"run={used}", *short],
        "nowhere": [*base, "data.folder=nowhere"],
        "no validation part (validation.manifest.json": [*base, f"data.folder={only_train}"],
        f"File exists: '{toy_config}'": [*base, f"run={toy_config}"],
    }
    finished = [*base, "deepspeed.csv_monitor.enabled=true", "training.precision=auto", "training.convolution=fourier"]
    other_model = [*base, "model.local_width=32"]
    diverged = [*base[:1], f"run={tmp_path / 'diverged'}", *short, "training.optimizer.lr=1e30"]
    with RunLock(used):
        runs = [*cases.values(), finished, finished, other_model, diverged]
        *refused, done, again, other, lost = run_ranks(refused_runs, 2, runs)[0]
    for says, (code, message) in zip(cases, refused, strict=True):
        assert code == 2, says
        assert says.split(":")[0] in message, message
    assert done == (0, "")
    assert again == (0, "")
    assert other[0] == 2
    assert "is a checkpoint of another model" in other[1]
    assert "model.local_width: 16 in the checkpoint, 32 in the run" in other[1]
    assert lost[0] == pretrain.DIVERGED
    assert "training has diverged" in lost[1]
    # The refused run has left the folder as it was.
    assert RunConfig.load([tmp_path / "run" / "config.yaml"]).model.local_width == 16
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    kinds = ["start", "first_step", "training", "training", "validation", "checkpoint"]
    assert [line["kind"] for line in lines] == kinds
    assert lines[0]["precision"] == faster_precision(torch.device("cpu"))
    assert list((tmp_path / "run" / "logs").rglob("*validation_bits_per_base.csv"))
    assert sorted(path.name for path in (tmp_path / "run" / "logs").glob("*.log")) == [
        "rank_00000.log",
        "rank_00001.log",
    ]


PDSH = """#!/bin/bash
# pdsh -S -f 1024 -w HOSTS COMMAND ..., on this machine instead of on each host: %n is the place of the host.
IFS=, read -ra hosts <<<"$5"
command="${*:6}"
for rank in "${!hosts[@]}"; do env -i PATH="$PATH" HOME="$HOME" bash -c "${command//%n/$rank}" & done
for job in $(jobs -p); do wait "$job" || code=$?; done
exit "${code:-0}"
"""


@pytest.mark.slow
def test_a_hostfile_runs_under_deepspeeds_own_launcher(toy_config, tmp_path):
    for name, body in (("pdsh", PDSH), ("ssh", "#!/bin/sh\necho 127.0.0.1\n")):
        (tmp_path / name).write_text(body)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hosts").write_text("first slots=1\nsecond slots=1\n")
    stages = "training.stages=[{steps: 2, window_bases: 128, batch_windows: 4}]"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    process = launch(
        str(toy_config),
        f"run={tmp_path / 'run'}",
        stages,
        PATH=path,
        HOSTFILE=str(tmp_path / "hosts"),
        GOMP_SPINCOUNT="7",
    )
    output = finish(process)
    assert "2 rank(s) x 1 thread(s) on cpu" in output
    assert [line["step"] for line in training_lines(tmp_path / "run")] == [1, 2, 2]
