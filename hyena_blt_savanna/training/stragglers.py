"""Which rank is the slowest: how long each one works before it has to wait for the others."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class WorkClock:
    """Adds up this rank's own work: getting its windows, and the forward passes.

    A backward pass and an update wait for the other ranks, so that they take equally long on all of them; so do forward
    passes where ranks exchange something in them, as under ZeRO 3 and with context ranks.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    @contextmanager
    def working(self) -> Iterator[None]:
        """Times a block on the host."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Times what a block computes on the device, without waiting for it."""
        if self._device.type == "cpu":
            with self.working():
                yield
            return
        module = torch.get_device_module(self._device)
        begin, end = module.Event(enable_timing=True), module.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._events.append((begin, end))

    def take(self) -> float:
        """Seconds since the last call; waits for the device."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        seconds, self._seconds = self._seconds, 0.0
        self._events.clear()
        return seconds


def peak_memory_bytes(device: torch.device) -> float:
    """The most memory that this rank has had: of its GPU, or of the process."""
    if device.type == "cpu":
        # Linux tells kibibytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    return float(torch.get_device_module(device).max_memory_allocated(device))


def describe_ranks(work_seconds: Sequence[float], memory_bytes: Sequence[float]) -> dict[str, Any]:
    """What a line of metrics says of the ranks.

    Args:
        work_seconds: of each rank, in a logging interval.
        memory_bytes: the most that each has had.
    """
    slowest = max(range(len(work_seconds)), key=lambda rank: work_seconds[rank])
    return {
        "slowest_rank": slowest,
        "slowest_rank_seconds": work_seconds[slowest],
        "median_rank_seconds": statistics.median(work_seconds),
        "peak_memory_bytes": max(memory_bytes),
    }
