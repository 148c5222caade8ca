"""Ranks for tests: results by rank, failures with their traceback, no endless wait."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from hyena_blt_savanna.testing.ranks import RankFailedError, run_ranks


def sum_of_ranks(offset: int) -> torch.Tensor:
    total = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(total)
    return total + dist.get_rank()


def misbehave(how: str) -> None:
    if dist.get_rank() == 1:
        if how == "raise":
            raise KeyError("a key of rank one")
        if how == "exit":
            os._exit(7)
        time.sleep(60)
    dist.barrier()


def test_results_come_by_rank():
    assert [int(value) for value in run_ranks(sum_of_ranks, 2, 10)] == [21, 22]


def environment_of_rank(names: list[str]) -> tuple[int, list[str | None]]:
    return os.getppid(), [os.environ.get(name) for name in names]


@pytest.mark.parametrize("from_scratch", [False, True])
def test_the_environment_is_the_caller_s(from_scratch, monkeypatch):
    names = ["SAID_LATER", "DS_ACCELERATOR", "RANK"]
    # The process that ranks are forks of has been started by now, or is without it.
    run_ranks(environment_of_rank, 1, names)
    monkeypatch.setenv("SAID_LATER", "yes")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    [(parent, found)] = run_ranks(environment_of_rank, 1, names, from_scratch=from_scratch)
    assert found == ["yes", "cpu", "0"]
    assert (parent == os.getpid()) is from_scratch


@pytest.mark.parametrize(
    ("how", "timeout_seconds", "says"),
    [
        ("raise", 60, r"rank 1 failed:(.|\n)*in misbehave(.|\n)*KeyError: 'a key of rank one'"),
        ("exit", 60, "rank 1 ended with exit code 7 and no answer|rank 0 failed"),
        ("hang", 6, r"no answer in time from rank\(s\) \[0, 1\]"),
    ],
)
def test_a_failing_rank_is_told(how, timeout_seconds, says):
    began = time.monotonic()
    with pytest.raises(RankFailedError, match=says):
        run_ranks(misbehave, 2, how, timeout_seconds=timeout_seconds)
    assert time.monotonic() - began < 45
