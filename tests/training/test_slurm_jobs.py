"""Training jobs on a real Slurm of two nodes: signals, killed ranks, lost nodes, jobs in each other's way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hyena_blt_savanna.testing.slurm_pair import SlurmPair, wait_for, why_no_slurm
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_fasta

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = Path("checkpoints", "step_00000040", "native", "model.safetensors")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmPair]:
    reason = why_no_slurm()
    if reason is not None:
        assert not os.environ.get("REQUIRE_SLURM"), reason
        pytest.skip(reason)
    with SlurmPair(tmp_path_factory.mktemp("slurm")) as started:
        yield started


class Job:
    """A training job, submitted as its user does."""

    def __init__(self, pair: SlurmPair, config: Path, run: Path, *arguments: str, sbatch: tuple[str, ...] = ()) -> None:
        self.pair, self.run = pair, run
        self.log = run.with_suffix(".log")
        changes = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "NUM_RANKS": "1"}
        words = [f"--output={self.log}", *sbatch, "slurm/train.sbatch", str(config), f"run={run}", *arguments]
        self.number = pair.submit(*words, cwd=ROOT, changes=changes)

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def lines(self, *kinds: str) -> list[dict]:
        path = self.run / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line["kind"] in kinds]

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: any(line["step"] >= step for line in self.lines("training")), f"step {step}", 120.0)

    def wait_for_restart(self, count: int) -> None:
        wait_for(lambda: self.pair.facts(self.number)["Restarts"] == str(count), f"restart {count}", 60.0)

    def finish(self) -> dict[str, str]:
        return self.pair.wait(self.number)

    def ranks(self) -> dict[int, psutil.Process]:
        found = {}
        for process in psutil.process_iter():
            try:
                environ = process.environ()
                is_rank = environ.get("SLURM_JOB_ID") == self.number and "tools/train.py" in process.cmdline()
            except psutil.Error:
                continue
            if is_rank:
                found[int(environ["SLURM_PROCID"])] = process
        return found


@pytest.fixture(scope="module")
def two_at_once(pair: SlurmPair, toy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """Two jobs started on one folder by mistake; nothing else disturbs them."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    jobs = [Job(pair, toy_config, run, sbatch=("--nodes=2", f"--output={run}.{index}")) for index in range(2)]
    for index, job in enumerate(jobs):
        job.log = run.with_suffix(f".{index}")
    return jobs


def seen(job: Job) -> list[tuple]:
    names = ("kind", "step", "loss", "grad_norm", "lr")
    return [tuple(line.get(name) for name in names) for line in job.lines("training", "validation")]


def test_signal_truncated_checkpoint_and_killed_rank(pair, two_at_once, toy_config, tmp_path):
    job = Job(pair, toy_config, tmp_path / "disturbed", sbatch=("--nodes=2",))
    job.wait_for_step(10)
    # As `--signal=USR1@300` does: to the processes of the step, not to the batch shell.
    pair.slurm("scancel", "--signal=USR1", job.number)
    job.wait_for_restart(1)
    [stopped] = job.lines("stopped")
    newest = job.run / "checkpoints" / f"step_{stopped['step']:08d}"
    assert stopped["step"] >= 10
    weights = newest / "native" / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    wait_for(lambda: "going on after step" in job.output(), "the job goes on", 60.0)
    assert f"{newest / 'native' / 'model.safetensors'} has" in job.output()
    assert "the checkpoint before it is tried" in job.output()
    job.wait_for_step(stopped["step"] + 1)
    job.ranks()[1].send_signal(signal.SIGKILL)
    facts = job.finish()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), job.output()
    whole = min(two_at_once, key=lambda each: each.finish()["ExitCode"])
    assert seen(job) == seen(whole)
    assert [line["step"] for line in job.lines("training")] == list(range(1, 41))
    assert (job.run / WEIGHTS).read_bytes() == (whole.run / WEIGHTS).read_bytes()
    assert not (job.run / "lock.json").exists()


