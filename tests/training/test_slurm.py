"""What is made of Slurm's variables, and what is asked of scontrol: a stand-in of it here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hyena_blt_savanna.training.slurm import SlurmError, first_host, is_step, rendezvous, rendezvous_port, requeue
from hyena_blt_savanna.training.stop_signals import StopSignals

ROOT = Path(__file__).resolve().parents[2]
STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_NTASKS": "32",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_JOB_NODELIST": "gpu[001-004]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.3",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[003-010,12],login1", "gpu003"),
        ("gpu[7,9]", "gpu7"),
        ("rack[1-2]node[08-9],x", "rack1node08"),
        ("a-b-[10-11].cluster", "a-b-10.cluster"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize("nodes", ["", "[", ",n1"])
def test_a_list_that_is_none_is_refused(nodes):
    with pytest.raises(SlurmError, match="can't be read: set MASTER_ADDR"):
        first_host(nodes)


def test_ranks_of_a_step_find_each_other():
    found = rendezvous(STEP, resolves=lambda host: host == "gpu003")
    assert found == {
        "RANK": "9",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "16",
        "MASTER_ADDR": "gpu003",
        "MASTER_PORT": str(rendezvous_port(4711, 0)),
    }
    # Names of nodes need not be names of hosts.
    assert rendezvous(STEP, resolves=lambda host: False)["MASTER_ADDR"] == "10.0.0.3"
    assert rendezvous({**STEP, "SLURM_STEP_NODELIST": "localhost"})["MASTER_ADDR"] == "localhost"
    assert rendezvous({**STEP, "SLURM_STEP_NODELIST": "no such host"})["MASTER_ADDR"] == "10.0.0.3"
    set_by_hand = rendezvous({**STEP, "MASTER_ADDR": "head", "MASTER_PORT": "1234"}, resolves=lambda host: False)
    assert (set_by_hand["MASTER_ADDR"], set_by_hand["MASTER_PORT"]) == ("head", "1234")
    lacking = {key: value for key, value in STEP.items() if key != "SLURM_LAUNCH_NODE_IPADDR"}
    with pytest.raises(SlurmError, match="no host is known by the name 'gpu003'"):
        rendezvous(lacking, resolves=lambda host: False)


def test_only_srun_without_another_launcher_is_a_step():
    assert is_step(STEP)
    assert not is_step({**STEP, "RANK": "0"})
    # The batch shell has a SLURM_PROCID too.
    assert not is_step({key: value for key, value in STEP.items() if key != "SLURM_STEP_ID"})
    assert not is_step({})


def test_ports_of_neighbouring_jobs_and_steps_differ():
    ports = {rendezvous_port(job, step) for job in range(100, 200) for step in range(3)}
    assert len(ports) == 300
    # The kernel gives away those from 32,768 on.
    assert all(1024 < rendezvous_port(job, step) < 32768 for job in (0, 19_999, 2**31) for step in (0, 7))


def with_scontrol(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{body}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "asked"


def test_a_job_is_put_back_unless_it_was_cancelled(tmp_path, monkeypatch, caplog):
    asked = with_scontrol(tmp_path, "echo JobId=7 JobState=RUNNING Reason=None", monkeypatch)
    assert not requeue({})
    assert not asked.exists()
    assert requeue({"SLURM_JOB_ID": "7"})
    assert asked.read_text().splitlines() == ["show job --oneliner 7", "requeue 7"]
    asked.unlink()
    with_scontrol(tmp_path, "echo JobId=7 JobState=CANCELLED Reason=None", monkeypatch)
    assert not requeue({"SLURM_JOB_ID": "7"})
    assert asked.read_text().splitlines() == ["show job --oneliner 7"]
    with_scontrol(tmp_path, "echo 'Requested operation is presently disabled' >&2; exit 1", monkeypatch)
    assert not requeue({"SLURM_JOB_ID": "7"})
    assert "Requested operation is presently disabled" in caplog.text
    monkeypatch.setenv("PATH", "")
    assert not requeue({"SLURM_JOB_ID": "7"})


def test_scontrol_does_not_die_of_the_signal(tmp_path, monkeypatch):
    """Slurm signals all processes of a step, those that the ranks have started too."""
    with_scontrol(tmp_path, "kill -USR1 $$; kill -TERM $$; echo JobState=RUNNING", monkeypatch)
    assert requeue({"SLURM_JOB_ID": "7"})
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


HEAR = """
import os, signal, sys
from hyena_blt_savanna.training.stop_signals import StopSignals
signals = StopSignals()
signals.listen()
assert "torch" not in sys.modules
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
    os.kill(os.getpid(), number)
print(signals.received)
"""


def test_the_first_signal_is_remembered_and_none_ends_the_process():
    done = subprocess.run([sys.executable, "-c", HEAR], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "SIGTERM\n"), done.stderr
    assert StopSignals().received is None


@pytest.mark.parametrize(
    ("code", "state", "restarts", "asks", "says"),
    [
        (137, "RUNNING", 0, True, "the job goes back into the queue"),
        (75, "RUNNING", 99, True, "the job goes back into the queue"),
        (2, "RUNNING", 0, False, "the job is not put back"),
        (3, "RUNNING", 0, False, "the job is not put back"),
        (1, "RUNNING", 100, False, "after 100 restarts"),
        (143, "CANCELLED", 0, False, "the job was cancelled"),
    ],
)
def test_when_a_step_that_ended_early_is_tried_again(tmp_path, monkeypatch, code, state, restarts, asks, says):
    asked = with_scontrol(tmp_path, f"echo JobId=7 JobState={state} Reason=None", monkeypatch)
    environ = {**os.environ, "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    done = subprocess.run([ROOT / "launch" / "requeue.sh", str(code)], env=environ, capture_output=True, text=True)
    assert done.returncode == code
    assert says in done.stderr
    assert ("requeue 7" in (asked.read_text() if asked.exists() else "")) == asks


def test_the_scripts_name_their_environment_in_one_place():
    """A header and one srun; what is set for the ranks is set in launch/env.sh, or by the cluster's own file."""
    for path in sorted((ROOT / "slurm").glob("*.sbatch")):
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert lines[0] == "source launch/env.sh || exit 2"
        assert lines[1].startswith("srun ")
        assert [line.strip() for line in lines[2:]] in ([], ["exec launch/requeue.sh $?"]), path
        assert subprocess.run(["bash", "-n", path]).returncode == 0
    clusters = sorted((ROOT / "slurm" / "clusters").glob("*.sh"))
    assert len(clusters) == 2
    for path in clusters:
        lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert all(line.startswith("export ") and line.count("=") == 1 for line in lines), path
