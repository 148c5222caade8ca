"""What a run tells about itself: metrics.jsonl, DeepSpeed's monitors, the terminal, log files."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from tqdm import tqdm

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.training.durations import readable_seconds
from hyena_blt_savanna.training.loss import NATS_PER_BIT

logger = logging.getLogger(__name__)

_SHOWN_PADDING = 0.0005
_MONITORED = (
    "loss",
    "bits_per_base",
    "auxiliary_nats_per_base",
    "lr",
    "grad_norm",
    "bases_per_second",
    "utilisation",
)


class LoggingConfig(Config):
    """When metrics are written."""

    every_steps: PositiveInt = 10
    """Steps of which a line of metrics is the mean."""


class MetricsFile:
    """A file of JSON objects, one a line, each with a `kind` and a `step`.

    Args:
        path: the file; made at the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[str] = []
        # The watchdog's thread writes too.
        self._lock = threading.Lock()

    def append(self, line: Mapping[str, Any]) -> None:
        """Adds a line at once; numbers that are not finite become null, as JSON has none.

        What can't be written, as on a full disk, is kept and written with the next line: metrics stop no run.
        """
        clean = _without_infinities(line)
        with self._lock:
            self._waiting.append(json.dumps(clean) + "\n")
            size = None
            try:
                with self.path.open("ab") as file:
                    size = file.tell()
                    file.write("".join(self._waiting).encode())
            except OSError as error:
                logger.warning("%s: %s; %d line(s) wait", self.path, error, len(self._waiting))
                if size is not None:
                    # No half of a line stays.
                    with contextlib.suppress(OSError):
                        os.truncate(self.path, size)
                return
            self._waiting.clear()

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps, and a last line that was not finished."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                content = json.loads(line)
            except json.JSONDecodeError:
                continue
            if content["step"] <= step:
                kept.append(line + "\n")
        write_whole(self.path, "".join(kept).encode())