def test_two_tasks_prepare_what_one_does(pair, tmp_path):
    for number in range(2):
        write_fasta(tmp_path / f"{number}.fa", {f"genome{number}": random_genome(9000, seed=number)})
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"source": "toy", "inputs": [f"{tmp_path}/*.fa"], "split": {"by": "stretch"}}))
    outputs = [tmp_path / "one", tmp_path / "two"]
    for num_tasks, output in enumerate(outputs, start=1):
        log = output.with_suffix(".log")
        words = [f"--ntasks-per-node={num_tasks}", f"--output={log}", "slurm/prepare.sbatch"]
        words += ["tools/prepare_genomes.py", str(config), f"output={output}"]
        facts = pair.wait(pair.submit(*words, cwd=ROOT, changes={"PYTHON": sys.executable}))
        assert facts["ExitCode"] == "0:0", log.read_text()
    one, two = ({path.name: path.read_bytes() for path in output.iterdir()} for output in outputs)
    assert one == two
    assert "train-00000.bin" in one


def test_of_two_jobs_on_a_folder_one_is_refused(two_at_once):
    codes = {job.finish()["ExitCode"]: job for job in two_at_once}
    assert set(codes) == {"0:0", "2:0"}, "".join(job.output() for job in two_at_once)
    refused = codes["2:0"]
    assert "is in use by job" in refused.output()
    assert "the job is not put back into the queue" in refused.output()
    assert refused.finish()["Restarts"] == "0"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for two checkpoints on a disk of 20 MB; a third is written before the oldest is removed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", disk], check=True)
    try:
        (disk / "filler").write_bytes(bytes(15 * 2**20))
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_stops_neither_the_run_nor_the_earlier_checkpoints(pair, small_disk, toy_config):
    job = Job(pair, toy_config, small_disk / "run", sbatch=("--nodes=1", f"--output={small_disk.parent}/log"))
    job.log = small_disk.parent / "log"
    facts = job.finish()
    # Trained to the end; only the last checkpoint had to be written.
    assert facts["ExitCode"] == "2:0", job.output()
    assert [line["step"] for line in job.lines("training")] == list(range(1, 41))
    saved = [line["step"] for line in job.lines("checkpoint")]
    failed = [line["step"] for line in job.lines("checkpoint_failed")]
    assert (sorted(saved + failed), saved[0], failed[-1]) == ([8, 16, 24, 32, 40], 8, 40)
    assert "the checkpoint could not be written" in job.output()
    assert "training goes on without it" in job.output()
    names = sorted(path.name for path in (job.run / "checkpoints").iterdir())
    assert names == [f"step_{step:08d}" for step in saved[-2:]]
    (small_disk / "filler").unlink()
    again = Job(pair, toy_config, job.run, sbatch=("--nodes=1", f"--output={job.log}"))
    assert again.finish()["ExitCode"] == "0:0", job.output()
    assert f"going on after step {saved[-1]}" in job.output()
    assert [line["step"] for line in job.lines("training")] == list(range(1, 41))
    assert (job.run / WEIGHTS).exists()


def test_a_run_goes_on_with_one_node_when_the_other_is_lost(pair, two_at_once, toy_config, tmp_path):
    for each in two_at_once:
        each.finish()
    nodes = ("--nodes=1-2", "--partition=whole")
    job = Job(pair, toy_config, tmp_path / "shrinking", "parallel.least_ranks=1", sbatch=nodes)
    job.wait_for_step(10)
    assert "2 rank(s)" in job.output()
    pair.slurm("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    try:
        facts = job.finish()
    finally:
        pair.slurm("scontrol", "update", "nodename=n2", "state=resume")
    assert (facts["JobState"], facts["Restarts"], facts["NumNodes"]) == ("COMPLETED", "1", "1"), job.output()
    assert "1 rank(s)" in job.output()
    [whole] = [each for each in two_at_once if "is in use by job" not in each.output()]
    # The same samples in the same order; one rank sums in another order than two.
    found, wanted = job.lines("training", "validation"), whole.lines("training", "validation")
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    assert [line["mean_patch_bases"] for line in found] == [line["mean_patch_bases"] for line in wanted]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], rel=1e-4)
