"""Two ranks of MPI: the same bytes as one process, after a killed rank and a second run too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hyena_blt_savanna.data.corpus import mpi
from hyena_blt_savanna.data.corpus.work_sharing import Alone
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.testing.toy_corpus import BOTH, write_hub

REPOSITORY = Path(__file__).parents[3]

# The tool, but rank 1 dies in the middle of a shard, when another one is finished.
KILLED = """
import os, signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
from hyena_blt_savanna.data.corpus.shards import ShardWriter
import prepare_genomes
from mpi4py import MPI

original = ShardWriter.finish
def finish(self, *given):
    if MPI.COMM_WORLD.Get_rank() == 1:
        while not list(self.prefix.parent.glob("*.manifest.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    return original(self, *given)

ShardWriter.finish = finish
sys.exit(prepare_genomes.main(sys.argv[1:]))
"""

SHARING = """
import sys, time
from hyena_blt_savanna.data.corpus.mpi import find_workers
workers = find_workers()
results = workers.share([1, 5, 3, 2], lambda index: (time.sleep(0.05), (index, workers.rank))[1])
assert [index for index, _ in results] == [0, 1, 2, 3], results
assert {rank for _, rank in results} == {0, 1, 2}, results
assert workers.share([], lambda index: index) == []
done = []
def fail(index):
    done.append(index)
    if index == 7:
        raise KeyError("seven")
    time.sleep(0.05)
try:
    workers.share([1] * 7 + [100] + [1] * 60, fail)
except Exception as error:
    assert "seven" in str(error), error
    assert isinstance(error, KeyError) == (7 in done), (error, done)
    assert len(done) < 30, done
else:
    raise AssertionError
assert workers.share([1], lambda index: "after") == ["after"]
print("good")
"""


def run(num_ranks: int, *command: object) -> subprocess.CompletedProcess:
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert mpirun, "mpirun is missing: pip install --requirement requirements.txt"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"OMPI_MCA_mpi_yield_when_idle": "1"}
    words = [mpirun, "--oversubscribe", "-n", str(num_ranks), sys.executable, *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=300)


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"))


def arguments(hub: Path, output: Path, *more: str) -> list[str]:
    config = output.with_suffix(".yaml")
    config.write_text(
        f"{{source: toy, inputs: ['{hub}/{BOTH}/metagenomes/*.gz'], output: '{output}', shard_bases: 20000}}"
    )
    return [str(config), *more]


def test_a_killed_rank_costs_its_shard_alone(hub, tmp_path):
    tool = REPOSITORY / "tools" / "prepare_genomes.py"
    alone = subprocess.run(
        [sys.executable, tool, *arguments(hub, tmp_path / "alone")], capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    killed = run(2, "-c", KILLED, tool.parent, *arguments(hub, tmp_path / "ranks"))
    assert killed.returncode != 0
    assert not (tmp_path / "ranks" / "source.json").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ranks").glob("*.manifest.json")}
    assert finished
    again = run(2, tool, *arguments(hub, tmp_path / "ranks"))
    assert again.returncode == 0, again.stderr
    assert again.stdout == alone.stdout
    assert tree_of(tmp_path / "ranks") == tree_of(tmp_path / "alone")
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "ranks").glob("*.manifest.json")}
    assert {name: now[name] for name in finished} == finished
    assert len(now) > len(finished)


def test_sharing_among_three_ranks():
    result = run(3, "-c", SHARING)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["good"] * 3


def test_an_error_of_one_rank_ends_all_with_its_message(hub, tmp_path):
    broken = tmp_path / "hub"
    shutil.copytree(hub / BOTH / "metagenomes", broken / BOTH / "metagenomes")
    path = next((broken / BOTH / "metagenomes").glob("*valid*"))
    path.write_bytes(path.read_bytes()[:-20])
    result = run(2, REPOSITORY / "tools" / "prepare_genomes.py", *arguments(broken, tmp_path / "out"))
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if "the gzip file ends in the middle" in line]
    assert len(said) == 1
    assert path.name in said[0]
    assert "Traceback" not in result.stderr


class TestLaunchers:
    @pytest.fixture(autouse=True)
    def _nothing_launched(self, monkeypatch):
        for name in mpi._NUM_TASKS:
            monkeypatch.delenv(name, raising=False)

    def test_one_process_needs_no_mpi(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        assert isinstance(mpi.find_workers(), Alone)

    @pytest.mark.parametrize("name", mpi._NUM_TASKS)
    def test_processes_that_mpi_does_not_see(self, name):
        code = "from hyena_blt_savanna.data.corpus.mpi import find_workers; find_workers()"
        environment = {key: value for key, value in os.environ.items() if key not in mpi._NUM_TASKS}
        environment |= {"PYTHONPATH": str(REPOSITORY), name: "4"}
        command = [sys.executable, "-c", code]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert "DataError: 4 processes were started, but MPI sees 1: start them with mpirun" in result.stderr

    def test_no_mpi(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
        with pytest.raises(DataError, match="8 processes were started, but mpi4py can't be used"):
            mpi.find_workers()


def test_alone_does_the_largest_first_and_answers_in_order():
    done = []
    assert Alone().share([2, 9, 5, 9], lambda index: done.append(index) or index * 10) == [0, 10, 20, 30]
    assert done == [1, 3, 2, 0]
