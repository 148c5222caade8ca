"""What is told of runs from their metrics alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.training.watching import Watched, as_text, draw, stragglers, summary

ROOT = Path(__file__).resolve().parents[2]


def write_run(run: Path, num_lines: int = 3, slow: int = 1) -> Path:
    run.mkdir()
    lines: list[dict] = [{"kind": "start", "step": 0, "num_steps": 100}]
    lines.append({"kind": "first_step", "step": 1, "seconds_since_start": 6.25})
    for index in range(1, num_lines + 1):
        line = {"kind": "training", "step": 10 * index, "loss": 1.4, "bits_per_base": 2.0 - index / 10}
        line |= {"bases_per_second": 1234.5, "utilisation": 0.31, "peak_memory_bytes": 2.5e9, "seconds_per_step": 3.0}
        line |= {"slowest_rank": slow if index > 1 else 0, "slowest_rank_seconds": 3.0, "median_rank_seconds": 2.0}
        lines.append({**line, "grad_norm": 0.5})
    lines.append({"kind": "validation", "step": 20, "bits_per_base": 1.85})
    lines.append({"kind": "checkpoint", "step": 20, "name": "step_00000020", "blocked_seconds": 0.04})
    bad = {"action": "skip", "reason": "the loss is nan", "first_sample": 100, "last_sample": 103, "stage": 0}
    lines.append({"kind": "bad_step", "step": 26, **bad})
    lines.append({"kind": "checkpoint_failed", "step": 30, "error": "disk <full>"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"kind": "traini')
    return run


def test_what_is_known_of_a_run(tmp_path):
    rows = summary(Watched.read(write_run(tmp_path / "a")))
    known = dict(rows)
    assert known["step"] == "30 of 100"
    assert known["bits per base"] == "1.7000"
    assert known["bases per second"] == "1,234"
    assert known["utilisation"] == "31.0%"
    assert known["peak memory of a rank"] == "2.50 GB"
    assert known["time left"] == "3:30"
    assert known["validation"] == "1.8500 bits per base at step 20"
    assert known["last checkpoint"] == "step_00000020, training waited 0.04 s for it"
    assert known["slowest rank"] == "rank 1: 3.00 s of its own work, 1.50 times the median"
    assert known["first step"] == "6.2 s after the last start"
    events = [value for name, value in rows if name == "event"]
    assert events == [
        "step 26: not learned from (skip): the loss is nan; samples 100 to 103 of stage 0",
        "step 30: checkpoint failed: disk <full>",
    ]


def test_a_run_that_has_just_started_and_one_that_has_not(tmp_path):
    run = tmp_path / "new"
    run.mkdir()
    with pytest.raises(ConfigError, match="give the folder of a run that has started"):
        Watched.read(run)
    (run / "metrics.jsonl").write_text('{"kind": "start", "step": 0, "num_steps": 7}\n')
    assert dict(summary(Watched.read(run)))["step"] == "0 of 7"


def test_stragglers_by_interval(tmp_path):
    told = stragglers(Watched.read(write_run(tmp_path / "a"))).splitlines()
    assert len(told) == 5
    assert told[0].startswith("step       10  rank 0:")
    assert told[3:] == ["rank 1 was the slowest in 2 of 3", "rank 0 was the slowest in 1 of 3"]


def test_a_curve_goes_through_its_points():
    tree = ET.fromstring(draw([[(0, 1.0), (10, 2.0)], [], [(5, 1.5)]]))
    lines = [node.attrib["points"] for node in tree.iter() if node.tag == "polyline"]
    assert lines[1] == ""
    (x0, y0), (x1, y1), (x2, y2) = (
        tuple(map(float, point.split(","))) for line in (lines[0], lines[2]) for point in line.split()
    )
    # Half way between in both directions; larger values are higher up.
    assert (x2, y2) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2))
    assert y1 < y0


def test_the_tool_compares_runs_on_a_page(tmp_path):
    runs = [write_run(tmp_path / "first", 4), write_run(tmp_path / "second", 2)]
    page = tmp_path / "page.html"
    command = [sys.executable, ROOT / "tools" / "watch_run.py", *runs, "--html", page]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"step +40 of 100", done.stdout)
    assert re.search(r"step +20 of 100", done.stdout)
    text = page.read_text()
    assert text.count("<polyline") == 8
    assert "disk &lt;full&gt;" in text
    assert as_text([Watched.read(runs[0])]).splitlines()[0].startswith("run")
    done = subprocess.run([*command[:2], tmp_path / "none"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, "has started" in done.stderr) == (1, True)
