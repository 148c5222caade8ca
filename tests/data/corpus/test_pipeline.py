"""Whole sources: what lands in which split, in what order, and what is left when it goes wrong."""

import errno
import gzip
import itertools
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data import whole_files
from hyena_blt_savanna.data.corpus import pipeline, reading_inputs, shuffled
from hyena_blt_savanna.data.corpus.inputs import InputError
from hyena_blt_savanna.data.corpus.pipeline import prepare_source
from hyena_blt_savanna.data.corpus.plan import SourceConfig
from hyena_blt_savanna.data.corpus.source import read_source, source_path
from hyena_blt_savanna.data.corpus.tags import read_tags, tags_path
from hyena_blt_savanna.data.errors import DataError, DiskFullError
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import read_manifest
from hyena_blt_savanna.testing.toy_corpus import BOTH, MID, as_fasta, sequence, write_hub, write_rows, write_tar


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"))


def config_for(output: Path, *inputs: object, **changes) -> SourceConfig:
    tree = {"source": "toy", "inputs": [str(path) for path in inputs], "output": output, "shard_bases": 20_000}
    tree["cleaning"] = {"min_bases": 1} | changes.pop("cleaning", {})
    return SourceConfig.parse(tree | changes)


def documents(folder: Path, split: str = "train") -> list[str]:
    """The documents of a split, in the order of its shards; each without its end."""
    found = []
    for shard in read_source(folder).splits.get(split, []):
        reader = IndexedReader(folder / shard.name)
        assert reader.num_documents == shard.num_documents
        found += [reader.document(i).tobytes() for i in range(reader.num_documents)]
    assert all(document.endswith(b"\0") and document.count(b"\0") == 1 for document in found)
    return [document[:-1].decode() for document in found]


