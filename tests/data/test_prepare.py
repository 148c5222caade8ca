"""Preparing: what lands in which split, what the manifests say, and what is left when it goes wrong."""

import errno
import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data import prepare, whole_files
from hyena_blt_savanna.data.errors import DataError, DiskFullError
from hyena_blt_savanna.data.fasta import FastaError
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import read_manifest
from hyena_blt_savanna.data.prepare import DataConfig, prepare_dataset
from hyena_blt_savanna.data.splits import SplitConfig, split_record
from hyena_blt_savanna.testing.toy_genomes import random_genome, toy_documents, write_dataset, write_fasta

REPOSITORY = Path(__file__).parents[2]
SPLITS = ["train", "validation", "test"]


@pytest.fixture
def records():
    return {f"record_{i} of some length": random_genome(500 + 300 * i, i, num_iupac=3) for i in range(8)}


def documents_of(prefix):
    reader = IndexedReader(prefix)
    found = [reader.document(i).tobytes() for i in range(len(reader))]
    assert all(document.endswith(b"\0") and document.count(b"\0") == 1 for document in found)
    return [document[:-1] for document in found]


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_by_stretch(tmp_path, records):
    path = write_fasta(tmp_path / "genome.fa.gz", records, compress=True)
    config = DataConfig(inputs=[path], output=tmp_path / "out", min_bases=10)
    manifests = prepare_dataset(config)
    assert list(manifests) == SPLITS
    pieces = [sorted(documents_of(tmp_path / "out" / name), key=len) for name in SPLITS]
    for sequence, train, validation, test in zip(records.values(), *pieces, strict=True):
        assert train + validation + test == sequence.tobytes()
        assert len(test) == pytest.approx(0.1 * len(sequence), abs=1)
        assert len(validation) == pytest.approx(0.02 * len(sequence), abs=1)


def test_ecoli_stretches_are_the_tenths():
    config = SplitConfig(validation=0.02, test=0.1)
    num_bases = 4_639_675
    assert list(split_record("K-12", num_bases, config, 100)) == [
        ("train", slice(0, 4_082_914)),
        ("validation", slice(4_082_914, 4_175_708)),
        ("test", slice(4_175_708, num_bases)),
    ]


def test_short_records_go_to_training_whole_and_shorter_ones_nowhere(tmp_path, caplog):
    records = {"long": random_genome(10_000), "short": random_genome(400), "tiny": random_genome(99)}
    path = write_fasta(tmp_path / "genome.fa", records)
    manifests = prepare_dataset(DataConfig(inputs=[path], output=tmp_path / "out", min_bases=100))
    train = documents_of(tmp_path / "out" / "train")
    assert train == [records["long"][:8800].tobytes(), records["short"].tobytes()]
    assert manifests["test"].num_documents == manifests["validation"].num_documents == 1
    assert manifests["train"].split.num_left_out == 1
    assert manifests["train"].inputs[0].num_records == 3


def test_by_record(tmp_path):
    records = {f"r{i}": random_genome(200, i) for i in range(400)}
    path = write_fasta(tmp_path / "genome.fa", records)
    split = SplitConfig(by="record", validation=0.2, test=0.3)
    prepare_dataset(DataConfig(inputs=[path], output=tmp_path / "out", split=split))
    found = {name: documents_of(tmp_path / "out" / name) for name in SPLITS}
    assert Counter(itertools.chain(*found.values())) == Counter(sequence.tobytes() for sequence in records.values())
    shares = {name: len(documents) / 400 for name, documents in found.items()}
    assert shares == pytest.approx({"train": 0.5, "validation": 0.2, "test": 0.3}, abs=0.08)
    # A record's place depends on its name alone.
    for name in ("r7", "r8", "r9"):
        ((where, piece),) = split_record(name, 200, split, 1)
        assert piece == slice(0, 200)
        assert records[name].tobytes() in found[where]


def test_the_place_of_a_record_never_changes():
    split = SplitConfig(by="record", validation=0.3, test=0.3)
    places = ["".join(name[0] for name, _ in split_record(f"chr{i}", 10, split, 1)) for i in range(12)]
    assert "".join(places) == "tvtvttttvttv"


