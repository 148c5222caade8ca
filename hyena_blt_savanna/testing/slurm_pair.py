"""A Slurm of two nodes on one machine, for tests of what jobs go through. Needs root, and Debian's slurm-wlm, munge and
libpmix-dev."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from hyena_blt_savanna.testing.ranks import free_port

NODES = ("n1", "n2")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_PMIX = "libpmix.so"
"""By the name that srun --mpi=pmix loads it."""
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
_START_SECONDS = 30.0
_POLL_SECONDS = 0.1

_CONFIGURATION = """\
ClusterName=pair
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# How long a job waits before it starts again, too: two minutes if left out.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
NodeName={names} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} CPUs=16 RealMemory=1000
PartitionName=shared Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:8
PartitionName=whole Nodes=ALL MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str | None:
    """What this machine lacks to run a SlurmPair; None if it lacks nothing."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    try:
        ctypes.CDLL(_PMIX)
    except OSError:
        missing.append(_PMIX)
    if missing:
        return f"{', '.join(missing)} missing: apt-get install slurm-wlm munge libpmix-dev"
    return None if os.geteuid() == 0 else "Slurm's daemons are started as root here"


class SlurmPair:
    """Nodes n1 and n2 with 16 CPUs each, whatever the machine has. A context manager.

    Jobs that ask for whole nodes share them nevertheless, unless they ask for the partition `whole`.

    Args:
        folder: for configuration, keys, state and logs; a short path, since sockets lie in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        (self.folder / "state").mkdir()
        ports = [free_port() for _ in NODES]
        self._configuration.write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                folder=self.folder,
                controller_port=free_port(),
                names=f"n[1-{len(NODES)}]",
                ports=f"[{','.join(map(str, ports))}]",
            )
        )
        try:
            self._start_daemons()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # A daemon that is stopped leaves the processes of its jobs behind.
            self.slurm("scancel", "--user=root")
            wait_for(lambda: not self.slurm("squeue", "--noheader").strip(), "no job is left", 60.0)
        finally:
            self._stop()

    @property
    def _configuration(self) -> Path:
        return self.folder / "slurm.conf"

    def environment(self, changes: Mapping[str, str] | None = None) -> dict[str, str]:
        """Variables for Slurm's programs, and so for jobs."""
        return {**os.environ, "SLURM_CONF": str(self._configuration), "PATH": _path(), **(changes or {})}

    def slurm(self, *command: str, cwd: Path | None = None, changes: Mapping[str, str] | None = None) -> str:
        """What one of Slurm's programs prints.

        Raises:
            AssertionError: it fails.
        """
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=self.environment(changes))
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def submit(self, *arguments: str, cwd: Path, changes: Mapping[str, str] | None = None) -> str:
        """Submits a batch job; returns its number."""
        return self.slurm("sbatch", "--parsable", *arguments, cwd=cwd, changes=changes).strip()

    def facts(self, job: str) -> dict[str, str]:
        """What Slurm says of a job, such as JobState, Restarts and ExitCode."""
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm("scontrol", "show", "job", "--oneliner", job)))

    def wait(self, job: str, seconds: float = 180.0) -> dict[str, str]:
        """Waits for the end of a job, through all its restarts; returns its facts."""
        wait_for(lambda: self.facts(job)["JobState"] in _ENDED, f"job {job} has ended", seconds)
        return self.facts(job)

    def _start_daemons(self) -> None:
        at = self.folder
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        # Folders of tests are the user's own, which munged would refuse.
        self._start("munged", "--foreground", "--force", *(f"--{key}={at}/munge.{name}" for key, name in files.items()))
        wait_for((at / "munge.socket").exists, "munged listens", _START_SECONDS)
        self._start("slurmctld", "-D", "-i")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        wait_for(self._are_nodes_up, "nodes are up", _START_SECONDS)

    def _are_nodes_up(self) -> bool:
        states = self.slurm("sinfo", "--noheader", "--Node", "--format=%T").split()
        return bool(states) and set(states) == {"idle"}

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as output:
            self._daemons.append(
                subprocess.Popen(command, stdout=output, stderr=output, env=self.environment(), start_new_session=True)
            )

    def _stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def wait_for(condition: Callable[[], bool], what: str, seconds: float) -> None:
    """Returns when a condition holds.

    Raises:
        AssertionError: it does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(_POLL_SECONDS)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