def texts(hub: Path, pattern: str) -> list[str]:
    """What rows of JSON hold, in the order of files and lines."""
    lines = [line for path in sorted(hub.glob(pattern)) for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [json.loads(line)["text"] for line in lines]


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.bin")}


@pytest.fixture(scope="module")
def made(hub, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("made")
    prepare_source(config_for(output, f"{hub}/{BOTH}/metagenomes/*.gz", cleaning={"duplicates": "drop"}))
    return output


class TestMetagenomes:
    @pytest.mark.parametrize(("split", "name"), [("train", "train"), ("validation", "valid"), ("test", "test")])
    def test_every_text_is_there_once(self, hub, made, split, name):
        expected = texts(hub, f"{BOTH}/metagenomes/*_{name}_*")
        found = documents(made, split)
        assert sorted(found) == sorted(set(expected))
        assert len(set(expected)) < len(expected)

    def test_the_counts_add_up(self, hub, made):
        source = read_source(made)
        every = texts(hub, f"{BOTH}/metagenomes/*")
        assert source.counts.records == len(every)
        assert source.counts.letters == sum(map(len, every)) == source.counts.clean_bases
        num_documents = sum(shard.num_documents for shard in source.shards())
        assert source.counts.duplicates == source.counts.clean_documents - num_documents == 5
        num_bases = sum(shard.num_bases for shard in source.shards())
        assert source.counts.duplicate_bases == source.counts.clean_bases - num_bases
        assert [found.name for found in source.inputs] == sorted(
            path.name for path in (hub / BOTH / "metagenomes").iterdir()
        )
        for shard in source.shards():
            manifest = read_manifest(made / shard.name)
            assert (shard.num_bytes, shard.data_sha256) == (manifest.num_bytes, manifest.data_sha256)
            longest = np.diff(IndexedReader(made / shard.name).document_starts).max()
            assert shard.longest_document_bytes == longest
        assert source.summary()["splits"]["train"]["num_documents"] == len(documents(made))

    def test_files_sorted_by_length_are_mixed(self, made):
        """Neither along the source nor within a shard do lengths follow the place."""
        lengths = np.array([len(document) for document in documents(made)])
        ranks = lengths.argsort().argsort()
        assert abs(np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]) < 0.3
        assert len(read_source(made).splits["train"]) > 3

    def test_nothing_is_left_of_the_work(self, made):
        assert not (made / "work").exists()
        assert not [name for name in tree_of(made) if name.endswith((".partial", ".spill", ".entries"))]

    def test_the_order_is_the_seeds(self, hub, tmp_path, made):
        inputs = f"{hub}/{BOTH}/metagenomes/*.gz"
        for name, seed in (("again", 0), ("other", 1)):
            prepare_source(config_for(tmp_path / name, inputs, cleaning={"duplicates": "drop"}, seed=seed))
        assert tree_of(tmp_path / "again") == tree_of(made)
        other = documents(tmp_path / "other")
        assert sorted(other) == sorted(documents(made)) != documents(made) != other

    def test_duplicates_are_kept_where_that_is_wanted(self, hub, tmp_path):
        prepare_source(config_for(tmp_path, f"{hub}/{BOTH}/metagenomes/*.gz"))
        assert sorted(documents(tmp_path)) == sorted(texts(hub, f"{BOTH}/metagenomes/*_train_*"))


def test_duplicates_are_found_by_their_letters_alone(tmp_path):
    same, tag = sequence(300, 1), "|D__X;S__Y|"
    texts = [same, tag + same.lower(), same[:-1], "N".join([same[:100], same[100:]]), same.upper()]
    write_rows(tmp_path / "a_train_1.jsonl", [{"text": text} for text in texts])
    manifest = prepare_source(
        config_for(tmp_path / "out", tmp_path / "a_train_1.jsonl", cleaning={"duplicates": "drop"})
    )
    assert sorted(documents(tmp_path / "out")) == sorted([same, texts[2], texts[3]])
    assert (manifest.counts.duplicates, manifest.counts.duplicate_bases) == (2, 600)


def test_equal_keys_of_unequal_documents_drop_nothing(tmp_path, monkeypatch):
    """A hash of 64 bits may be equal by chance; the letters decide."""
    rows = [{"text": sequence(200 + i % 2, i % 4)} for i in range(8)]
    path = write_rows(tmp_path / "a_train_1.jsonl", rows)
    monkeypatch.setattr(shuffled.hashlib, "blake2b", lambda *_, **__: type("H", (), {"digest": lambda _: bytes(8)})())
    prepare_source(config_for(tmp_path / "out", path, cleaning={"duplicates": "drop"}))
    assert sorted(documents(tmp_path / "out")) == sorted({row["text"] for row in rows})


def test_long_documents_are_copied_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffled, "_PIECE_BYTES", 100)
    tag = "|D__X|"
    rows = [{"text": (tag if i % 2 else "") + sequence(50 + 97 * i, i)} for i in range(9)]
    rows.append({"text": rows[8]["text"].lower()})
    path = write_rows(tmp_path / "a_train_1.jsonl", rows)
    prepare_source(config_for(tmp_path / "out", path, cleaning={"duplicates": "drop"}))
    assert sorted(documents(tmp_path / "out")) == sorted(row["text"] for row in rows[:9])
    tags = read_tags(tags_path(tmp_path / "out" / "train"))
    assert tags == {tag: (4, sum(len(row["text"]) - len(tag) for row in rows[1:9:2]))}


