"""The doctor: it finds what is broken, says what mends it, and fails only where training needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from hyena_blt_savanna.model import convolution, kernels
from hyena_blt_savanna.model.convolution import BACKENDS, Backend
from hyena_blt_savanna.training import doctor
from hyena_blt_savanna.training.doctor import Finding, as_json, report_lines

ROOT = Path(__file__).parents[2]


def named(findings: object, name: str) -> Finding:
    [found] = [finding for finding in findings if finding.name == name]  # type: ignore[attr-defined]
    return found


@pytest.mark.slow
def test_this_machine_is_well(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/doctor.py"), "--json", "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["works"] is True
    states = {finding["name"]: finding["state"] for finding in found["findings"]}
    for name in ("torch", "deepspeed", "a training step", "gloo", "MPI", "g++", "disk of runs"):
        assert states[name] == "works", name
    for name, backend in BACKENDS.items():
        assert states[name] == "works" or backend.kernel is not None, name
    assert states["flashfftconv"] == "missing"


def test_requirements(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text("# first\ntorch==9.9.9  # new\nnot-there==1.0\npydantic[all]==0.1\nmypy-not-there==2\n")
    found = list(doctor._python(tmp_path))
    assert named(found, "not-there") == Finding(
        "python", "not-there", "missing", "1.0 is wanted", True, "pip install --requirement requirements.txt"
    )
    assert named(found, "torch").state == named(found, "pydantic").state == "broken"
    assert not named(found, "torch").is_fatal
    assert torch.__version__ in named(found, "torch").detail
    assert len(list(doctor._python(ROOT))) > 15


def test_an_old_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "LEAST_PYTHON", (99, 0))
    assert named(doctor._python(tmp_path), "python").is_fatal


def test_a_wrong_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "fourier", Backend(lambda x, taps: BACKENDS["conv1d"].convolve(x, 2 * taps)))
    found = named(doctor._kernels(), "fourier")
    assert found.is_fatal
    assert "differs from the plain reference in y" in found.detail


def test_a_kernel_that_fails_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(convolution, "backend_errors", lambda name, device: {"y": 0.5})
    for module in (doctor, convolution):
        monkeypatch.setattr(module, "probe", lambda name: kernels.Probe(name, "1.0", None))
    findings = list(doctor._kernels())
    broken = named(findings, "causal_conv1d")
    assert (broken.state, broken.is_fatal) == ("broken", False)
    assert broken.mend == kernels.KERNELS["causal_conv1d"].install


def test_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, torchs = doctor._fp8()
    assert (engine.name, engine.state, engine.mend) == ("transformer_engine", "missing", "")
    assert torchs.state == "works"
    assert "of fp32 on cpu, by products in fp32 of factors in FP8" in torchs.detail
    monkeypatch.setattr(doctor, "product_errors", lambda backend, device: {"y": 0.02, "dx": 0.4})
    monkeypatch.setattr(doctor, "probe", lambda name: kernels.Probe(name, "2.20.2", None))
    for found in doctor._fp8():
        assert (found.state, found.is_fatal) == ("broken", False)
        assert found.detail == "ArithmeticError: a layer differs from fp32 in dx by 0.400 of its norm"
        assert found.mend


def test_disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor._disk("runs", tmp_path / "nowhere").is_fatal
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10**12, 10**12, 10**9))
    full = doctor._disk("runs", tmp_path)
    assert (full.state, full.is_fatal) == ("broken", False)
    assert "1.0 GB are free" in full.detail


def test_a_driver_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: f"/usr/bin/{name}")
    found = named(doctor._torch(), "CUDA")
    assert found.is_fatal
    assert "sees no device" in found.detail


def test_what_raises_is_broken() -> None:
    def explode() -> str:
        raise RuntimeError("illegal instruction\nand more")

    found = doctor._tried("torch", "a step", explode, True, "mend it")
    assert found == Finding("torch", "a step", "broken", "RuntimeError: illegal instruction", True, "mend it")


def test_compilers_mpi_and_slurm_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: None)
    assert named(doctor._tools(), "g++") == Finding(
        "training", "g++", "missing", "DeepSpeed compiles with it on a CPU", True, "apt-get install g++"
    )
    assert {finding.state for finding in doctor._slurm()} == {"missing"}
    monkeypatch.setattr(doctor, "_MPI", "raise ImportError('libmpi.so: no such file')")
    assert doctor._mpi().state == "broken"
    assert "libmpi.so" in doctor._mpi().detail


def test_a_slurm_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name, path=None: "false")
    assert [(finding.state, finding.detail) for finding in doctor._slurm()] == [("broken", "exit code 1")] * 3


def test_the_report() -> None:
    well = Finding("python", "python", "works", "3.12", True)
    optional = Finding("kernels", "fast", "missing", "not installed", False, "pip install fast")
    fatal = Finding("python", "torch", "missing", "2.13.0 is wanted", True, "pip install torch")
    lines = report_lines([well, fatal, optional])
    assert lines[-1] == "broken: see above"
    assert lines.index("Training needs these:") < lines.index("  torch: pip install torch")
    assert lines.index("These are optional:") < lines.index("  fast: pip install fast")
    assert report_lines([well, optional])[-1] == "all that training needs works"
    assert as_json([well, optional])["works"] is True
    assert as_json([fatal])["works"] is False


def test_a_savanna_that_is_there(tmp_path: Path) -> None:
    assert doctor._savanna(tmp_path).state == "missing"
    (tmp_path / "savanna" / "savanna").mkdir(parents=True)
    assert doctor._savanna(tmp_path).state == "works"
