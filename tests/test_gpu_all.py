"""bench/gpu_all.sh as far as a machine without a card can try it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "bench" / "gpu_all.sh"


def take(folder: Path, *slices: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"RESULTS": str(folder)} | environment
    return subprocess.run([SCRIPT, *slices], env=given, capture_output=True, text=True)


def test_the_list_has_every_slice(tmp_path: Path) -> None:
    listed = take(tmp_path, "list").stdout.splitlines()
    slices = re.findall(r"^    \[(\w+)\]=", SCRIPT.read_text(), re.MULTILINE)
    assert [line.split()[0] for line in listed] == slices
    assert len(slices) > 10
    for name in slices:
        assert re.search(rf"^        {name}\)", SCRIPT.read_text(), re.MULTILINE), name
    unknown = take(tmp_path, "doctor", "stepp")
    assert unknown.returncode == 2
    assert "there is no slice stepp: choose from doctor parity" in unknown.stderr
    assert not list(tmp_path.iterdir())


def test_the_files_that_it_names_exist() -> None:
    paths = re.findall(r"\b((?:tools|launch|bench|configs|tests)/[\w./]+\w)", SCRIPT.read_text())
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path


def test_slices_one_after_the_other(tmp_path: Path) -> None:
    found = take(tmp_path, "doctor", "parity", ON_CPU="1", SECONDS_A_SLICE="1", CUDA_VISIBLE_DEVICES="")
    assert found.returncode == 1
    assert "doctor ran past 1 s" in found.stdout
    assert "parity ran past 1 s" in found.stdout
    assert "failed: doctor parity" in found.stderr
    whole = take(tmp_path, "doctor", ON_CPU="1", CUDA_VISIBLE_DEVICES="")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert f"torch {torch.__version__.partition('+')[0]}" in (tmp_path / "doctor.log").read_text()


def test_without_a_card(tmp_path: Path) -> None:
    refused = take(tmp_path / "results", "doctor", CUDA_VISIBLE_DEVICES="")
    assert refused.returncode == 2
    assert "torch finds no CUDA device: run python tools/doctor.py, or set ON_CPU=1" in refused.stderr
    assert not (tmp_path / "results").exists()
