"""What is installed on a machine, what of it works, what is missing, and the one command that mends it.

Nothing is believed: kernels are run against the plain reference, a model takes a step, MPI is started.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]
import torch

from hyena_blt_savanna.model.back_to_back import KERNEL as BACK_TO_BACK
from hyena_blt_savanna.model.back_to_back import why_no_back_to_back
from hyena_blt_savanna.model.convolution import BACKENDS, why_unusable
from hyena_blt_savanna.model.fp8 import Backend, product_errors
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.kernels import KERNELS, probe
from hyena_blt_savanna.model.stack import StackConfig

LEAST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 10e9
LARGEST_FP8_ERROR = 0.15
"""Of a product in FP8 against fp32; its own rounding is a third of this at most."""
_TIMEOUT_SECONDS = 60
_REINSTALL = "pip install --force-reinstall --requirement requirements.txt"
_NOT_AT_RUN_TIME = ("pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "import-linter", "transformers")
_MPI = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size() and MPI.Get_library_version().split(',')[0])"

State = Literal["works", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        room: what it belongs to.
        name: of it.
        state: works; missing: it isn't there; broken: it is there, and does not do what it should.
        detail: version, or why not.
        is_required: whether training needs it.
        mend: the command or the step that mends it; empty where it works.
    """

    room: str
    name: str
    state: State
    detail: str
    is_required: bool = False
    mend: str = ""

    @property
    def is_fatal(self) -> bool:
        """Whether training can't do without it, and has to."""
        return self.is_required and self.state != "works"


def examine(root: Path, work: Path) -> list[Finding]:
    """Looks at everything; takes some ten seconds.

    Args:
        root: of the repository, where requirements.txt lies.
        work: a folder on the disk that runs are written to.
    """
    return [
        *_python(root),
        *_machine(work),
        *_torch(),
        *_kernels(),
        *_fp8(),
        _deepspeed(),
        *_tools(),
        _mpi(),
        *_slurm(),
        _savanna(root),
    ]


def report_lines(findings: Sequence[Finding]) -> list[str]:
    """The findings as text: one line each, then what to do."""
    lines = []
    for room in dict.fromkeys(finding.room for finding in findings):
        lines += ["", room]
        lines += [
            f"  {finding.state:<8}{finding.name:<28}{finding.detail}" for finding in findings if finding.room == room
        ]
    fatal = [finding for finding in findings if finding.is_fatal]
    optional = [finding for finding in findings if finding.mend and not finding.is_fatal]
    for title, chosen in (("Training needs these:", fatal), ("These are optional:", optional)):
        if chosen:
            lines += ["", title, *dict.fromkeys(f"  {finding.name}: {finding.mend}" for finding in chosen)]
    return [*lines[1:], "", "broken: see above" if fatal else "all that training needs works"]


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings as plain values."""
    return {
        "findings": [asdict(finding) for finding in findings],
        "works": not any(finding.is_fatal for finding in findings),
    }


def _python(root: Path) -> Iterable[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < LEAST_PYTHON:
        yield Finding("python", "python", "broken", f"{found} is too old", True, "make PYTHON=python3.12 environment")
    else:
        yield Finding("python", "python", "works", found, True)
    install = "pip install --requirement requirements.txt"
    for name, wanted in _requirements(root / "requirements.txt"):
        is_required = name not in _NOT_AT_RUN_TIME
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding("python", name, "missing", f"{wanted} is wanted", is_required, install)
            continue
        if found.partition("+")[0] == wanted:
            yield Finding("python", name, "works", found, is_required)
        else:
            # It may well do: only what is tried below decides.
            yield Finding("python", name, "broken", f"{found}, and {wanted} is what is tested", False, install)


def _requirements(path: Path) -> list[tuple[str, str]]:
    """Names and versions of a file of requirements; none where there is no file."""
    if not path.exists():
        return []
    return re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==([\w.]+)", path.read_text(), re.MULTILINE)


def _machine(work: Path) -> Iterable[Finding]:
    memory = psutil.virtual_memory()
    yield Finding(
        "machine",
        "processor",
        "works",
        f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {platform.machine()}",
    )
    yield Finding("machine", "memory", "works", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are free")
    yield _disk("disk of runs", work)
    yield _disk("temporary files", Path(tempfile.gettempdir()))


def _disk(name: str, folder: Path) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"written")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("machine", name, "broken", str(error), True, f"choose a folder other than {folder}")
    detail = f"{free / 1e9:.1f} GB are free in {folder}"
    if free < LEAST_FREE_BYTES:
        mend = f"free some of {folder}: a checkpoint has 12 bytes a weight, and several are kept"
        return Finding("machine", name, "broken", detail, False, mend)
    return Finding("machine", name, "works", detail)


def _torch() -> Iterable[Finding]:
    yield _tried("torch", "a training step", partial(_step, torch.device("cpu")), True, _REINSTALL)
    is_gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    state: State = "works" if is_gloo else "missing"
    yield Finding("torch", "gloo", state, "ranks on CPUs", True, "" if is_gloo else _REINSTALL)
    if not torch.cuda.is_available():
        has_driver = shutil.which("nvidia-smi") is not None
        if not has_driver:
            yield Finding("torch", "CUDA", "missing", "no NVIDIA driver: training runs on CPUs")
        else:
            built = torch.version.cuda or "no CUDA"
            mend = "install the build of torch for the driver's CUDA: nvidia-smi names it"
            yield Finding(
                "torch", "CUDA", "broken", f"there is a driver, but torch ({built}) sees no device", True, mend
            )
        return
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
        yield _tried("torch", f"a step on {device}", partial(_step, device), True, _REINSTALL, name)
    is_nccl = torch.distributed.is_nccl_available()
    yield Finding(
        "torch", "NCCL", "works" if is_nccl else "missing", "ranks on GPUs", True, "" if is_nccl else _REINSTALL
    )


def _step(device: torch.device) -> str:
    """A forward and backward pass of a tiny model."""
    stack = StackConfig.model_validate({"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_li", "attention"]})
    with torch.random.fork_rng(devices=[]):
        model = IsotropicConfig(stack=stack).build().to(device)
        bases = torch.full((1, 64), ord("A"), device=device)
        loss = model(bases, torch.ones(1, 64, dtype=torch.long, device=device)).float().square().mean()
    loss.backward()
    if not torch.isfinite(loss):
        raise ArithmeticError(f"the loss is {float(loss)}")
    return f"torch {torch.__version__}"


def _tried(
    room: str, name: str, run: Callable[[], str], is_required: bool, mend: str, more: str | None = None
) -> Finding:
    """Whether something runs through, whatever it raises."""
    try:
        detail = run()
    except Exception as error:
        return Finding(room, name, "broken", f"{type(error).__name__}: {error}".splitlines()[0], is_required, mend)
    return Finding(room, name, "works", more or detail, is_required)


def _kernels() -> Iterable[Finding]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, backend in BACKENDS.items():
        reason = why_unusable(name, device)
        if reason is None:
            detail = f"equals the plain reference on {device.type}, values and gradients"
            yield Finding("kernels", name, "works", detail, backend.kernel is None)
        elif backend.kernel is None:
            yield Finding("kernels", name, "broken", reason, True, _REINSTALL)
        else:
            yield _unusable(name, backend.kernel, reason, device)
    reason = why_no_back_to_back(device)
    if reason is None:
        yield Finding("kernels", "back_to_back", "works", "equals the plain reference, values and gradients", False)
    else:
        yield _unusable("back_to_back", BACK_TO_BACK, reason, device)


def _fp8() -> Iterable[Finding]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = probe("transformer_engine").reason
    if reason is None:
        mend = KERNELS["transformer_engine"].install
        yield _tried(
            "kernels", "transformer_engine", partial(_multiply_in_fp8, "transformer_engine", device), False, mend
        )
    else:
        yield _unusable("transformer_engine", "transformer_engine", reason, device)
    yield _tried(
        "kernels", "FP8 by torch", partial(_multiply_in_fp8, "torch", device), False, "use training.precision=bf16"
    )


def _multiply_in_fp8(backend: Backend, device: torch.device) -> str:
    errors = product_errors(backend, device)
    name, largest = max(errors.items(), key=lambda item: item[1])
    if not largest < LARGEST_FP8_ERROR:
        raise ArithmeticError(f"a layer differs from fp32 in {name} by {largest:.3f} of its norm")
    how = "" if device.type == "cuda" else ", by products in fp32 of factors in FP8: right, and slow"
    return f"a layer is within {largest:.3f} of fp32 on {device.type}{how}"


def _unusable(name: str, kernel: str, reason: str, device: torch.device) -> Finding:
    """A kernel of somebody else's; without a GPU there is nothing to mend."""
    state: State = "missing" if probe(kernel).version is None else "broken"
    mend = KERNELS[kernel].install if device.type == "cuda" else ""
    if not mend:
        reason = f"{KERNELS[kernel].what_for}; for GPUs only" if state == "missing" else reason
    return Finding("kernels", name, state, reason, False, mend)


