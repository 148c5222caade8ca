"""The environment that launch/env.sh gives to trainings, for measurements that start processes of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def malloc_settings() -> dict[str, str]:
    """What the C library is told about keeping freed memory. It reads them when a process starts."""
    done = subprocess.run(
        ["bash", "-c", "source launch/env.sh && env -0"], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    settings = dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)
    return {key: value for key, value in settings.items() if key.startswith(("MALLOC_", "GLIBC_"))}
