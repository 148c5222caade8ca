"""The memory of a benchmark: a small JSON file for each trial, fit to be committed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

import hyena_blt_savanna
from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.quality.plan import Plan, Trial

TRIALS = "trials"
FORMAT_VERSION = 1


class ResultError(ValueError):
    """A result that can't be read; the message names the file."""


class CurvePoint(Config):
    """A validation of a training."""

    step: int
    flops: float
    seconds: float
    bases: float
    bits_per_base: float


class HeldOutScores(Config):
    """What the test windows cost."""

    bits_per_base: float
    windows: list[int]
    nats: list[float]
    num_bases: list[int]


class TrialResult(Config):
    """What came of a trial."""

    format_version: int = FORMAT_VERSION
    contender: str
    title: str
    genome: str
    seed: int
    multiple: float
    lr: float
    digest: str
    """Of the recipe, see `Plan.digest`."""
    outcome: Literal["finished", "diverged"]
    command: str
    commit: str | None
    machine: dict[str, Any]
    versions: dict[str, str]
    facts: dict[str, Any] = Field(default_factory=dict)
    """About model, patches and training."""
    curve: list[CurvePoint] = Field(default_factory=list)
    test: HeldOutScores | None = None
    recipe: dict[str, Any]
    """The configuration of the training, by dotted keys."""

    @property
    def trial(self) -> Trial:
        """Which one."""
        return Trial(self.contender, self.genome, self.seed, self.multiple, self.lr)

    @property
    def validation_bits(self) -> float:
        """The last point of the curve; infinite where training diverged."""
        return self.curve[-1].bits_per_base if self.outcome == "finished" else float("inf")


class Results:
    """The results of a benchmark.

    Args:
        folder: docs/results/NAME.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, trial: Trial) -> Path:
        """File of a trial."""
        return self.folder / TRIALS / f"{trial.name}.json"

    def read(self, trial: Trial) -> TrialResult | None:
        """The result of a trial, whatever recipe it had; None if there is none.

        Raises:
            ResultError: the file can't be read.
        """
        path = self.path(trial)
        return _read(path) if path.is_file() else None

    def fresh(self, plan: Plan) -> tuple[dict[str, TrialResult], list[str]]:
        """Results whose recipes are those of the plan.

        Returns:
            By the trial's name; and the names of those whose recipe has changed since.

        Raises:
            ResultError: a file can't be read.
        """
        fresh: dict[str, TrialResult] = {}
        stale = []
        for path in sorted((self.folder / TRIALS).glob("*.json")):
            result = _read(path)
            trial = result.trial
            if trial.contender not in plan.benchmark.contenders or trial.genome not in plan.benchmark.config.genomes:
                continue
            if result.digest == plan.digest(trial):
                fresh[trial.name] = result
            else:
                stale.append(trial.name)
        return fresh, stale

    def write(self, result: TrialResult) -> None:
        """Keeps a result."""
        write_json(self.path(result.trial), result.to_dict())


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """JSON with a key a line, and what is below a key in one line if it is numbers."""
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(below)}" for name, below in value.items())
            text = f"{{\n{inner}\n }}"
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            text = "[\n" + ",\n".join(f"  {json.dumps(below)}" for below in value) + "\n ]"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    write_whole(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def describe_machine() -> dict[str, Any]:
    """The machine in general words."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "device": device,
        "num_cores": os.cpu_count(),
        "architecture": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def describe_versions() -> dict[str, str]:
    """What the figures were made with."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "deepspeed", "numpy")}
    return {"hyena_blt_savanna": hyena_blt_savanna.__version__, "python": platform.python_version(), **packages}


def current_commit() -> str | None:
    """The commit of the code, with a plus sign where files differ from it; None outside of a repository."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _read(path: Path) -> TrialResult:
    try:
        return TrialResult.parse(json.loads(path.read_text()), str(path))
    except ValueError as error:
        raise ResultError(f"{path}: can't be read as a result: {error}; remove it to have it made again") from error
