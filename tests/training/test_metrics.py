"""The metrics file, the monitor, the terminal."""

from __future__ import annotations

import json
import logging
import math
import resource
from pathlib import Path

import pytest
import torch

from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.training import metrics
from hyena_blt_savanna.training.durations import readable_seconds
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.logs import log_to_file, log_to_terminal
from hyena_blt_savanna.training.metrics import (
    MetricsFile,
    Reporter,
    measure_peak_flops,
    training_line,
)


def a_line(step: int = 10, padding: tuple[float, float] = (0.0, 0.0)) -> dict:
    return training_line(
        step=step,
        stage=1,
        nats_per_base=2 * math.log(2),
        auxiliary_nats_per_base=0.25,
        lr=1e-3,
        grad_norm=0.5,
        num_steps=5,
        bases=4000.0,
        patches=500.0,
        cut_patches=3.0,
        padding_share_of_bases=padding[0],
        padding_share_of_patches=padding[1],
        interval_seconds=2.0,
        seconds=17.0,
        flops_per_base=1e6,
        peak_flops=4e9,
    )


def test_a_line_of_training():
    line = a_line()
    assert line["bits_per_base"] == pytest.approx(2.0)
    assert (line["bases_per_second"], line["patches_per_second"], line["mean_patch_bases"]) == (2000.0, 250.0, 8.0)
    assert line["utilisation"] == pytest.approx(1e6 * 2000 / 4e9)
    assert line["seconds_per_step"] == 0.4


def test_later_and_torn_lines_are_dropped(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.truncate_after(3)
    assert not file.path.exists()
    for step in (0, 2, 4, 6):
        file.append({"kind": "training", "step": step, "loss": math.nan})
    with file.path.open("a") as stream:
        stream.write('{"kind": "training", "st')
    file.truncate_after(4)
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert lines[0]["loss"] is None
    file.append({"kind": "training", "step": 6})
    assert file.path.read_text().endswith('{"kind": "training", "step": 6}\n')


def test_lines_wait_while_the_disk_is_full(tmp_path, caplog):
    file = MetricsFile(Path("/dev/full"))
    file.append({"kind": "training", "step": 1})
    file.append({"kind": "training", "step": 2})
    assert "No space left on device; 2 line(s) wait" in caplog.text
    file.path = tmp_path / "metrics.jsonl"
    file.append({"kind": "training", "step": 3})
    file.append({"kind": "training", "step": 4})
    assert [json.loads(line)["step"] for line in file.path.read_text().splitlines()] == [1, 2, 3, 4]


def test_no_half_of_a_line_stays_on_a_full_disk(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"kind": "training", "step": 1})
    whole = file.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, limits[1]))
    try:
        file.append({"kind": "training", "step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.path.read_bytes() == whole
    file.append({"kind": "training", "step": 3})
    assert [json.loads(line)["step"] for line in file.path.read_text().splitlines()] == [1, 2, 3]


class FakeMonitor:
    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.events: list[tuple] = []

    def write_events(self, events: list[tuple]) -> None:
        self.events += events


def test_the_monitor_gets_what_the_file_gets(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    monitor = FakeMonitor(enabled=True)
    reporter = Reporter(tmp_path / "metrics.jsonl", True, 40, monitor)
    reporter.start(0, {"device": "cpu"})
    reporter.advance()
    reporter.training(a_line())
    reporter.validation({"step": 10, "loss": 1.0, "bits_per_base": 1.4427})
    reporter.event("checkpoint", {"step": 10})
    reporter.close()
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kinds == ["start", "training", "validation", "checkpoint"]
    assert ("training/bases_per_second", 2000.0, 10) in monitor.events
    assert ("validation/bits_per_base", 1.4427, 10) in monitor.events
    assert "step 10/40  bits/base 2.0000  lr 1.00e-03  kb/s 2.0  grad_norm 0.500  0:12 left" in caplog.messages
    assert "step 10/40  validation bits/base 1.4427" in caplog.messages


def test_padding_is_told_where_there_is_any(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    reporter = Reporter(tmp_path / "metrics.jsonl", True, 40)
    for padding in ((0.0, 0.0), (0.0125, 0.25), (0.0, 0.031)):
        reporter.training(a_line(padding=padding))
    assert "padding" not in caplog.messages[0]
    assert "kb/s 2.0  padding 1.2% of bases, 25.0% of patches  grad_norm" in caplog.messages[1]
    assert "padding 0.0% of bases, 3.1% of patches" in caplog.messages[2]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["padding_share_of_bases"] for line in lines] == [0.0, 0.0125, 0.0]
    assert [line["padding_share_of_patches"] for line in lines] == [0.0, 0.25, 0.031]


def test_a_progress_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metrics.sys.stderr, "isatty", lambda: True, raising=False)
    reporter = Reporter(tmp_path / "metrics.jsonl", True, 40)
    reporter.start(5, {})
    reporter.training(a_line())
    reporter.advance()
    reporter.close()
    shown = capsys.readouterr().err
    assert "6/40" in shown
    assert "bits/base=2.0000" in shown


def test_other_ranks_are_silent(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    monitor = FakeMonitor(enabled=True)
    reporter = Reporter(tmp_path / "metrics.jsonl", False, 40, monitor)
    reporter.start(0, {})
    reporter.advance()
    reporter.training(a_line())
    reporter.validation({"step": 10, "bits_per_base": 1.0})
    reporter.event("checkpoint", {"step": 10})
    reporter.close()
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not monitor.events
    assert not caplog.messages


def test_peak_is_what_large_products_reach():
    random_state = torch.get_rng_state()
    found = measure_peak_flops(torch.device("cpu"), torch.float32, budget_seconds=0.1)
    assert 1e8 < found < 1e14
    assert torch.get_rng_state().equal(random_state)


def test_flops_of_a_step():
    """A model whose projections are nearly all there is: 6 operations a weight and position."""
    config = IsotropicConfig(stack=StackConfig(width=512, blocks=["hyena_se"] * 2))
    weights = sum(
        parameter.numel()
        for module in config.build().modules()
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 2 and min(parameter.shape) > 100
    )
    assert training_flops_per_base(config, 1024, 8.0) == pytest.approx(6 * weights, rel=0.02)


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "0:05"), (65, "1:05"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert readable_seconds(seconds) == text


@pytest.mark.parametrize("is_first", [True, False])
def test_where_log_lines_go(tmp_path, capsys, is_first):
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    deepspeed = logging.getLogger("DeepSpeed")
    try:
        log_to_terminal(is_first)
        log_to_file(tmp_path / "logs", 3)
        logging.getLogger("hyena_blt_savanna.training").info("of ours")
        logging.getLogger("hyena_blt_savanna.training").warning("a warning of ours")
        deepspeed.info("of deepspeed")
        deepspeed.warning("a warning of deepspeed")
        deepspeed.error("an error of deepspeed")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
        deepspeed.propagate = False
    captured = capsys.readouterr()
    shown = captured.err.splitlines()
    assert shown == [
        line if is_first else f"rank: {line}"
        for line in ["of ours", "a warning of ours", "an error of deepspeed"]
        if is_first or line != "of ours"
    ]
    assert captured.out == ""
    written = (tmp_path / "logs" / "rank_00003.log").read_text()
    assert all(text in written for text in ("of ours", "INFO DeepSpeed: of deepspeed", "WARNING DeepSpeed: a warning"))
