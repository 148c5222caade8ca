"""A few random kills of a run, by the script that a person lets do a hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_five_random_kills_change_nothing(tmp_path):
    command = [sys.executable, ROOT / "bench" / "soak.py", "--kills", "5", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| last weights, bit for bit | yes |" in done.stdout
    assert done.stdout.count("| yes |") == 3
