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
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

_BEFORE_IMPORTS = {
    "DS_ACCELERATOR": "cpu",
    # DeepSpeed decorates functions that no test calls with torch.compile, which loads for seconds.
    "TORCHDYNAMO_DISABLE": "1",
}
_IMPORTED = ["torch", "torch.distributed", "deepspeed", "hyena_blt_savanna.training.pretrain"]


class RankFailedError(AssertionError):
    """A rank raised, died or did not answer; the message holds its traceback."""


def run_ranks(
    fn: Callable[..., Any], num_ranks: int, *args: Any, timeout_seconds: float = 120.0, from_scratch: bool = False
) -> list[Any]:
    """Runs `fn(*args)` on each rank of a gloo group and waits for all.

    `fn` is found by its name in an importable module and its arguments are pickled. Importing torch and DeepSpeed takes
    seconds: a process of its own does it once, and each rank is a fork of that one.

    Args:
        fn: called on every rank, when `torch.distributed` is set up.
        num_ranks: processes to start; each computes on one thread.
        args: for `fn`.
        timeout_seconds: for all of it.
        from_scratch: each rank imports everything itself, under the environment as it is now: for measurements of
            memory and time, and for what is read from the environment by an import.

    Returns:
        What `fn` returned, by rank.

    Raises:
        RankFailedError: a rank raised (with its traceback), died, or was not done in time. The others are ended.
    """
    context: Any = multiprocessing.get_context("spawn") if from_scratch else _forking_context()
    answers: Any = context.Queue()
    environment = {**os.environ, "WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    environment["MASTER_PORT"] = str(free_port())
    # Pickled here, both ways, because the queue would pass tensors through files that a process has too few of.
    call = pickle.dumps((fn, args))
    processes = [
        context.Process(target=_run_rank, args=(rank, call, environment, answers), daemon=True)
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


@cache
def _forking_context() -> BaseContext:
    """Its processes are forks of one that has imported what ranks need, and does nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    before = dict(os.environ)
    os.environ.update(_BEFORE_IMPORTS)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


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


def _run_rank(rank: int, call: bytes, environment: Mapping[str, str], answers: Any) -> None:
    # A fork has the environment of the process that it comes from.
    os.environ.clear()
    os.environ.update({**environment, **_BEFORE_IMPORTS, "RANK": str(rank), "LOCAL_RANK": str(rank)})
    # torch 2.13 renames collectives that DeepSpeed calls, at each call.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import torch
    import torch.distributed as dist

    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        fn, args = pickle.loads(call)
        result = fn(*args)
        dist.barrier()
        answers.put((rank, pickle.dumps(result), None))
        dist.destroy_process_group()
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