class TestTags:
    def test_tags_of_both_cases_are_one(self, hub, tmp_path):
        prepare_source(config_for(tmp_path, f"{hub}/{MID}/imgpr/*.gz"))
        tag, other = (
            "|D__BACTERIA;P__PROTEOBACTERIA;C__;O__;F__;G__;S__ESCHERICHIA COLI|",
            "|D__BACTERIA;P__FIRMICUTES;C__;O__;F__;G__;S__BACILLUS SUBTILIS|",
        )
        expected = Counter()
        for text in texts(hub, f"{MID}/imgpr/*_train_*"):
            letters = re.sub(r"\|[^|]*\|", "", text)
            found = re.match(r"\|[^|]*\|", text)[0].upper()
            expected[found + letters] += 1
        assert Counter(documents(tmp_path)) == expected
        counts = read_tags(tags_path(tmp_path / "train"))
        assert list(counts) == sorted([tag, other])
        for name, (num_documents, num_bases) in counts.items():
            lengths = [len(document) - len(name) for document in expected.elements() if document.startswith(name)]
            assert (num_documents, num_bases) == (len(lengths), sum(lengths))
        assert tags_path(tmp_path / "train").read_text().splitlines()[1].split("\t")[1] == "BACILLUS SUBTILIS"
        assert read_source(tmp_path).num_tags == {"train": 2, "validation": 2, "test": 2}

    def test_none(self, hub, tmp_path):
        manifest = prepare_source(config_for(tmp_path, f"{hub}/{MID}/imgpr/*.gz", cleaning={"keep_tags": 0}))
        assert manifest.counts.tags_left_out == manifest.counts.tagged_records == manifest.counts.records
        assert not any("|" in document for document in documents(tmp_path))
        assert not list(tmp_path.glob("*.tags.tsv"))


RECORDS = {f"r{i}": sequence(400, i) for i in range(60)}


class TestSplits:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "genomes.fa"
        path.write_bytes(as_fasta(RECORDS))
        return path

    def test_by_record(self, tmp_path, path):
        prepare_source(config_for(tmp_path / "out", path, split={"by": "record", "validation": 0.2, "test": 0.3}))
        found = {split: documents(tmp_path / "out", split) for split in ("train", "validation", "test")}
        assert sorted(itertools.chain(*found.values())) == sorted(RECORDS.values())
        assert len(found["train"]) > len(found["test"]) > len(found["validation"]) > 3

    def test_records_of_one_file_of_an_archive_stay_together(self, tmp_path):
        names = [list(RECORDS)[at : at + 3] for at in range(0, 60, 3)]
        members = {f"{i}.fna": as_fasta({name: RECORDS[name] for name in group}) for i, group in enumerate(names)}
        write_tar(tmp_path / "genomes.tar", members)
        config = config_for(tmp_path / "out", tmp_path / "genomes.tar", split={"by": "record", "test": 0.4})
        prepare_source(config)
        test = set(documents(config.output, "test"))
        assert 9 < len(test) < 51
        assert {sum(RECORDS[name] in test for name in group) for group in names} == {0, 3}

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_by_stretch(self, tmp_path, path, shuffle):
        split = {"by": "stretch", "validation": 0.1, "test": 0.2}
        prepare_source(config_for(tmp_path / "out", path, split=split, shuffle=shuffle))
        found = {split: documents(tmp_path / "out", split) for split in ("train", "validation", "test")}
        assert sorted(found["train"]) == sorted(letters[:280] for letters in RECORDS.values())
        assert sorted(found["validation"]) == sorted(letters[280:320] for letters in RECORDS.values())
        assert sorted(found["test"]) == sorted(letters[320:] for letters in RECORDS.values())

    def test_by_list(self, tmp_path, path):
        archive = write_tar(tmp_path / "more.tar", {"held/out.fna": as_fasta({"x": "ACGT" * 30})})
        (tmp_path / "validation.txt").write_text("r3\nr5\n\n")
        (tmp_path / "test.txt").write_text("held/out.fna\n")
        lists = {"validation_names": tmp_path / "validation.txt", "test_names": tmp_path / "test.txt"}
        prepare_source(config_for(tmp_path / "out", path, archive, split={"by": "list", **lists}))
        assert sorted(documents(tmp_path / "out", "validation")) == sorted([RECORDS["r3"], RECORDS["r5"]])
        assert documents(tmp_path / "out", "test") == ["ACGT" * 30]
        assert len(documents(tmp_path / "out")) == 58

    @pytest.mark.parametrize(
        ("split", "says"),
        [
            ({"by": "file", "test": 0.1}, "by file takes no shares"),
            ({"by": "list"}, "by list needs validation_names or test_names"),
            ({"by": "record", "test_names": "x"}, "by record takes shares"),
            ({"by": "file", "test_names": "x"}, "by file reads the inputs' names"),
            ({"by": "stretch", "validation": 0.5, "test": 0.5}, "leave nothing to train on"),
        ],
    )
    def test_settings(self, tmp_path, split, says):
        with pytest.raises(ConfigError, match=says):
            config_for(tmp_path, "x.fa", split=split)

    def test_lists_that_contradict(self, tmp_path, path):
        (tmp_path / "a.txt").write_text("r3\n")
        lists = {"validation_names": tmp_path / "a.txt", "test_names": tmp_path / "a.txt"}
        with pytest.raises(DataError, match=r"a\.txt: 'r3' is in both lists"):
            prepare_source(config_for(tmp_path / "out", path, split={"by": "list", **lists}))
        (tmp_path / "b.txt").write_text("\n")
        for name, says in (("b.txt", "no names in it"), ("c.txt", "no such file")):
            config = config_for(tmp_path / "out", path, split={"by": "list", "test_names": tmp_path / name})
            with pytest.raises(DataError, match=rf"{name[0]}\.txt: {says}"):
                prepare_source(config)

    def test_a_name_that_says_no_split(self, tmp_path, path):
        with pytest.raises(InputError, match=r"genomes\.fa: its name says no split"):
            prepare_source(config_for(tmp_path / "out", path))