class Reporter:
    """Tells metrics to file, monitors and terminal; silent on all ranks but the first.

    Args:
        path: metrics.jsonl.
        is_first: whether this is the first rank.
        num_steps: of the whole run.
        monitor: DeepSpeed's; has `enabled` and `write_events`.
    """

    def __init__(self, path: Path, is_first: bool, num_steps: int, monitor: Any = None) -> None:
        self._file = MetricsFile(path) if is_first else None
        self._monitor = monitor if is_first and monitor is not None and monitor.enabled else None
        self._num_steps = num_steps
        self._bar: tqdm | None = None

    def start(self, step: int, facts: Mapping[str, Any]) -> None:
        """Begins at a step, of which the file's later lines are dropped.

        Args:
            step: finished steps.
            facts: about the model and the machine.
        """
        if self._file is None:
            return
        self._file.truncate_after(step)
        self._file.append({"kind": "start", "step": step, **facts})
        if sys.stderr.isatty():
            self._bar = tqdm(total=self._num_steps, initial=step, unit="step", smoothing=0.05, dynamic_ncols=True)

    def advance(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def training(self, line: Mapping[str, Any]) -> None:
        """Metrics of a logging interval."""
        if self._file is None:
            return
        self._file.append({"kind": "training", **line})
        self._send("training", line)
        shown = {
            "bits/base": f"{line['bits_per_base']:.4f}",
            "lr": f"{line['lr']:.2e}",
            "kb/s": f"{line['bases_per_second'] / 1e3:.1f}",
        }
        padding = line["padding_share_of_bases"], line["padding_share_of_patches"]
        if max(padding) >= _SHOWN_PADDING:
            shown["padding"] = f"{padding[0]:.1%} of bases, {padding[1]:.1%} of patches"
        if self._bar is not None:
            self._bar.set_postfix(shown)
            return
        left = (self._num_steps - line["step"]) * line["seconds_per_step"]
        logger.info(
            "step %d/%d  %s  grad_norm %.3f  %s left",
            line["step"],
            self._num_steps,
            "  ".join(f"{key} {value}" for key, value in shown.items()),
            line["grad_norm"],
            readable_seconds(left),
        )

    def validation(self, line: Mapping[str, Any]) -> None:
        """Metrics of a validation."""
        if self._file is None:
            return
        self._file.append({"kind": "validation", **line})
        self._send("validation", line)
        sources = line.get("sources", {})
        for name, scores in sources.items():
            self._send(f"validation/{name}", {**scores, "step": line["step"]})
        logger.info(
            "step %d/%d  validation bits/base %.4f%s",
            line["step"],
            self._num_steps,
            line["bits_per_base"],
            "".join(f"  {name} {scores['bits_per_base']:.4f}" for name, scores in sources.items()),
        )

    def event(self, name: str, line: Mapping[str, Any]) -> None:
        """Something that happened at a step."""
        if self._file is not None:
            self._file.append({"kind": name, **line})

    def close(self) -> None:
        """Ends the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _send(self, group: str, line: Mapping[str, Any]) -> None:
        if self._monitor is not None:
            names = [name for name in _MONITORED if isinstance(line.get(name), int | float)]
            self._monitor.write_events([(f"{group}/{name}", line[name], line["step"]) for name in names])


def _without_infinities(line: Mapping[str, Any]) -> dict[str, Any]:
    clean = {key: _without_infinities(value) if isinstance(value, Mapping) else value for key, value in line.items()}
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in clean.items()
    }


def training_line(
    step: int,
    stage: int,
    nats_per_base: float,
    auxiliary_nats_per_base: float | None,
    lr: float,
    grad_norm: float,
    num_steps: int,
    bases: float,
    patches: float,
    cut_patches: float,
    padding_share_of_bases: float,
    padding_share_of_patches: float,
    interval_seconds: float,
    seconds: float,
    flops_per_base: float,
    peak_flops: float,
) -> dict[str, Any]:
    """Metrics of the steps since the last line.

    Args:
        step: finished steps.
        stage: index of the stage.
        nats_per_base: weighted mean loss of the bases alone.
        auxiliary_nats_per_base: what the model's own losses add to it, each times its coefficient; None without any.
        lr: of the last step.
        grad_norm: of the last step, before clipping.
        num_steps: steps in the interval.
        bases: in the interval, over all ranks.
        patches: likewise.
        cut_patches: left out of their windows, likewise.
        padding_share_of_bases: what of all that went through the model was padding, from 0 to 1.
        padding_share_of_patches: likewise.
        interval_seconds: spent in these steps, without validation and checkpoints.
        seconds: spent training so far.
        flops_per_base: of a forward and a backward pass.
        peak_flops: what all ranks' devices reach in large matrix products, in FLOP/s.
    """
    bases_per_second = bases / interval_seconds
    return {
        "step": step,
        "stage": stage,
        "loss": nats_per_base,
        "bits_per_base": nats_per_base / NATS_PER_BIT,
        "auxiliary_nats_per_base": auxiliary_nats_per_base,
        "lr": lr,
        "grad_norm": grad_norm,
        "bases_per_second": bases_per_second,
        "patches_per_second": patches / interval_seconds,
        "mean_patch_bases": bases / patches if patches else None,
        "num_cut_patches": cut_patches,
        "padding_share_of_bases": padding_share_of_bases,
        "padding_share_of_patches": padding_share_of_patches,
        "flops_per_base": flops_per_base,
        "utilisation": flops_per_base * bases_per_second / peak_flops,
        "seconds_per_step": interval_seconds / num_steps,
        "seconds": seconds,
    }


def measure_peak_flops(device: torch.device, dtype: torch.dtype, budget_seconds: float = 0.3) -> float:
    """FLOP/s that this rank's device reaches in square matrix products: what utilisation is measured against.

    Args:
        device: where to measure.
        dtype: of the factors.
        budget_seconds: measured for about this long; the best product counts.
    """
    size = 1024 if device.type == "cpu" else 8192
    # A generator of its own: a run that goes on must find torch's as the checkpoint left it.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    best = math.inf
    began = time.perf_counter()
    # The first product pays for the library's start.
    _timed_product(left, right)
    while time.perf_counter() - began < budget_seconds:
        best = min(best, _timed_product(left, right))
    return 2 * size**3 / min(best, _timed_product(left, right))


def _timed_product(left: torch.Tensor, right: torch.Tensor) -> float:
    _finish(left.device)
    began = time.perf_counter()
    torch.mm(left, right)
    _finish(left.device)
    return time.perf_counter() - began


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
