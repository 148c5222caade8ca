"""A process that stands still ends, and says where it stood."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from hyena_blt_savanna.training.watchdog import STALLED, Watchdog

ROOT = Path(__file__).resolve().parents[2]
STAND = """
import sys, time
from pathlib import Path
from hyena_blt_savanna.training.watchdog import Watchdog

def stands_here():
    time.sleep(60)

with Watchdog(0.5, Path(sys.argv[1]), lambda: print("said", flush=True), others_seconds=0.2) as watchdog:
    for _ in range(8):
        time.sleep(0.1)
        watchdog.beat()
    print("beaten", flush=True)
    stands_here()
"""


def test_a_process_without_progress_ends_and_leaves_its_stacks(tmp_path):
    path = tmp_path / "stacks.txt"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STAND, path], capture_output=True, text=True, timeout=30, cwd=ROOT)
    assert (done.returncode, done.stdout.split()) == (STALLED, ["beaten", "said"])
    assert "in stands_here" in path.read_text()
    assert time.monotonic() - began < 20
    # The next start, which ends well, leaves them there.
    (tmp_path / "stacks_1.txt").touch()
    with Watchdog(20.0, path):
        pass
    assert "in stands_here" in (tmp_path / "stacks_2.txt").read_text()
    assert not path.exists()


def test_nothing_is_left_of_a_run_that_goes_on(tmp_path):
    for seconds in (0.2, None):
        with Watchdog(seconds, tmp_path / "stacks.txt") as watchdog:
            for _ in range(4):
                time.sleep(0.1)
                watchdog.beat()
        assert list(tmp_path.iterdir()) == []