class TestInOrder:
    """Sources that are not shuffled."""

    @pytest.fixture
    def config(self, tmp_path):
        records = {f"r{i}": sequence(700, i) for i in range(20)}
        for name, part in (("a", dict(list(records.items())[:13])), ("b", dict(list(records.items())[13:]))):
            (tmp_path / f"{name}.fa").write_bytes(as_fasta(part))
        self.records = list(records.values())
        return config_for(tmp_path / "out", f"{tmp_path}/*.fa", shuffle=False, shard_bases=3000, split={"by": "record"})

    def test_records_stay_in_their_order(self, config):
        prepare_source(config)
        assert documents(config.output) == self.records
        names = [shard.name for shard in read_source(config.output).splits["train"]]
        assert names == [f"train-00000-{i:05d}" for i in range(3)] + [f"train-00001-{i:05d}" for i in range(2)]

    def test_a_missing_shard_is_made_again_alone(self, config, monkeypatch):
        prepare_source(config)
        before, when = tree_of(config.output), times(config.output)
        (config.output / "train-00000-00001.bin").unlink()
        read = []
        original = reading_inputs.read_records
        monkeypatch.setattr(
            reading_inputs, "read_records", lambda given, *rest: read.append(given.name) or original(given, *rest)
        )
        prepare_source(config)
        assert read == ["a.fa"]
        assert tree_of(config.output) == before
        changed = {name for name, time in times(config.output).items() if when[name] != time}
        assert changed == {"train-00000-00001.bin"}

    def test_duplicates_need_the_shuffle(self, tmp_path):
        with pytest.raises(ConfigError, match=r"cleaning\.duplicates: drop needs shuffle: true"):
            config_for(tmp_path, "x.fa", shuffle=False, cleaning={"duplicates": "drop"})


