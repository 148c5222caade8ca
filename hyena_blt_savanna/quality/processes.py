"""Programs of the repository as processes of their own, that can be stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 20.0


class StoppedError(RuntimeError):
    """A process that was stopped before its end."""


def run_process(
    command: Sequence[str],
    log: Path,
    num_threads: int,
    stop: threading.Event,
    settings: Mapping[str, str] | None = None,
) -> int:
    """Runs a program in the repository's root to its end.

    Args:
        command: and its arguments.
        log: file that its output is added to.
        num_threads: of each of its processes.
        stop: ends it when set.
        settings: further environment variables.

    Returns:
        Its exit code.

    Raises:
        StoppedError: `stop` was set.
    """
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "NUM_RANKS": "1",
        "OMP_NUM_THREADS": str(num_threads),
        **(settings or {}),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C at the terminal reaches the benchmark only, which then ends its processes.
            start_new_session=True,
        )
        while True:
            try:
                return process.wait(_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    _end(process)
                    raise StoppedError(f"{command[0]} was stopped") from None


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    # The whole session: a launcher's ranks must not outlive it.
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