def test_manifest(tmp_path, records):
    first = write_fasta(tmp_path / "first.fa", dict(list(records.items())[:3]), width=70, newline="\r\n")
    second = write_fasta(tmp_path / "second.fa.gz", dict(list(records.items())[3:]), compress=True)
    manifests = prepare_dataset(DataConfig(inputs=[first, second], output=tmp_path / "out", min_bases=1))
    for name, manifest in manifests.items():
        prefix = tmp_path / "out" / name
        assert manifest == read_manifest(prefix)
        data = (tmp_path / "out" / f"{name}.bin").read_bytes()
        letters = Counter(data.replace(b"\0", b"").upper().decode())
        counts = manifest.composition
        assert {c: getattr(counts, c) for c in "ACGTN"} == {c: letters[c] for c in "ACGTN"}
        assert counts.other == sum(letters.values()) - sum(letters[c] for c in "ACGTN")
        assert counts.lower == sum(chr(byte).islower() for byte in data)
        assert manifest.num_bases == sum(letters.values())
        assert manifest.num_bytes == len(data) == manifest.num_bases + manifest.num_documents
        assert manifest.num_documents == 8
        assert manifest.data_sha256 == hashlib.sha256(data).hexdigest()
        assert manifest.split.name == name
        assert manifest.parts[name] == len(data)
        sequences = [sequence.tobytes().upper() for sequence in records.values()]
        assert [found.sequence_sha256 for found in manifest.inputs] == [
            hashlib.sha256(b"".join(sequences[:3])).hexdigest(),
            hashlib.sha256(b"".join(sequences[3:])).hexdigest(),
        ]
        assert [found.name for found in manifest.inputs] == ["first.fa", "second.fa.gz"]
        assert [found.num_records for found in manifest.inputs] == [3, 5]
        assert sum(found.num_bases for found in manifest.inputs) == sum(map(len, records.values()))


def test_tags_and_joins_in_the_counts(tmp_path):
    documents = toy_documents(3, 9, 500)
    manifest = write_dataset(tmp_path / "train", documents)
    letters = b"".join(sequence.tobytes() for _, sequence in documents).replace(b"@", b"").replace(b"#", b"")
    assert any(tag for tag, _ in documents)
    assert manifest.num_bases == len(letters)
    assert letters.upper().count(b"A") == manifest.composition.A
    assert manifest.num_bytes == sum(len(tag) + len(sequence) + 1 for tag, sequence in documents)


class TestAgain:
    @pytest.fixture
    def config(self, tmp_path, records):
        path = write_fasta(tmp_path / "genome.fa", records)
        config = DataConfig(inputs=[path], output=tmp_path / "out", min_bases=1)
        prepare_dataset(config)
        return config

    def is_repeated(self, config, monkeypatch) -> bool:
        read = []
        original = prepare.read_fasta
        monkeypatch.setattr(prepare, "read_fasta", lambda path: read.append(path) or original(path))
        first = prepare_dataset(config)
        assert first == {name: read_manifest(config.output / name) for name in first}
        return bool(read)

    def test_finished_work_is_not_repeated(self, config, monkeypatch):
        before = files_in(config.output)
        assert not self.is_repeated(config, monkeypatch)
        assert files_in(config.output) == before

    def test_an_input_that_changed(self, config, monkeypatch, records):
        write_fasta(config.inputs[0], records | {"one_more": random_genome(1000)})
        assert self.is_repeated(config, monkeypatch)

    @pytest.mark.parametrize(
        "change",
        [{"split": SplitConfig(test=0.2)}, {"split": SplitConfig(by="record", test=0.4)}, {"min_bases": 40}],
    )
    def test_a_setting_that_changed(self, config, monkeypatch, change):
        assert self.is_repeated(config.model_copy(update=change), monkeypatch)

    @pytest.mark.parametrize("name", ["test.bin", "train.idx", "validation.manifest.json", "train.manifest.json"])
    def test_a_file_that_is_gone(self, config, monkeypatch, name):
        (config.output / name).unlink()
        assert self.is_repeated(config, monkeypatch)

    def test_data_that_was_cut(self, config, monkeypatch):
        path = config.output / "test.bin"
        path.write_bytes(path.read_bytes()[:-1])
        assert self.is_repeated(config, monkeypatch)

    def test_a_manifest_of_another_version(self, config, monkeypatch, caplog):
        path = config.output / "test.manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 0}))
        assert self.is_repeated(config, monkeypatch)
        assert "format_version 0" in caplog.text

    def test_splits_that_are_no_longer_wanted_go(self, config, caplog):
        split = SplitConfig(validation=0.0, test=0.1)
        with caplog.at_level(logging.WARNING):
            manifests = prepare_dataset(config.model_copy(update={"split": split}))
        assert list(manifests) == ["train", "test"]
        assert not list(config.output.glob("validation.*"))
        assert caplog.text == ""
        assert prepare_dataset(config.model_copy(update={"split": split})) == manifests