class TestAgain:
    @pytest.fixture
    def config(self, hub, tmp_path):
        return config_for(tmp_path / "out", f"{hub}/{BOTH}/metagenomes/*.gz", cleaning={"duplicates": "drop"})

    def test_finished_work_is_not_repeated(self, config, monkeypatch):
        first, before = prepare_source(config), tree_of(config.output)
        monkeypatch.setattr(pipeline, "spill_input", None)
        assert prepare_source(config) == first
        assert tree_of(config.output) == before

    @pytest.mark.parametrize("suffix", [".bin", ".idx", ".manifest.json"])
    def test_a_missing_shard_is_made_again_alone(self, config, suffix):
        prepare_source(config)
        before, when = tree_of(config.output), times(config.output)
        (config.output / f"train-00002{suffix}").unlink()
        prepare_source(config)
        assert tree_of(config.output) == before
        changed = {name for name, time in times(config.output).items() if when[name] != time}
        assert changed == {"train-00002.bin"}

    def test_a_shard_that_was_cut_is_made_again(self, config):
        prepare_source(config)
        before = tree_of(config.output)
        path = config.output / "test-00000.bin"
        path.write_bytes(path.read_bytes()[:-1])
        prepare_source(config)
        assert tree_of(config.output) == before

    @pytest.mark.parametrize("num_done", range(0, 12, 2))
    def test_an_interrupted_run_goes_on(self, config, tmp_path, monkeypatch, num_done):
        """What was finished is neither read nor written again, and the result is that of one run."""
        whole = config.model_copy(update={"output": tmp_path / "whole"})
        prepare_source(whole)
        calls = []

        def interrupted(work):
            def run(*given):
                if len(calls) == num_done:
                    raise KeyboardInterrupt
                calls.append(work(*given))
                return calls[-1]

            return run

        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "spill_input", interrupted(pipeline.spill_input))
            patch.setattr(pipeline, "write_bucket", interrupted(pipeline.write_bucket))
            with pytest.raises(KeyboardInterrupt):
                prepare_source(config)
        assert not source_path(config.output).exists()
        when, num_read = times(config.output), []
        original = shuffled.read_input
        monkeypatch.setattr(shuffled, "read_input", lambda *given: num_read.append(1) or original(*given))
        prepare_source(config)
        assert tree_of(config.output) == tree_of(tmp_path / "whole")
        assert {name: times(config.output)[name] for name in when} == when
        assert len(num_read) == max(0, 5 - num_done)

    def test_an_input_that_changed(self, config, tmp_path):
        paths = [tmp_path / f"x_train_{i}.jsonl" for i in range(2)]
        for i, path in enumerate(paths):
            write_rows(path, [{"text": sequence(500, 10 * i + k)} for k in range(9)])
        config = config.model_copy(update={"inputs": [str(path) for path in paths]})
        prepare_source(config)
        write_rows(paths[0], [{"text": sequence(500, 70 + k)} for k in range(9)])
        later = source_path(config.output).stat().st_mtime + 5
        os.utime(paths[0], (later, later))
        again = prepare_source(config)
        assert sequence(500, 70) in documents(config.output)
        assert sequence(500, 0) not in documents(config.output)
        # Nothing is newer than what came of it.
        os.utime(paths[0], (later - 1000, later - 1000))
        assert prepare_source(config) == again

    def test_other_settings(self, config):
        prepare_source(config)
        again = config.model_copy(update={"shard_bases": 10**9})
        prepare_source(again)
        assert [path.name for path in sorted(config.output.glob("*.bin"))] == [
            f"{split}-00000.bin" for split in ("test", "train", "validation")
        ]
        assert prepare_source(again) == read_source(config.output)

    def test_a_manifest_that_is_none(self, config, caplog):
        prepare_source(config)
        source_path(config.output).write_text("{")
        prepare_source(config)
        assert "not a manifest" in caplog.text


class TestBadRecords:
    @pytest.fixture
    def config(self, tmp_path):
        rows = [{"text": sequence(300, i)} for i in range(6)]
        write_rows(tmp_path / "a_train_1.jsonl.gz", [*rows[:2], "{", *rows[2:3], {"txt": "ACGT"}])
        write_rows(tmp_path / "b_train_1.jsonl.gz", [*rows[3:], {"text": "ACGTE"}])
        return config_for(tmp_path / "out", f"{tmp_path}/*.gz")

    def test_the_first_one_is_an_error(self, config):
        config = config.model_copy(update={"inputs": [config.inputs[0].replace("*", "a*")]})
        with pytest.raises(InputError, match=r"a_train_1\.jsonl\.gz, line 3: no row of JSON"):
            prepare_source(config)

    def test_some_may_be_left_out(self, config, caplog):
        manifest = prepare_source(config.model_copy(update={"max_bad_records": 3}))
        assert manifest.counts.bad_records == 3
        assert manifest.counts.records == 9
        assert sorted(documents(config.output)) == sorted(sequence(300, i) for i in range(6))
        assert "b_train_1.jsonl.gz, line 4, letter 5: 'E' in 'ACGTE' is no nucleotide" in caplog.text

    def test_they_are_counted_over_all_inputs(self, config):
        says = r"toy: 3 bad records \(a_train_1\.jsonl\.gz: 2, b_train_1\.jsonl\.gz: 1\); max_bad_records allows 2"
        with pytest.raises(InputError, match=says):
            prepare_source(config.model_copy(update={"max_bad_records": 2}))
        # Nothing has to be read again.
        prepare_source(config.model_copy(update={"max_bad_records": 3}))


