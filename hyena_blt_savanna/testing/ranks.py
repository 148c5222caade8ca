"""Several gloo ranks on one CPU, for tests of what ranks do together."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any


class RankFailedError(AssertionError):
    """A rank raised, died or did not answer; the message holds its traceback."""


def run_ranks(fn: Callable[..., Any], num_ranks: int, *args: Any, timeout_seconds: float = 120.0) -> list[Any]:
    """Runs `fn(*args)` on each rank of a gloo group and waits for all.

    The processes are spawned, so `fn` is found by its name in an importable module and its arguments are pickled.
    Starting torch costs seconds: let one call run many cases.

    Args:
        fn: called on every rank, when `torch.distributed` is set up.
        num_ranks: processes to start; each computes on one thread.
        args: for `fn`.
        timeout_seconds: for all of it.

    Returns:
        What `fn` returned, by rank.

    Raises:
        RankFailedError: a rank raised (with its traceback), died, or was not done in time. The others are ended.
    """
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_run_rank, args=(fn, rank, num_ranks, port, answers, args), daemon=True)
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    try:
        return _collect(processes, answers, time.monotonic() + timeout_seconds)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def free_port() -> int:
    """A TCP port of this machine that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _collect(processes: Sequence[BaseProcess], answers: Any, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(processes):
        # Whether a rank has died is looked up before its last words are, so that these are not missed.
        dead = [rank for rank, process in enumerate(processes) if not process.is_alive() and rank not in results]
        try:
            rank, result, failure = answers.get(timeout=0.2)
        except queue.Empty:
            if dead:
                code = processes[dead[0]].exitcode
                raise RankFailedError(f"rank {dead[0]} ended with exit code {code} and no answer") from None
            if time.monotonic() > deadline:
                missing = sorted(set(range(len(processes))) - set(results))
                raise RankFailedError(f"no answer in time from rank(s) {missing}") from None
            continue
        if failure is not None:
            raise RankFailedError(f"rank {rank} failed:\n{failure}")
        results[rank] = pickle.loads(result)
    return [results[rank] for rank in range(len(processes))]


def _run_rank(
    fn: Callable[..., Any], rank: int, num_ranks: int, port: int, answers: Any, args: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
    )
    # DeepSpeed decorates functions that no test calls with torch.compile, which loads for seconds.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # torch 2.13 renames collectives that DeepSpeed calls, at each call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import torch
    import torch.distributed as dist

    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        result = fn(*args)
        dist.barrier()
        # Pickled here, because the queue would pass tensors through memory that goes away with this process.
        answers.put((rank, pickle.dumps(result), None))
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
