"""What is shown of data, and that every kind of damage is found, named, and mended by what the message says."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.data.corpus.pipeline import prepare_source
from hyena_blt_savanna.data.corpus.plan import SourceConfig
from hyena_blt_savanna.data.corpus.source import read_source, source_path
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedWriter, document_lengths
from hyena_blt_savanna.data.inspection import inspect_dataset
from hyena_blt_savanna.data.inspection_text import as_page, as_text
from hyena_blt_savanna.testing.toy_corpus import sequence, write_rows
from hyena_blt_savanna.testing.toy_genomes import write_random_boundaries

REPOSITORY = Path(__file__).parents[2]
TAG = "|D__X;S__A SPECIES|"
ROWS = {
    "train": [TAG * (i % 2) + sequence(200 + 90 * i, i, num_iupac=1) for i in range(20)],
    "test": [sequence(700, 99)],
}


@pytest.fixture
def config(tmp_path) -> SourceConfig:
    for split, texts in ROWS.items():
        write_rows(tmp_path / f"x_{split}_1.jsonl", [{"text": text} for text in texts])
    tree = {"source": "toy", "inputs": [f"{tmp_path}/*.jsonl"], "output": tmp_path / "toy", "shard_bases": 7000}
    return SourceConfig.parse(tree)


@pytest.fixture
def source(config) -> Path:
    prepare_source(config)
    for shard in read_source(config.output).shards():
        write_random_boundaries(config.output / shard.name, longest_patch_bases=9)
    return config.output


def test_figures_are_those_of_the_texts(source):
    found = inspect_dataset(source, verify=True)
    assert found.all_problems == []
    texts = [text for texts in ROWS.values() for text in texts]
    letters = Counter("".join(text.replace(TAG, "") for text in texts).upper())
    composition = found.composition()
    assert {letter: composition[letter] for letter in "ACGTN"} == {letter: letters[letter] for letter in "ACGTN"}
    assert found.document_lengths() == Counter(int(np.log2(len(text) + 1)) for text in texts)
    tagged = [len(text) - len(TAG) for text in texts if text.startswith("|")]
    assert found.tags == {TAG: (len(tagged), sum(tagged))}
    statistics = found.patches()["patches"]["reverse"]
    assert sum(length * num for length, num in statistics.histogram.items()) == sum(len(text) + 1 for text in texts)
    assert all(any(text.startswith(sample) for text in texts) for sample in found.samples.values())
    text, page = as_text(found), as_page(found)
    for shown in (f"{len(texts)}", f"{letters['A']:,}", "A SPECIES", "source: toy", "whole: all bytes are what"):
        assert shown in text
        assert shown.replace("source: toy", "toy") in page
    assert "<script" not in page
    assert re.search(r"Patches: patches, forward strand, [\d,]+ of \d\.\d{3} bases", page)


def test_one_dataset_and_a_folder_of_them(source):
    shard = read_source(source).splits["test"][0]
    found = inspect_dataset(source / shard.name)
    assert [shard.name for shard in found.shards] == [shard.name]
    assert found.composition()["A"] == ROWS["test"][0].upper().count("A")
    source_path(source).unlink()
    found = inspect_dataset(source)
    assert found.shards[0].name == "train-00000"
    assert found.shards[-1].name == "test-00000"
    assert found.all_problems == [
        f"{source_path(source)} is missing: the source is not finished; prepare it again to go on"
    ]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "train-00001.bin",
            r"train-00001: (train-00001\.bin is not what its checksum|train-00001\.idx and .* disagree)",
        ),
        ("train-00001.idx", r"train-00001: train-00001\.idx contradicts itself: remove its manifest"),
        ("test-00000.patches.reverse.bin", r"test-00000: test-00000\.patches\.reverse\.bin is not what its checksum"),
    ],
)
def test_damage_is_named(source, name, says):
    damage(source / name)
    (problem,) = inspect_dataset(source, verify=True).all_problems
    assert re.match(says, problem)


def test_a_border_that_moved_is_found(source):
    """The sum of lengths is as it was, so only the data tell."""
    path = source / "train-00001.idx"
    lengths = document_lengths(path.with_suffix(""))
    lengths[:2] += [1, -1]
    with IndexedWriter(path.with_name("other")) as writer:
        for length in lengths:
            writer.add(np.zeros(length, dtype=np.uint8))
    path.write_bytes(path.with_name("other.idx").read_bytes())
    for suffix in ("bin", "idx"):
        path.with_name(f"other.{suffix}").unlink()
    assert inspect_dataset(source).all_problems == []
    (problem,) = inspect_dataset(source, verify=True).all_problems
    assert re.match(
        r"train-00001: train-00001\.idx and train-00001\.bin disagree near byte 0: remove its manifest", problem
    )


def test_what_is_missing_is_named(source):
    (source / "train-00000.idx").unlink()
    (source / "train-00001.manifest.json").unlink()
    (source / "test-00000.patches.bin").unlink()
    (source / "train-00002.bin.partial").write_bytes(b"")
    problems = "\n".join(inspect_dataset(source).all_problems)
    assert re.search(r"train-00000: .*train-00000\.idx: no such file.*; only this shard is made anew", problems)
    assert re.search(r"train-00001: .*train-00001\.manifest\.json: no such file", problems)
    assert (
        "test-00000: test-00000.patches.bin or its index is missing: remove test-00000.patches.manifest.json"
        in problems
    )
    assert "train-00002.bin.partial: left by an interrupted run" in problems


def test_manifests_that_disagree(source):
    for suffix in (".bin", ".idx", ".manifest.json"):
        (source / f"train-00001{suffix}").write_bytes((source / f"train-00000{suffix}").read_bytes())
    problems = inspect_dataset(source).all_problems
    assert "train-00001: its manifest is not what source.json says: prepare again" in problems
    assert any("patches.manifest.json belongs to other data" in problem for problem in problems)
    (source / "train-00001.idx").write_bytes((source / "test-00000.idx").read_bytes())
    assert any("train-00001: its index has 1 documents" in problem for problem in inspect_dataset(source).all_problems)


def test_the_message_says_how_to_mend_it(config, source):
    before = {path.name: path.read_bytes() for path in source.glob("*.bin")}
    times = {path.name: path.stat().st_mtime_ns for path in source.glob("*.bin")}
    damage(source / "train-00001.bin")
    (problem,) = inspect_dataset(source, verify=True).all_problems
    assert problem.endswith("remove its manifest and prepare again: nothing else is made anew")
    (source / "train-00001.manifest.json").unlink()
    prepare_source(config)
    assert {path.name: path.read_bytes() for path in source.glob("*.bin")} == before
    assert inspect_dataset(source, verify=True).all_problems == []
    changed = [path.name for path in source.glob("*.bin") if path.stat().st_mtime_ns != times[path.name]]
    assert changed == ["train-00001.bin"]


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no dataset; give a path without suffix"):
        inspect_dataset(tmp_path / "train")
    with pytest.raises(DataError, match="no dataset"):
        inspect_dataset(tmp_path)


def test_tool(source, tmp_path):
    command = [
        sys.executable,
        REPOSITORY / "tools" / "inspect_dataset.py",
        source,
        "--verify",
        "--html",
        tmp_path / "p.html",
    ]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(map(str, command), capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert "whole: all bytes" in result.stdout
    assert (tmp_path / "p.html").read_text().startswith("<!doctype html>")
    damage(source / "train-00001.bin")
    result = subprocess.run(map(str, command), capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 1
    assert "1 problem(s)" in result.stdout
    result = subprocess.run(map(str, [*command[:2], tmp_path / "no"]), capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    assert "no dataset" in result.stderr
