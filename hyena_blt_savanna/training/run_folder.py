"""The folder of a run, and the lock that keeps a second job out of it.

RUN/config.yaml     the whole configuration
RUN/metrics.jsonl   one JSON object a line
RUN/checkpoints/    step_00000100/ ...
RUN/logs/           a file for each rank
RUN/report/         what is made of a finished run
RUN/lock.json       who is working here, and when it was last seen alive
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

logger = logging.getLogger(__name__)

SIGN_OF_LIFE_SECONDS = 5.0
STALE_SECONDS = 60.0
_SETTLE_SECONDS = 0.2


class RunInUseError(ValueError):
    """Another job works in the run folder."""


class RunFolder:
    """Paths of a run.

    Args:
        path: the folder; made when it is locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.report = path / "report"

    def make(self) -> None:
        """Makes the folders."""
        for folder in (self.checkpoints, self.logs, self.report):
            folder.mkdir(parents=True, exist_ok=True)


class RunLock:
    """Keeps other jobs out of a run folder while this process lives.

    A lock is stale, and taken over, when its process is known to be dead (same host), when it is of an earlier
    start of the same Slurm job, or when it has not been touched for `stale_seconds`. A holder that finds its lock
    taken over stops being one: see `check`. A context manager.

    Args:
        folder: of the run.
        stale_seconds: age of the last sign of life from which a lock is stale.
        sign_of_life_seconds: time between signs of life.
    """

    def __init__(
        self,
        folder: Path,
        stale_seconds: float = STALE_SECONDS,
        sign_of_life_seconds: float = SIGN_OF_LIFE_SECONDS,
    ) -> None:
        self.path = folder / "lock.json"
        self.stale_seconds = stale_seconds
        self.sign_of_life_seconds = sign_of_life_seconds
        self._token = uuid.uuid4().hex
        self._stop = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Takes the lock and begins to give signs of life.

        Raises:
            RunInUseError: a living job holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({**_identity(), "token": self._token}, indent=1)
        mine = self.path.with_name(f".lock.{self._token}")
        mine.write_text(content)
        try:
            try:
                # A hard link appears at once and with its content, and only where there is nothing yet.
                os.link(mine, self.path)
            except FileExistsError:
                self._refuse_unless_stale(now=mine.stat().st_mtime)
                mine.replace(self.path)
                # Two jobs may have found the same stale lock: the later one's stays.
                time.sleep(_SETTLE_SECONDS)
                if not self._is_mine():
                    raise RunInUseError(
                        f"{self.path.parent} is in use: another job took it over at the same moment"
                    ) from None
        finally:
            mine.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._give_signs_of_life, name="run lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that the folder is still this job's.

        Raises:
            RunInUseError: another job has taken the lock over.
        """
        if self._lost:
            raise RunInUseError(
                f"{self.path.parent} was taken over by another job, because this one gave no sign of life for "
                f"{self.stale_seconds:.0f} s; this one stops"
            )

    def release(self) -> None:
        """Gives the lock back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._is_mine():
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _refuse_unless_stale(self, now: float) -> None:
        holder = _read(self.path)
        try:
            # Both times are the file system's, so the clocks of two hosts need not agree.
            age = now - self.path.stat().st_mtime
        except FileNotFoundError:
            return
        who = f"job {holder.get('job_id')} (process {holder.get('pid')} on {holder.get('host')})"
        reason = _why_dead(holder) or (f"it was last seen {age:.0f} s ago" if age > self.stale_seconds else None)
        if reason is None:
            raise RunInUseError(
                f"{self.path.parent} is in use by {who}, last seen {max(0.0, age):.0f} s ago: choose another run "
                f"folder, or wait; {self.path} is taken over when it has been left alone for {self.stale_seconds:.0f} s"
            )
        logger.warning("taking over the run folder from %s: %s", who, reason)

    def _is_mine(self) -> bool:
        return _read(self.path).get("token") == self._token

    def _give_signs_of_life(self) -> None:
        while not self._stop.wait(self.sign_of_life_seconds):
            if not self._is_mine():
                self._lost = True
                return
            try:
                os.utime(self.path)
            except OSError as error:
                logger.warning("no sign of life could be given in %s: %s", self.path, error)


def _identity() -> dict[str, Any]:
    process = psutil.Process()
    return {
        "job_id": os.environ.get("SLURM_JOB_ID", f"{socket.gethostname()}:{process.pid}"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "host": socket.gethostname(),
        "pid": process.pid,
        "process_started": process.create_time(),
    }


def _why_dead(holder: dict[str, Any]) -> str | None:
    mine = _identity()
    # Slurm starts a job again only when it has ended.
    if holder.get("job_id") == mine["job_id"] and int(holder.get("restart", 0)) < mine["restart"]:
        return "it is an earlier start of this job"
    if holder.get("host") == mine["host"]:
        try:
            process = psutil.Process(int(holder.get("pid", -1)))
            # A later process may have got the same number, and a killed one may not have been buried yet.
            same = abs(process.create_time() - float(holder.get("process_started", 0))) < 1.0
            if not same or process.status() == psutil.STATUS_ZOMBIE:
                return "its process has ended"
        except (psutil.NoSuchProcess, ValueError):
            return "its process has ended"
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
