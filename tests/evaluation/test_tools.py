import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hyena_blt_savanna.data.regions import RegionError
from hyena_blt_savanna.evaluation.bits_per_base import evaluate_bits_per_base, fasta_documents
from hyena_blt_savanna.evaluation.generation import generate, generate_many
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset, write_fasta

GENOME = random_genome(400, seed=31)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_fasta(tmp_path / "toy.fa", {"chr:1 toy": GENOME, "chr2": GENOME[:50]}, newline="\r\n")


@pytest.fixture
def checkpoint(tmp_path: Path, model_of) -> Path:
    model = model_of("budget")
    model.window_bases = 64
    model.save(tmp_path / "native")
    return tmp_path / "native"


def tool(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"tools_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    return tool(name).main()


def test_evaluate_prints_and_writes_json(
    tmp_path: Path,
    checkpoint: Path,
    fasta: Path,
    model_of,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "figures.json"
    assert run("evaluate", monkeypatch, checkpoint, "--data", fasta, "--output", output) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(output.read_text())
    expected = evaluate_bits_per_base(model_of("budget"), [GENOME, GENOME[:50]], 64)
    assert printed["bits_per_base"] == pytest.approx(expected.bits_per_base, rel=1e-6)
    assert printed["num_bases"] == expected.num_bases
    assert printed["repeat_masked"]["num_bases"] == expected.repeat_masked.num_bases
    assert run("evaluate", monkeypatch, checkpoint, "--data", tmp_path / "no.fa") == 1
    assert "no.fa: no such file" in capsys.readouterr().err
    assert run("evaluate", monkeypatch, checkpoint, "--data", fasta, "--device", "cudaa") == 1
    assert capsys.readouterr().err.startswith("device 'cudaa' can't be used: ")
    assert run("evaluate", monkeypatch, checkpoint, "--data", fasta, "--output", tmp_path) == 1
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("compress", [False, True])
def test_regions_are_counted_from_one_with_both_ends(tmp_path: Path, compress: bool) -> None:
    path = write_fasta(tmp_path / "toy.fa", {"chr:1 toy": GENOME, "chr2": GENOME[:50]}, compress=compress)
    (region,) = fasta_documents(path, "chr:1:11-1,00")
    np.testing.assert_array_equal(region, GENOME[10:100])
    (last,) = fasta_documents(path, "chr2:50-50")
    np.testing.assert_array_equal(last, GENOME[49:50])


@pytest.mark.parametrize("region", ["chr2", "chr2:5", "chr2:0-4", "chr2:7-6", "chr2:a-b", ":1-2"])
def test_regions_that_make_no_sense_are_refused(fasta: Path, region: str) -> None:
    with pytest.raises(RegionError, match="counted from 1"):
        fasta_documents(fasta, region)


def test_evaluate_tells_what_is_reconstructed_and_reads_datasets(
    tmp_path: Path, checkpoint: Path, fasta: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "toy", [GENOME, GENOME[:50]])
    assert run("evaluate", monkeypatch, checkpoint, "--data", fasta, "--reconstruction", "--batch-windows", 2) == 0
    from_fasta = json.loads(capsys.readouterr().out)
    assert run("evaluate", monkeypatch, checkpoint, "--data", tmp_path / "toy", "--reconstruction") == 0
    from_dataset = json.loads(capsys.readouterr().out)
    assert from_fasta["bits_per_base"] == pytest.approx(from_dataset["bits_per_base"], rel=1e-6)
    found, again = from_fasta["reconstruction"], from_dataset["reconstruction"]
    assert found["num_patches"] == sum(of_length["num_patches"] for of_length in found["by_length"])
    assert {key: found[key] for key in found if key != "seconds"} == {
        key: again[key] for key in again if key != "seconds"
    }
    arguments = [checkpoint, "--data", tmp_path / "toy", "--region", "chr2:1-9"]
    assert run("evaluate", monkeypatch, *arguments) == 1
    assert "is a dataset, and region 'chr2:1-9' needs a FASTA file" in capsys.readouterr().err


def test_evaluate_cuts_other_patches(
    tmp_path: Path, checkpoint: Path, fasta: Path, model_of, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    assert run("evaluate", monkeypatch, checkpoint, "--data", fasta, "--patch-factor", 0.5) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = evaluate_bits_per_base(model_of("budget").with_patches(0.5), [GENOME, GENOME[:50]], 64)
    assert printed["patch_factor"] == 0.5
    assert printed["bits_per_base"] == pytest.approx(expected.bits_per_base, rel=1e-6)
    model_of("isotropic").save(tmp_path / "isotropic")
    refusals = {"--patch-factor=2": "no patches to make longer", "--reconstruction": "no vectors of patches"}
    for option, message in refusals.items():
        assert run("evaluate", monkeypatch, tmp_path / "isotropic", "--data", fasta, option) == 1
        assert message in capsys.readouterr().err


def test_generate_prints_fasta(
    checkpoint: Path, model_of, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [checkpoint, "--prompt", "ACGT", "--num-bases", 100, "--temperature", 0.9, "--top-k", 3, "--seed", 5]
    assert run("generate", monkeypatch, *arguments) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == ">generated prompt_bases=4 num_bases=100 temperature=0.9 top_k=3 seed=5"
    assert [len(line) for line in lines] == [80, 24]
    assert "".join(lines) == generate(model_of("budget"), "ACGT", 100, 0.9, 3, seed=5).sequence
    assert run("generate", monkeypatch, checkpoint, "--prompt", "ACGU") == 1
    assert "'U' at position 3" in capsys.readouterr().err


def test_generate_draws_several_behind_several_prompts(
    checkpoint: Path, tmp_path: Path, model_of, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta = write_fasta(tmp_path / "prompts.fa", {"one some words": GENOME[:90], "two": GENOME[:7]})
    arguments = [checkpoint, "--prompt", "ACGT", "--prompts", fasta, "--num-bases", 10, "--num-samples", 2, "--seed", 3]
    assert run("generate", monkeypatch, *arguments, "--batch-rows", 4) == 0
    records = [record.split("\n", 1) for record in capsys.readouterr().out.split(">")[1:]]
    prompts = {"generated1": "ACGT", "one": GENOME[:90].tobytes().decode(), "two": GENOME[:7].tobytes().decode()}
    names = [f"{name}.{sample}" for name in prompts for sample in (1, 2)]
    assert [header.split()[0] for header, _ in records] == names
    drawn = generate_many(model_of("budget"), list(prompts.values()), 10, num_samples=2, seed=3)
    assert [letters.replace("\n", "") for _, letters in records] == [one.sequence for one in drawn]
    assert records[2][0] == "one.1 prompt_bases=90 num_bases=10 temperature=1.0 seed=3"
    assert run("generate", monkeypatch, checkpoint, "--num-samples", 0) == 1
    assert "num_samples is 0: give 1 or more" in capsys.readouterr().err
    assert run("generate", monkeypatch, checkpoint, "--prompts", tmp_path / "no.fa") == 1
    assert "no.fa: no such file" in capsys.readouterr().err


def test_report_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    report = tool("report")
    assert report.main([str(tmp_path)]) == 1
    assert "metrics.jsonl: no such file" in capsys.readouterr().err
    assert report.main([str(tmp_path), "window_base=3"]) == 1
    assert "did you mean 'window_bases'" in capsys.readouterr().err
    assert report.main([]) == 2
