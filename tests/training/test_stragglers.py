"""Who is slow, and how much of a rank's time is its own."""

from __future__ import annotations

import time

import torch

from hyena_blt_savanna.training.stragglers import WorkClock, describe_ranks, peak_memory_bytes


def test_the_slowest_rank_is_named():
    line = describe_ranks([1.0, 1.25, 4.0, 1.5], [10.0, 30.0, 20.0, 5.0])
    assert line == {
        "slowest_rank": 2,
        "slowest_rank_seconds": 4.0,
        "median_rank_seconds": 1.375,
        "peak_memory_bytes": 30.0,
    }


def test_the_clock_counts_work_alone():
    clock = WorkClock(torch.device("cpu"))
    for block in (clock.working, clock.computing):
        with block():
            time.sleep(0.05)
        time.sleep(0.1)
    assert 0.1 <= clock.take() < 0.2
    assert clock.take() == 0.0


def test_memory_of_this_process():
    assert 10e6 < peak_memory_bytes(torch.device("cpu")) < 1e12
