"""Optional kernels: why one is missing, and that none is imported before it is asked for."""

from __future__ import annotations

import importlib.metadata
import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from hyena_blt_savanna.model import kernels
from hyena_blt_savanna.model.kernels import KERNELS, Kernel, KernelError, Probe, load, probe


@pytest.fixture(autouse=True)
def _fresh_probes() -> Iterator[None]:
    probe.cache_clear()
    yield
    probe.cache_clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))


def install(
    monkeypatch: pytest.MonkeyPatch, version: str | None, module: str = "math", capability: tuple[int, int] = (8, 0)
) -> None:
    def found(distribution: str) -> str:
        if version is None or distribution != "toy-cu12":
            raise importlib.metadata.PackageNotFoundError
        return version

    toy = Kernel(("toy-cu13", "toy-cu12"), module, (1, 10), capability, "pip install toy-cu13", "toys")
    monkeypatch.setitem(KERNELS, "toy", toy)
    monkeypatch.setattr(importlib.metadata, "version", found)


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    assert probe("toy") == Probe("toy", None, "not installed; to install it: pip install toy-cu13")
    with pytest.raises(KernelError, match="toy can't be used: not installed"):
        load("toy", "sqrt")


def test_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "1.9.3")
    assert probe("toy").reason == "version 1.9.3 is older than 1.10: pip install toy-cu13"


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "1.10")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert probe("toy").reason == "there is no CUDA device"


@pytest.mark.usefixtures("gpu")
def test_a_device_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "1.10", capability=(8, 9))
    assert probe("toy").reason == "the device has compute capability 8.0, and it needs 8.9"


@pytest.mark.usefixtures("gpu")
def test_an_import_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "1.10", module="toy_that_is_not_there")
    assert probe("toy").reason == (
        "importing toy_that_is_not_there failed: ModuleNotFoundError: No module named 'toy_that_is_not_there'"
    )


@pytest.mark.usefixtures("gpu")
def test_one_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "2.0.0+cu130")
    assert probe("toy") == Probe("toy", "2.0.0+cu130", None)
    assert load("toy", "sqrt") is math.sqrt


def test_the_model_imports_no_kernel() -> None:
    modules = [kernel.module.partition(".")[0] for kernel in KERNELS.values()]
    code = f"import sys, hyena_blt_savanna.model.hyena_blt; print([name for name in {modules} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert kernels.KERNELS.keys() == {"subquadratic_ops", "causal_conv1d", "flashfftconv", "transformer_engine"}
