"""The quickstart's script on a toy genome: every step runs, and a second start repeats nothing."""

import json
import subprocess
from pathlib import Path

import pytest

from hyena_blt_savanna.testing.toy_genomes import random_genome, write_fasta

ROOT = Path(__file__).parents[1]
FEW_STEPS = [
    "training.stages=[{steps: 3, window_bases: 1024, batch_windows: 1}]",
    "training.validation.num_bases=1024",
    "model.kmers.sizes=[2, 4]",
]


def quickstart(genome: Path | str, run: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "launch" / "quickstart.sh"), str(genome), str(run), *overrides],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_from_a_gzipped_genome_to_a_report_and_nothing_twice(tmp_path):
    genome = write_fasta(tmp_path / "toy.fa.gz", {"toy": random_genome(60_000, 3)}, compress=True)
    run = tmp_path / "run"
    first = quickstart(genome, run, *FEW_STEPS)
    assert first.returncode == 0, first.stdout + first.stderr
    report = json.loads((run / "report" / "report.json").read_text())
    assert 1.5 < report["bits_per_base"] < 2.5
    assert 7 < report["mean_patch_bases"] < 9
    assert report["evaluation"]["num_bases"] == 6000
    assert report["training_seconds"] < report["total_seconds"]
    assert {path.name for path in (run / "report").glob("*.png")} == {"loss.png", "patch_lengths.png", "entropy.png"}
    assert (run / "report" / "generated.fa").read_text().startswith(">generated")

    written = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    second = quickstart(genome, run, *FEW_STEPS)
    assert second.returncode == 0, second.stdout + second.stderr
    now = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    repeated = {path.relative_to(run).as_posix() for path in now if now[path] != written.get(path)}
    # The log grows, and the genome's name is written again; data, checkpoints and report stay.
    assert repeated <= {"genome.txt", "logs/rank_00000.log"}

    other = quickstart("lambda", run)
    assert other.returncode == 1
    assert f"holds a run on {genome}, not on lambda" in other.stderr


def test_a_genome_that_is_neither_a_file_nor_a_name_is_refused(tmp_path):
    done = quickstart("missing.fa", tmp_path / "run")
    assert done.returncode != 0
    assert "missing.fa" in done.stderr
    assert "ecoli_k12" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_genome_that_cannot_be_read_leaves_the_folder_for_another(tmp_path):
    protein = tmp_path / "it's, a protein.fa"
    protein.write_text(">p\nMKVLE\n")
    done = quickstart(protein, tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{protein}, record 1 (p), base 4: 'L' in 'MKVLE'"), done.stderr
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


@pytest.mark.parametrize("script", ["quickstart.sh", "train.sh"])
def test_help_is_what_the_script_begins_with(script):
    done = subprocess.run([ROOT / "launch" / script, "--help"], capture_output=True, text=True, check=True)
    assert f"launch/{script}" in done.stdout
    assert "#" not in done.stdout
