"""Whether this process is one of many, started by mpirun or srun: the entry of the offline tools."""

from __future__ import annotations

import os

from hyena_blt_savanna.data.corpus.work_sharing import Alone, Ranks, Workers
from hyena_blt_savanna.data.errors import DataError

_NUM_TASKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables in which Open MPI, MPICH and Slurm tell how many processes they started."""


def find_workers() -> Workers:
    """The processes that were started together; this one alone where no launcher started it.

    Raises:
        DataError: there are several, and MPI is missing or does not see them: each would do all of the work.
    """
    started = max((int(os.environ.get(name, "1")) for name in _NUM_TASKS), default=1)
    if started == 1:
        return Alone()
    try:
        # Imported here because it starts MPI.
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise DataError(f"{started} processes were started, but mpi4py can't be used ({error}): install it") from error
    found = MPI.COMM_WORLD.Get_size()
    if found != started:
        raise DataError(
            f"{started} processes were started, but MPI sees {found}: start them with mpirun, or with srun --mpi=pmix, "
            "of the MPI that mpi4py was built for"
        )
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise DataError("this MPI has no MPI_THREAD_MULTIPLE: install another, such as the package openmpi")
    return Ranks(MPI.COMM_WORLD)
