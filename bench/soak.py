"""python bench/soak.py [--kills 100] [--ranks 2] [--seed 0] [--folder FOLDER]

A small run is disturbed at random moments, again and again, and started again each time: by a signal to one rank that
asks it to stop, by `kill -9` of one rank, and by `kill -9` of all of them while a checkpoint is being written. Then it
is compared with a run that was left alone: every step once, with the same loss; the last weights, bit for bit.

The ranks are forked from this process, which has loaded torch and DeepSpeed: a start takes a second instead of six.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import deepspeed  # noqa: F401  loaded once, for all ranks

from hyena_blt_savanna.testing.ranks import free_port
from hyena_blt_savanna.testing.toy_genomes import write_toy_data
from hyena_blt_savanna.training import pretrain
from hyena_blt_savanna.training.stop_signals import StopSignals

CHECKPOINT_EVERY = 4
MOST_STEPS_OF_A_LIFE = 8
STEPS_OF_A_LIFE = 20
LIFE_SECONDS = 120.0
OTHERS_SECONDS = 5.0
WAYS = ("signal to one rank", "kill -9 of one rank", "kill -9 of all ranks during a save")


@dataclass
class Counts:
    """What has happened so far."""

    disturbances: Counter[str] = field(default_factory=Counter)
    exit_codes: Counter[int] = field(default_factory=Counter)
    repeated_steps: int = 0


def write_config(folder: Path, num_steps: int) -> Path:
    """Data of 6,000 bases, and the configuration of a run of a hundred thousand weights on them."""
    data = folder / "data"
    data.mkdir()
    write_toy_data(data, train=6000)
    tree = {
        "data": {"folder": str(data)},
        "model": {
            "kind": "hyena_blt",
            "local_width": 16,
            "max_patch_bases": 8,
            "kmers": {"sizes": [2, 3]},
            "global_model": {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "attention"]},
        },
        "training": {
            "stages": [{"steps": num_steps, "window_bases": 128, "batch_windows": 4, "micro_batch_windows": 1}],
            "schedule": {"warmup_steps": 5},
            "validation": None,
            "checkpoints": {"every_steps": CHECKPOINT_EVERY},
            "logging": {"every_steps": 1},
        },
    }
    path = folder / "soak.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def start(config: Path, run: Path, num_ranks: int) -> list[int]:
    """Forks the ranks of a run; returns their processes."""
    port = free_port()
    processes = []
    for rank in range(num_ranks):
        process = os.fork()
        if process == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            with run.with_suffix(f".rank{rank}.log").open("a") as log:
                os.dup2(log.fileno(), sys.stdout.fileno())
                os.dup2(log.fileno(), sys.stderr.fileno())
            signals = StopSignals()
            signals.listen()
            code = 1
            try:
                code = pretrain.main([str(config), f"run={run}"], signals)
            finally:
                os._exit(code)
        processes.append(process)
    return processes


def last_step(run: Path) -> int:
    """Of the last line of training."""
    return max((line["step"] for line in lines_of(run) if line["kind"] == "training"), default=0)


def lines_of(run: Path) -> list[dict]:
    """Whole lines of a run's metrics."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def wait(processes: list[int], counts: Counts, seconds: float) -> None:
    """Waits for the ranks; those that wait for a dead one are ended as srun would."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while left:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            left.remove(process)
            code = os.waitstatus_to_exitcode(status)
            counts.exit_codes[code] += 1
            if code != 0:
                deadline = min(deadline, time.monotonic() + OTHERS_SECONDS)
        elif time.monotonic() > deadline:
            send(left, signal.SIGKILL)
            deadline += LIFE_SECONDS
        else:
            time.sleep(0.005)


def send(processes: list[int], number: signal.Signals) -> None:
    """Signals processes; those that have ended are left alone."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def has_ended(processes: list[int]) -> bool:
    """Whether a rank is over, without burying it."""
    found = (os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) for process in processes)
    return any(status is not None for status in found)


