"""What runs say of themselves, as text and as a page with curves: from their metrics.jsonl alone, on a shared disk.

The page is plain HTML with SVG in it: it opens anywhere, and needs no server.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.training.durations import readable_seconds

EVENTS = ("stopped", "stalled", "bad_step", "checkpoint_failed")
_COLOURS = ("#0b6e99", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#34495e")
_WIDTH, _HEIGHT, _MARGIN = 760, 260, 56
_SHOWN_EVENTS = 8
_CURVES: tuple[tuple[str, str, str], ...] = (
    ("bits_per_base", "training", "bits per base, training"),
    ("bits_per_base", "validation", "bits per base, validation"),
    ("bases_per_second", "training", "bases per second"),
    ("grad_norm", "training", "norm of the gradients"),
)
_STYLE = (
    "body{font:15px sans-serif;margin:2em auto;max-width:60em;color:#222}table{border-collapse:collapse}"
    "td{padding:.2em .8em;border-bottom:1px solid #ddd}"
)


@dataclass(frozen=True)
class Watched:
    """The lines of a run's metrics.

    Attributes:
        run: its folder.
        lines: all whole lines, in order.
        age_seconds: since the last one was written.
    """

    run: Path
    lines: Sequence[dict[str, Any]]
    age_seconds: float

    @classmethod
    def read(cls, run: Path) -> Watched:
        """Reads a run's metrics, while it goes on or afterwards.

        Raises:
            ConfigError: there are none.
        """
        path = run / "metrics.jsonl"
        try:
            text, age = path.read_text(), time.time() - path.stat().st_mtime
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}: give the folder of a run that has started") from error
        lines = []
        for line in text.splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                # The last line may be half written.
                continue
        return cls(run, lines, age)

    def of_kind(self, *kinds: str) -> list[dict[str, Any]]:
        """Lines of some kinds, in order."""
        return [line for line in self.lines if line["kind"] in kinds]

    def last(self, kind: str) -> dict[str, Any]:
        """The last line of a kind; empty if there is none."""
        return (self.of_kind(kind) or [{}])[-1]


def summary(watched: Watched) -> list[tuple[str, str]]:
    """What is known of a run, as names and readable values."""
    start, now = watched.last("start"), watched.last("training")
    validation, checkpoint, first = (watched.last(kind) for kind in ("validation", "checkpoint", "first_step"))
    num_steps = start.get("num_steps")
    rows = [("run", str(watched.run))]
    step = now.get("step", start.get("step", 0))
    rows.append(("step", f"{step:,}" + (f" of {num_steps:,}" if num_steps else "")))
    rows.append(("last line", f"{readable_seconds(watched.age_seconds)} ago"))
    formats: dict[str, tuple[str, Callable[[Any], str]]] = {
        "loss": ("loss", lambda value: f"{value:.4f} nats a base"),
        "bits_per_base": ("bits per base", lambda value: f"{value:.4f}"),
        "bases_per_second": ("bases per second", lambda value: f"{value:,.0f}"),
        "utilisation": ("utilisation", lambda value: f"{value:.1%}"),
        "peak_memory_bytes": ("peak memory of a rank", lambda value: f"{value / 1e9:.2f} GB"),
    }
    rows += [(name, show(now[key])) for key, (name, show) in formats.items() if now.get(key) is not None]
    if num_steps and now:
        left = readable_seconds((num_steps - step) * now["seconds_per_step"])
        rows.append(("time left", left if step < num_steps else "none: finished"))
    if validation.get("bits_per_base") is not None:
        rows.append(("validation", f"{validation['bits_per_base']:.4f} bits per base at step {validation['step']:,}"))
    if checkpoint:
        waited = checkpoint.get("blocked_seconds", 0.0)
        rows.append(("last checkpoint", f"{checkpoint['name']}, training waited {waited:.2f} s for it"))
    if "slowest_rank" in now:
        rows.append(("slowest rank", _slowest(now)))
    if first:
        rows.append(("first step", f"{first['seconds_since_start']:.1f} s after the last start"))
    rows.append(("starts", str(len(watched.of_kind("start")))))
    rows += [("event", describe_event(line)) for line in watched.of_kind(*EVENTS)[-_SHOWN_EVENTS:]]
    return rows


def as_text(runs: Sequence[Watched]) -> str:
    """Runs below each other."""
    blocks = []
    for watched in runs:
        rows = summary(watched)
        width = max(len(name) for name, _ in rows)
        blocks.append("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    return "\n\n".join(blocks)


def stragglers(watched: Watched) -> str:
    """A line for each logging interval: the slowest rank, and how often each rank was it."""
    lines = [line for line in watched.of_kind("training") if "slowest_rank" in line]
    counts: dict[int, int] = {}
    for line in lines:
        counts[line["slowest_rank"]] = counts.get(line["slowest_rank"], 0) + 1
    told = [f"step {line['step']:>8,}  {_slowest(line)}" for line in lines]
    often = sorted(counts.items(), key=lambda item: -item[1])
    return "\n".join([*told, *(f"rank {rank} was the slowest in {count} of {len(lines)}" for rank, count in often)])


def as_html(runs: Sequence[Watched]) -> str:
    """A page with the curves of several runs over their steps, and what is known of each."""
    parts = ["<!doctype html><meta charset=utf-8><title>Runs</title>", f"<style>{_STYLE}</style><h1>Runs</h1>"]
    for key, kind, title in _CURVES:
        curves = [
            [(line["step"], line[key]) for line in watched.of_kind(kind) if line.get(key) is not None]
            for watched in runs
        ]
        if any(curves):
            parts.append(f"<h2>{html.escape(title)}</h2>{draw(curves)}")
    for index, watched in enumerate(runs):
        cells = "".join(f"<tr><td>{html.escape(name)}<td>{html.escape(value)}" for name, value in summary(watched))
        colour = _COLOURS[index % len(_COLOURS)]
        parts.append(f'<h2><span style="color:{colour}">&#9632;</span> {html.escape(watched.run.name)}</h2>')
        parts.append(f"<table>{cells}</table>")
    return "\n".join(parts) + "\n"


def draw(curves: Sequence[Sequence[tuple[float, float]]]) -> str:
    """An SVG of curves in one frame, each in its run's colour.

    Args:
        curves: points of each, by step; some may be empty, but not all.
    """
    steps = [step for curve in curves for step, _ in curve]
    values = [value for curve in curves for _, value in curve]
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)

    def place(step: float, value: float) -> str:
        x = _MARGIN + (step - first) / max(last - first, 1) * (_WIDTH - 2 * _MARGIN)
        y = _HEIGHT - _MARGIN / 2 - (value - low) / ((high - low) or 1.0) * (_HEIGHT - _MARGIN)
        return f"{x:.1f},{y:.1f}"

    lines = []
    for index, curve in enumerate(curves):
        points = " ".join(place(step, value) for step, value in curve)
        colour = _COLOURS[index % len(_COLOURS)]
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    frame = f'<rect x="{_MARGIN}" y="{_MARGIN / 2}" width="{_WIDTH - 2 * _MARGIN}" height="{_HEIGHT - _MARGIN}" '
    texts = [
        (4, _MARGIN / 2 + 4, f"{high:.4g}"),
        (4, _HEIGHT - _MARGIN / 2, f"{low:.4g}"),
        (_MARGIN, _HEIGHT - 8, f"step {first:,}"),
        (_WIDTH - 2 * _MARGIN, _HEIGHT - 8, f"step {last:,}"),
    ]
    labels = "".join(f'<text x="{x}" y="{y}" font-size="11">{text}</text>' for x, y, text in texts)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}">{frame}fill="none" stroke="#ccc"/>'
        f"{''.join(lines)}{labels}</svg>"
    )


def describe_event(line: dict[str, Any]) -> str:
    """A line that tells of something out of the ordinary."""
    step, kind = line["step"], line["kind"]
    if kind == "bad_step":
        samples = f"samples {line['first_sample']:,} to {line['last_sample']:,} of stage {line['stage']}"
        return f"step {step:,}: not learned from ({line['action']}): {line['reason']}; {samples}"
    if kind == "checkpoint_failed":
        return f"step {step:,}: checkpoint failed: {line['error']}"
    return f"step {step:,}: " + {"stopped": "asked to stop, and saved", "stalled": "no progress, ended"}[kind]


def _slowest(line: dict[str, Any]) -> str:
    slowest, median = line["slowest_rank_seconds"], line["median_rank_seconds"]
    times = f", {slowest / median:.2f} times the median" if median else ""
    return f"rank {line['slowest_rank']}: {slowest:.2f} s of its own work{times}"
