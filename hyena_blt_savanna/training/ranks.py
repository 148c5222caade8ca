"""The ranks of a run: joining them, and the few collectives that the loop needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from hyena_blt_savanna.parallel.mesh import Mesh, ParallelConfig
from hyena_blt_savanna.training import slurm


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run.

    Attributes:
        rank: from 0.
        num_ranks: all of them.
        device: where this rank computes.
        num_context: ranks that hold slices of the same windows.
    """

    rank: int
    num_ranks: int
    device: torch.device
    num_context: int = 1

    @property
    def mesh(self) -> Mesh:
        """This rank's place among data times context ranks.

        Raises:
            ConfigError: the ranks can't be shared out.
        """
        return Mesh.of(ParallelConfig(context=self.num_context), self.rank, self.num_ranks)

    def with_context(self, num_context: int) -> Ranks:
        """The same ranks, of which so many hold slices of the same windows."""
        return replace(self, num_context=num_context)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes what one rank writes for all."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of numbers over all ranks, in float64."""
        if self.num_ranks == 1:
            return list(values)
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return [float(total) for total in totals.cpu()]

    def largest(self, values: torch.Tensor) -> torch.Tensor:
        """The element-wise maxima over all ranks of a tensor that lies where they compute."""
        values = values.clone()
        if self.num_ranks > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def gather(self, value: Any) -> list[Any]:
        """One object of each rank, on every rank."""
        values: list[Any] = [value]
        if self.num_ranks > 1:
            values = [None] * self.num_ranks
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Returns when every rank has come here."""
        if self.num_ranks > 1:
            dist.barrier()


def find_launched() -> tuple[int, int]:
    """Which rank this process is, and of how many, as a launcher or srun says; srun's variables become torch's.

    Raises:
        SlurmError: srun has started this process, and what Slurm says of the nodes can't be used.
    """
    if slurm.is_step(os.environ):
        os.environ.update(slurm.rendezvous(os.environ))
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def join_ranks(timeout_seconds: float = 1800.0) -> Ranks:
    """Joins the ranks that a launcher or srun has started, or makes this process a run of its own.

    torch's process group is made before DeepSpeed looks for one, because DeepSpeed's own start on a CPU compiles a
    C++ operator (an all-reduce over shared memory, for inference) and thus needs a compiler and ten seconds.

    Args:
        timeout_seconds: how long a collective may wait for a rank.

    Raises:
        SlurmError: srun has started this process, and what Slurm says of the nodes can't be used.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    find_launched()
    accelerator = get_accelerator()
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    on_cpu = accelerator.device_name() == "cpu"
    device = torch.device("cpu") if on_cpu else torch.device(accelerator.device_name(local_rank))
    if not on_cpu:
        accelerator.set_device(local_rank)
    if not dist.is_initialized():
        backend = "gloo" if on_cpu else accelerator.communication_backend_name()
        timeout = timedelta(seconds=timeout_seconds)
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    if on_cpu:
        # DeepSpeed asks this table, and only this one, whether the operator can be built.
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist.get_backend(), verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def on_first_rank(ranks: Ranks, action: Callable[[], None]) -> None:
    """Acts on the first rank, while the others wait; what it raises is raised on all.

    Args:
        ranks: all ranks call.
        action: may raise a ValueError, or an OSError.
    """
    error: ValueError | OSError | None = None
    if ranks.is_first:
        try:
            action()
        except (ValueError, OSError) as raised:
            error = raised
    [error, *_] = ranks.gather(error)
    if error is not None:
        raise error