def disturb(processes: list[int], run: Path, counts: Counts, chance: random.Random) -> None:
    """Waits for a random moment of a life, and disturbs it there; not if the run ends before."""
    way = WAYS[counts.disturbances.total() % len(WAYS)]
    # Now and then before the first step, and even before the search for a checkpoint.
    goal = last_step(run) + chance.randint(0, MOST_STEPS_OF_A_LIFE)
    deadline = time.monotonic() + LIFE_SECONDS
    while last_step(run) < goal or (way == WAYS[2] and not list((run / "checkpoints").glob("*.partial"))):
        if has_ended(processes) or time.monotonic() > deadline:
            return
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 0.01 if way == WAYS[2] else 0.3))
    if has_ended(processes):
        return
    if way == WAYS[2]:
        send(processes, signal.SIGKILL)
    else:
        send([chance.choice(processes)], signal.SIGUSR1 if way == WAYS[0] else signal.SIGKILL)
    counts.disturbances[way] += 1


def soak(config: Path, run: Path, num_ranks: int, num_kills: int, seed: int) -> Counts:
    """Trains to the end through so many disturbances."""
    chance = random.Random(seed)
    counts = Counts()
    while True:
        before = last_step(run)
        processes = start(config, run, num_ranks)
        if counts.disturbances.total() < num_kills:
            disturb(processes, run, counts, chance)
        wait(processes, counts, LIFE_SECONDS)
        lines = lines_of(run)
        counts.repeated_steps += before - next((line["step"] for line in reversed(lines) if line["kind"] == "start"), 0)
        if (run / "checkpoints" / last_checkpoint(config)).exists() and not (run / "lock.json").exists():
            return counts


def last_checkpoint(config: Path) -> str:
    """Name of the checkpoint that a finished run has."""
    steps = yaml.safe_load(config.read_text())["training"]["stages"][0]["steps"]
    return f"step_{steps:08d}"


def is_same(whole: Path, disturbed: Path, config: Path) -> dict[str, bool]:
    """What a disturbed run must have in common with one that was left alone."""
    told = ("step", "loss", "grad_norm", "lr", "mean_patch_bases")
    seen = [
        [[line[key] for key in told] for line in lines_of(run) if line["kind"] == "training"]
        for run in (whole, disturbed)
    ]
    steps = [step for step, *_ in seen[1]]
    weights = [
        (run / "checkpoints" / last_checkpoint(config) / "native" / "model.safetensors").read_bytes()
        for run in (whole, disturbed)
    ]
    return {
        "every step once, in order": steps == list(range(1, len(steps) + 1)),
        "losses and norms of all steps, bit for bit": seen[0] == seen[1],
        "last weights, bit for bit": weights[0] == weights[1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; a temporary one if left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        config = write_config(folder, STEPS_OF_A_LIFE * options.kills + 20)
        wait(start(config, folder / "whole", options.ranks), Counts(), 60.0 + options.kills * 10.0)
        began = time.monotonic()
        counts = soak(config, folder / "disturbed", options.ranks, options.kills, options.seed)
        took = time.monotonic() - began
        same = is_same(folder / "whole", folder / "disturbed", config)
        told = (folder / "disturbed.rank0.log").read_text()
    rows = [(way, str(counts.disturbances[way])) for way in WAYS]
    rows += [(f"ranks that ended with code {code}", str(count)) for code, count in sorted(counts.exit_codes.items())]
    rows.append(("steps done again after a kill", str(counts.repeated_steps)))
    rows.append(("checkpoints skipped as broken", str(told.count("the checkpoint before it is tried"))))
    rows.append(("seconds, all starts together", f"{took:.0f}"))
    rows += [(what, "yes" if holds else "NO") for what, holds in same.items()]
    print(f"| {options.kills} disturbances of a run of {options.ranks} ranks | |\n|---|---|")
    print("\n".join(f"| {name} | {value} |" for name, value in rows))
    return 0 if all(same.values()) and counts.disturbances.total() == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
