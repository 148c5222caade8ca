"""What Slurm tells the processes of a step, and what a job asks of Slurm. No ssh, no pdsh, no files."""

from __future__ import annotations

import logging
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping

from hyena_blt_savanna.training.stop_signals import ASKING

logger = logging.getLogger(__name__)

_FIRST_PORT = 12_000
_NUM_PORTS = 20_000
_STEP_STRIDE = 1009
_TIMEOUT_SECONDS = 60.0


class SlurmError(ValueError):
    """What Slurm says of the nodes can't be used."""


def is_step(environ: Mapping[str, str]) -> bool:
    """Whether srun has started this process, and no other launcher below it."""
    return "SLURM_STEP_ID" in environ and "SLURM_PROCID" in environ and "RANK" not in environ


def rendezvous(environ: Mapping[str, str], resolves: Callable[[str], bool] | None = None) -> dict[str, str]:
    """The variables by which torch's ranks find each other, from those of Slurm.

    The first rank's node is the first of the step's nodes, by name; where names of nodes are no names of hosts, the
    address of the node that called srun, which in a batch job is the same one. MASTER_ADDR and MASTER_PORT stay where
    they are set.

    Args:
        environ: of a process that srun has started.
        resolves: whether a host is known by a name; None asks the system.

    Raises:
        SlurmError: the list of nodes can't be read, or the first one has no address.
    """
    job, step = int(environ["SLURM_JOB_ID"]), int(environ["SLURM_STEP_ID"])
    address = environ.get("MASTER_ADDR")
    if address is None:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "")
        address = first_host(nodes)
        if not (resolves or _resolves)(address):
            known = environ.get("SLURM_LAUNCH_NODE_IPADDR")
            if known is None:
                raise SlurmError(f"no host is known by the name {address!r} of Slurm's nodes {nodes}: set MASTER_ADDR")
            address = known
    return {
        "RANK": environ["SLURM_PROCID"],
        "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
        "WORLD_SIZE": environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS", "1"),
        "MASTER_ADDR": address,
        "MASTER_PORT": environ.get("MASTER_PORT") or str(rendezvous_port(job, step)),
    }


def rendezvous_port(job: int, step: int) -> int:
    """A port below those that the kernel gives away by itself; jobs and steps that follow each other have others."""
    return _FIRST_PORT + (job + _STEP_STRIDE * step) % _NUM_PORTS


def first_host(nodes: str) -> str:
    """The first name of a list such as `gpu[003-010,12],login1`.

    Raises:
        SlurmError: it is no such list.
    """
    found = re.match(r"(?:[^\[\],]|\[[^\[\]]+\])+", nodes)
    if found is None:
        raise SlurmError(f"Slurm's list of nodes {nodes!r} can't be read: set MASTER_ADDR")
    return re.sub(r"\[([^\[\],-]+)[^\[\]]*\]", r"\1", found.group())


def requeue(environ: Mapping[str, str]) -> bool:
    """Puts the job of this process back into Slurm's queue, unless somebody has cancelled it.

    Slurm ends the job's processes as it does so.

    Returns:
        Whether the job runs again; never outside of a Slurm job.
    """
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    shown = _scontrol("show", "job", "--oneliner", job)
    if shown is None:
        return False
    state = re.search(r"\bJobState=(\w+)", shown)
    if state is not None and state.group(1) == "CANCELLED":
        logger.info("job %s was cancelled: it is not put back into the queue", job)
        return False
    logger.info("putting job %s back into Slurm's queue", job)
    return _scontrol("requeue", job) is not None


def _scontrol(*arguments: str) -> str | None:
    """What scontrol prints; None, and a warning, when it fails."""
    # Slurm signals every process of a step, and scontrol would die of it: a mask is inherited, a handler is not.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        done = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, check=True, timeout=_TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or ""
        logger.warning("scontrol %s has failed: %s %s", " ".join(arguments), error, said.strip())
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return done.stdout


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