def test_a_wanted_split_that_gets_nothing_is_said(tmp_path, caplog):
    path = write_fasta(tmp_path / "genome.fa", {"a": random_genome(500)})
    manifests = prepare_dataset(DataConfig(inputs=[path], output=tmp_path / "out"))
    assert list(manifests) == ["train"]
    assert "no record gave any validation data" in caplog.text
    assert "no record gave any test data" in caplog.text


class TestRefuses:
    def test_nothing_to_train_on(self, tmp_path):
        path = write_fasta(tmp_path / "genome.fa", {"a": random_genome(50), "b": random_genome(60)})
        with pytest.raises(DataError, match=r"genome\.fa: nothing to train on: 2 records are shorter than"):
            prepare_dataset(DataConfig(inputs=[path], output=tmp_path / "out"))
        assert files_in(tmp_path / "out") == {}

    def test_missing_input(self, tmp_path):
        with pytest.raises(FastaError, match=r"none\.fa: no such file; fetch it first"):
            prepare_dataset(DataConfig(inputs=[tmp_path / "none.fa"], output=tmp_path / "out"))

    def test_a_bad_second_input_leaves_the_old_data(self, tmp_path, records):
        good = write_fasta(tmp_path / "good.fa", records)
        bad = tmp_path / "bad.fa"
        bad.write_bytes(b">x\nMKVLE\n")
        prepare_dataset(DataConfig(inputs=[good], output=tmp_path / "out"))
        before = files_in(tmp_path / "out")
        with pytest.raises(FastaError, match="protein"):
            prepare_dataset(DataConfig(inputs=[good, bad], output=tmp_path / "out"))
        assert files_in(tmp_path / "out") == before

    def test_a_full_disk(self, tmp_path, monkeypatch, records):
        path = write_fasta(tmp_path / "genome.fa", records)

        def no_space(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(whole_files.os, "fsync", no_space)
        with pytest.raises(DiskFullError, match=r"train\.(bin|idx): no space left"):
            prepare_dataset(DataConfig(inputs=[path], output=tmp_path / "out"))
        assert files_in(tmp_path / "out") == {}

    @pytest.mark.parametrize("num_written", range(9))
    def test_a_disk_that_fills_up_leaves_no_split_without_the_others(self, tmp_path, monkeypatch, num_written):
        path = write_fasta(tmp_path / "genome.fa", {"a": random_genome(5000)})
        real, num_calls = os.fsync, itertools.count()

        def full_later(descriptor):
            if next(num_calls) >= num_written:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(whole_files.os, "fsync", full_later)
        with pytest.raises(DiskFullError, match="no space left"):
            prepare_dataset(DataConfig(inputs=[path], output=tmp_path / "out"))
        assert files_in(tmp_path / "out") == {}

    def test_a_record_that_the_index_cannot_hold(self, tmp_path, monkeypatch):
        path = write_fasta(tmp_path / "genome.fa", {"a": random_genome(500), "b": random_genome(1000)})
        monkeypatch.setattr(prepare, "LONGEST_DOCUMENT", 1000)
        with pytest.raises(FastaError, match=r"record 2 \(b\): 1,000 bases; 999 is the most"):
            prepare_dataset(DataConfig(inputs=[path], output=tmp_path / "out"))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"inputs": []}, "inputs"),
            ({"split": {"test": 0.6, "validation": 0.4}}, "leave nothing to train on"),
            ({"split": {"by": "chromosome"}}, "split.by"),
            ({"min_base": 3}, "did you mean 'min_bases'"),
        ],
    )
    def test_configuration(self, change, says):
        with pytest.raises(ConfigError, match=says):
            DataConfig.parse({"inputs": ["a.fa"], "output": "out"} | change)


def run_tool(*arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "tools" / "prepare_genomes.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)


def test_tool(tmp_path, records):
    path = write_fasta(tmp_path / "genome.fa", records)
    result = run_tool("configs/data/ecoli.yaml", f"inputs=[{path}]", f"output={tmp_path / 'out'}", "min_bases=1")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["test"]["num_documents"] == 8
    failed = run_tool("configs/data/ecoli.yaml", f"inputs=[{tmp_path / 'none.fa'}]")
    assert failed.returncode == 1
    assert "none.fa: no such file" in failed.stderr
    assert "Traceback" not in failed.stderr
    failed = run_tool("configs/data/ecoli.yaml", f"inputs=[{path}]", f"output={path}")
    assert failed.returncode == 1
    assert failed.stderr.splitlines() == [f"[Errno 17] File exists: '{path}'"]


def test_shipped_configurations_load():
    for path in (REPOSITORY / "configs" / "data").glob("*.yaml"):
        if path.name != "genomes.yaml":
            assert np.isclose(DataConfig.load([path, "inputs=[genome.fa]", "output=data"]).split.test, 0.1)