class TestRefuses:
    def test_nothing_to_train_on(self, tmp_path):
        path = write_rows(tmp_path / "a_train_1.jsonl", [{"text": "ACGT"}])
        with pytest.raises(DataError, match="nothing to train on: all records of 1 inputs are held out"):
            prepare_source(config_for(tmp_path / "out", path, cleaning={"min_bases": 100}))

    def test_another_source_in_the_folder(self, tmp_path):
        path = write_rows(tmp_path / "a_train_1.jsonl", [{"text": sequence(500, 1)}])
        prepare_source(config_for(tmp_path / "out", path))
        before = tree_of(tmp_path / "out")
        with pytest.raises(DataError, match=r"source\.json is of the source 'toy', not 'other'"):
            prepare_source(config_for(tmp_path / "out", path, source="other"))
        assert tree_of(tmp_path / "out") == before

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{}", "not a manifest.*format_version: missing.*prepare the source"),
            ("[1]", "not a manifest"),
            ('{"format_version": 1}', "missing"),
        ],
    )
    def test_a_manifest_of_something_else(self, tmp_path, text, says):
        source_path(tmp_path).write_text(text)
        with pytest.raises(DataError, match=rf"(?s)source\.json: .*{says}"):
            read_source(tmp_path)

    def test_no_manifest(self, tmp_path):
        with pytest.raises(DataError, match=r"source\.json: no such file; prepare the source"):
            read_source(tmp_path)

    @pytest.mark.parametrize("num_synced", [0, 3, 8, 11, 15, 20])
    def test_a_disk_that_fills_up(self, hub, tmp_path, monkeypatch, num_synced):
        """What is finished stays, nothing is half there, and with space the run goes on."""
        config = config_for(tmp_path / "out", f"{hub}/{BOTH}/ncrna/*.gz")
        real, num_calls = os.fsync, itertools.count()

        def full_later(descriptor):
            if next(num_calls) >= num_synced:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(whole_files.os, "fsync", full_later)
            with pytest.raises(DiskFullError, match="no space left"):
                prepare_source(config)
        assert not list(config.output.rglob("*.partial"))
        assert not source_path(config.output).exists()
        when = {path.name for path in config.output.glob("*.manifest.json")}
        for name in when:
            manifest = read_manifest(config.output / name.removesuffix(".manifest.json"))
            assert len(IndexedReader(config.output / name.removesuffix(".manifest.json")).stream) == manifest.num_bytes
        prepare_source(config)
        assert sorted(documents(config.output)) == sorted(texts(hub, f"{BOTH}/ncrna/*_train_*"))

    def test_a_disk_that_is_too_small_for_one_record(self, tmp_path, monkeypatch):
        class Full:
            def seek(self, position):
                pass

            def write(self, data):
                raise OSError(errno.ENOSPC, "No space left on device")

            def close(self):
                pass

        monkeypatch.setattr("hyena_blt_savanna.data.corpus.spool._HELD_BYTES", 100)
        monkeypatch.setattr("hyena_blt_savanna.data.corpus.spool.tempfile.TemporaryFile", lambda **_: Full())
        path = write_rows(tmp_path / "a_train_1.jsonl", [{"text": sequence(5000, 1)}])
        with pytest.raises(DiskFullError, match="no space left"):
            prepare_source(config_for(tmp_path / "out", path))