def _deepspeed() -> Finding:
    def use() -> str:
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        return f"{deepspeed.__version__}, accelerator {get_accelerator().device_name()}"

    return _tried("training", "deepspeed", use, True, "pip install --requirement requirements.txt")


def _tools() -> Iterable[Finding]:
    """What DeepSpeed compiles its communication with, at the first start on a CPU."""
    is_needed = not torch.cuda.is_available()
    for name, command in (("g++", "apt-get install g++"), ("ninja", "pip install ninja")):
        found = shutil.which(name) or _beside_python(name)
        if found:
            yield Finding("training", name, "works", found, is_needed)
        else:
            yield Finding("training", name, "missing", "DeepSpeed compiles with it on a CPU", is_needed, command)


def _beside_python(name: str) -> str | None:
    return shutil.which(name, path=str(Path(sys.executable).parent))


def _mpi() -> Finding:
    """In a process of its own: an MPI that can't start ends the process."""
    is_well, detail = _said([sys.executable, "-c", _MPI])
    launcher = _beside_python("mpirun") or shutil.which("mpirun")
    if not is_well:
        mend = "pip install --requirement requirements.txt, which brings an MPI"
        return Finding("clusters", "MPI", "broken", f"data tools run in one process: {detail}", False, mend)
    if launcher is None:
        detail = f"{detail}; no mpirun: start the data tools with srun"
    return Finding("clusters", "MPI", "works", detail)


def _slurm() -> Iterable[Finding]:
    for name in ("sbatch", "srun", "scontrol"):
        found = shutil.which(name)
        if found is None:
            yield Finding("clusters", name, "missing", "only where Slurm starts jobs")
        else:
            is_well, detail = _said([found, "--version"])
            yield Finding("clusters", name, "works" if is_well else "broken", detail)


def _said(command: Sequence[str]) -> tuple[bool, str]:
    """Whether a command succeeds, and the first line of what it prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    is_well = done.returncode == 0
    lines = (done.stdout if is_well else done.stderr).strip().splitlines()
    return is_well, lines[0 if is_well else -1] if lines else f"exit code {done.returncode}"


def _savanna(root: Path) -> Finding:
    if (root / "savanna" / "savanna").is_dir():
        return Finding("savanna", "checkout", "works", "the submodule is there")
    detail = "only where Savanna trains, or its configurations are read"
    return Finding("savanna", "checkout", "missing", detail, False, "git submodule update --init")
