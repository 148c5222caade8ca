"""One job a run folder: the lock, its sign of life, and when it is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hyena_blt_savanna.training.run_folder import RunInUseError, RunLock

HOLD = """
import sys, time
from pathlib import Path
from hyena_blt_savanna.training.run_folder import RunLock
RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def rewrite(lock: RunLock, **changes: object) -> None:
    content = json.loads(lock.path.read_text())
    lock.path.write_text(json.dumps({**content, **changes}))


def test_a_second_job_is_refused_until_the_first_is_done(tmp_path):
    with RunLock(tmp_path / "run") as first:
        assert json.loads(first.path.read_text())["pid"] == os.getpid()
        with pytest.raises(RunInUseError, match=r"run is in use by job .*process .*last seen \d s ago: choose another"):
            RunLock(tmp_path / "run").acquire()
    assert not first.path.exists()
    with RunLock(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_jobs_lock_is_taken_over_at_once(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunInUseError):
            RunLock(tmp_path).acquire()
        holder.send_signal(signal.SIGKILL)
        # Not yet waited for: a zombie is dead too.
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                with RunLock(tmp_path):
                    break
            except RunInUseError:
                time.sleep(0.05)
        else:
            pytest.fail("the dead job's lock was not taken over")


def test_another_hosts_lock_is_taken_over_when_it_is_silent(tmp_path, caplog):
    first = RunLock(tmp_path)
    first.acquire()
    first.release()
    first.path.write_text(json.dumps({"job_id": "77", "host": "elsewhere", "pid": 1, "token": "theirs"}))
    with pytest.raises(RunInUseError, match="job 77"):
        RunLock(tmp_path, stale_seconds=60).acquire()
    an_hour_ago = time.time() - 3600
    os.utime(first.path, (an_hour_ago, an_hour_ago))
    with RunLock(tmp_path, stale_seconds=60):
        assert "taking over the run folder from job 77" in caplog.text
        assert "last seen 3600 s ago" in caplog.text or "last seen 3601 s ago" in caplog.text


def test_an_earlier_start_of_the_same_slurm_job_is_over(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    held = RunLock(tmp_path)
    held.acquire()
    rewrite(held, host="another-node")
    with pytest.raises(RunInUseError, match="job 4711"):
        RunLock(tmp_path).acquire()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with RunLock(tmp_path):
        pass
    held.release()


def test_signs_of_life_are_given(tmp_path):
    with RunLock(tmp_path, sign_of_life_seconds=0.05) as lock:
        long_ago = time.time() - 1000
        os.utime(lock.path, (long_ago, long_ago))
        deadline = time.monotonic() + 5
        while lock.path.stat().st_mtime < long_ago + 500:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lock.check()


def test_a_job_that_lost_its_lock_stops_and_leaves_the_others(tmp_path):
    lock = RunLock(tmp_path, sign_of_life_seconds=0.05)
    lock.acquire()
    rewrite(lock, token="somebody else's")
    time.sleep(0.5)
    with pytest.raises(RunInUseError, match="was taken over by another job"):
        lock.check()
    lock.release()
    assert lock.path.exists()


def test_two_jobs_that_find_the_same_stale_lock(tmp_path, monkeypatch):
    first = RunLock(tmp_path)
    first.path.parent.mkdir(exist_ok=True)
    first.path.write_text(json.dumps({"host": "elsewhere", "token": "dead"}))
    os.utime(first.path, (0, 0))
    # The second one comes while the first waits for the dust to settle.
    monkeypatch.setattr(
        "hyena_blt_savanna.training.run_folder.time.sleep", lambda _: rewrite(first, token="the second one's")
    )
    with pytest.raises(RunInUseError, match="took it over at the same moment"):
        first.acquire()
