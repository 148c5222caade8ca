"""Boundaries of a source: those of its shards end to end, whoever cuts them."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.data.boundaries import BoundaryReader
from hyena_blt_savanna.data.corpus.pipeline import prepare_source
from hyena_blt_savanna.data.corpus.plan import SourceConfig
from hyena_blt_savanna.data.corpus.source import read_source, source_path
from hyena_blt_savanna.data.corpus.source_annotation import read_source_annotation, source_annotation_path
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import STRANDS
from hyena_blt_savanna.patching import annotate_source as module
from hyena_blt_savanna.patching.annotate import annotate_dataset, patcher_folder
from hyena_blt_savanna.patching.annotate_source import annotate_source
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.entropy_models import EntropyModelError, read_digest
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.stretches import SAMPLE_BASES
from hyena_blt_savanna.patching.training_stream import TrainingStream
from hyena_blt_savanna.testing.toy_corpus import sequence, write_rows
from hyena_blt_savanna.testing.toy_genomes import write_dataset

REPOSITORY = Path(__file__).parents[2]
TAG = "|D__ACGT;S__TTTT|"


def make_source(folder: Path, **changes) -> Path:
    rows = [{"text": (TAG if i % 3 == 0 else "") + sequence(300 + 1700 * (i % 5), i)} for i in range(24)]
    write_rows(folder / "x_train_1.jsonl", rows)
    write_rows(folder / "x_test_1.jsonl", [{"text": sequence(3000, 90 + i)} for i in range(3)])
    tree = {"source": "toy", "inputs": [f"{folder}/*.jsonl"], "output": folder / "toy", "shard_bases": 15_000}
    prepare_source(SourceConfig.parse(tree | changes))
    return folder / "toy"


@pytest.fixture
def source(tmp_path) -> Path:
    return make_source(tmp_path)


def config_for(data: Path, **changes) -> AnnotationConfig:
    model = {"kind": "ngram", "order": 5, "smoothing_folds": 2}
    tree = {"data": data, "entropy_model": model, "rule": {"kind": "budget"}, "folds": 5, "calibration_bases": 30_000}
    return AnnotationConfig.parse(tree | {"calibrate_to": {"mean_patch_bases": 6}} | changes)


def lengths_of(prefix: Path, strand) -> np.ndarray:
    reader = BoundaryReader(prefix, "patches", strand)
    return reader.patches(0, reader.num_bytes)[1]


def tree_of(folder: Path) -> dict[str, bytes]:
    """All files; of the model its digest, since safetensors writes what is said of it in any order."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    is_model = {name: name.endswith(".safetensors") for name in files}
    return {name: read_digest(path).encode() if is_model[name] else path.read_bytes() for name, path in files.items()}


def test_equals_one_dataset_of_all_its_shards(source, tmp_path):
    annotation = annotate_source(config_for(source))
    splits = read_source(source).splits
    assert len(splits["train"]) > 3
    for split, shards in splits.items():
        documents = []
        for shard in shards:
            reader = IndexedReader(source / shard.name)
            documents += [reader.document(i)[:-1].tobytes() for i in range(reader.num_documents)]
        pairs = [
            (document[: len(TAG)], document[len(TAG) :]) if document.startswith(b"|") else (b"", document)
            for document in documents
        ]
        write_dataset(tmp_path / "one" / split, [(tag, np.frombuffer(rest, np.uint8)) for tag, rest in pairs])
    manifests = annotate_dataset(config_for(tmp_path / "one"))
    found, expected = (Patcher.load(patcher_folder(folder, "patches")) for folder in (source, tmp_path / "one"))
    assert found.describe() == expected.describe()
    for split, shards in splits.items():
        for strand in STRANDS:
            parts = [lengths_of(source / shard.name, strand) for shard in shards]
            assert np.concatenate(parts).tolist() == lengths_of(tmp_path / "one" / split, strand).tolist()
    for strand in STRANDS:
        histograms = [manifests[split].statistics[strand].histogram for split in splits]
        lengths = {key for histogram in histograms for key in histogram}
        total = {length: sum(histogram.get(length, 0) for histogram in histograms) for length in sorted(lengths)}
        statistics = annotation.statistics[strand]
        assert statistics.histogram == total
        assert statistics.num_patches == sum(total.values())
        assert (statistics.min_bases, statistics.max_bases) == (min(total), max(total))
        num_bytes = sum(shard.num_bytes for shards in splits.values() for shard in shards)
        assert statistics.mean_bases == pytest.approx(num_bytes / statistics.num_patches)


def test_finished_shards_are_not_cut_again(source, monkeypatch):
    first = annotate_source(config_for(source))
    before = tree_of(source)
    cut = []
    original = module.annotate_shard
    monkeypatch.setattr(
        module,
        "annotate_shard",
        lambda config, prefix, *rest: cut.append(prefix.name) or original(config, prefix, *rest),
    )
    assert annotate_source(config_for(source)) == first
    assert cut == []
    (source / "train-00001.patches.reverse.bin").unlink()
    assert annotate_source(config_for(source)) == first
    assert cut == ["train-00001"]
    source_annotation_path(source, "patches").unlink()
    annotate_source(config_for(source))
    assert cut == ["train-00001"]
    assert tree_of(source) == before
    annotate_source(config_for(source, calibrate_to={"mean_patch_bases": 5}))
    assert len(cut) == 1 + first.num_shards
    # The bases are as they were.
    names = [name for name in before if "patches" not in name]
    assert {name: tree_of(source)[name] for name in names} == {name: before[name] for name in names}


def test_two_ranks_cut_as_one_does(source, tmp_path):
    shutil.copytree(source, tmp_path / "ranks")
    tool = [
        sys.executable,
        REPOSITORY / "tools" / "annotate_patches.py",
        REPOSITORY / "configs" / "patching" / "budget.yaml",
    ]
    more = ["entropy_model.order=5", "calibration_bases=30000", "calibrate_to.mean_patch_bases=6"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"OMPI_MCA_mpi_yield_when_idle": "1"}
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    outputs = []
    for launcher, folder in (([], source), ([mpirun, "--oversubscribe", "-n", "2"], tmp_path / "ranks")):
        command = [*launcher, *tool, f"data={folder}", *more]
        result = subprocess.run(map(str, command), capture_output=True, text=True, check=False, env=environment)
        assert result.returncode == 0, result.stderr
        outputs.append(json.loads(result.stdout))
    assert outputs[0] == outputs[1]
    assert outputs[0]["num_shards"] == len(read_source(source).shards())
    assert tree_of(tmp_path / "ranks") == tree_of(source)


class TestTrainingStream:
    @pytest.fixture
    def stream(self, tmp_path):
        lengths = []
        for number, num_bases in enumerate((700, 1, 500, 900)):
            letters = np.frombuffer(sequence(num_bases, number).upper().encode(), np.uint8)
            manifest = write_dataset(
                tmp_path / f"train-{number}", [(b"|D__AAA|", letters)] if number == 3 else [letters]
            )
            lengths.append(manifest.num_bytes)
        prefixes = [tmp_path / f"train-{number}" for number in range(4)]
        self.whole = np.concatenate([IndexedReader(prefix).stream for prefix in prefixes])
        return TrainingStream(prefixes, lengths)

    def test_places_are_where_the_bytes_lie(self, stream):
        for start, stop in itertools.combinations([0, 1, 700, 701, 702, 703, 704, 900, 1203, 1204, len(self.whole)], 2):
            parts = [stream.reader(index).stream[a:b] for index, a, b in stream.places(start, stop)]
            assert np.concatenate(parts).tobytes() == self.whole[start:stop].tobytes()

    @pytest.mark.parametrize("num_folds", [2, 3, 7, 40])
    def test_folds_of_shards_are_those_of_the_whole(self, stream, num_folds):
        edges = [len(stream) * fold // num_folds for fold in range(num_folds + 1)]
        by_fold = list(range(num_folds))
        found = []
        for index in range(4):
            borders, folds = stream.folds_of(index, edges, by_fold)
            assert len(borders) == len(folds) + 1
            for (start, stop), fold in zip(itertools.pairwise(borders), folds, strict=True):
                found += [fold] * (stop - start)
        assert found == (np.searchsorted(edges, np.arange(len(stream)), side="right") - 1).tolist()

    def test_a_sample_has_no_base_of_another_fold_and_none_of_a_tag(self, stream, monkeypatch):
        monkeypatch.setattr("hyena_blt_savanna.patching.stretches.SAMPLE_BASES", 40)
        monkeypatch.setattr("hyena_blt_savanna.patching.training_stream.SAMPLE_BASES", 40)
        edges = [0, 650, 1300, len(stream)]
        sample = stream.fold_sample(edges, 600)
        assert 500 < len(sample.stream) < 900
        whole = self.whole.tobytes()
        for (start, stop), (first, last) in zip(
            itertools.pairwise(sample.edges), itertools.pairwise(edges), strict=True
        ):
            pieces = [piece for piece in sample.stream[start:stop].tobytes().split(b"\0") if piece]
            assert len(pieces) > 2
            assert all(piece in whole[first:last] for piece in pieces)
            assert all(piece.count(b"|") in (0, 2) for piece in pieces)

    def test_a_small_stream_is_taken_whole(self, stream):
        for wanted in (None, len(stream)):
            sample = stream.fold_sample([0, 5, len(stream)], wanted)
            assert sample.stream.tobytes() == self.whole.tobytes()
            assert sample.edges == [0, 5, len(stream)]


def test_a_model_is_fitted_on_as_much_as_is_wanted(source, caplog):
    caplog.set_level("INFO")
    annotate_source(config_for(source, fit_bases=5 * SAMPLE_BASES // 4))
    assert annotate_source(config_for(source, fit_bases=5 * SAMPLE_BASES // 4)).num_shards
    assert "already cut" in caplog.text


class TestStrands:
    def test_rna_has_one(self, tmp_path):
        source = make_source(tmp_path, alphabet="rna")
        annotation = annotate_source(config_for(source))
        assert list(annotation.statistics) == ["forward"]
        assert Patcher.load(patcher_folder(source, "patches")).entropy_model.config.both_strands is False
        with pytest.raises(DataError, match="holds rna, which has no reverse strand: set both_strands=false"):
            annotate_source(config_for(source, both_strands=True))

    def test_protein_has_no_entropies(self, tmp_path):
        source = make_source(tmp_path, alphabet="protein")
        with pytest.raises(DataError, match="holds proteins, and entropy models read bases"):
            annotate_source(config_for(source))
        rule = {"entropy_model": None, "rule": {"kind": "static", "patch_bases": 4}, "calibrate_to": None}
        assert annotate_source(config_for(source, **rule)).statistics["forward"].max_bases == 4


class TestRefuses:
    def test_models_of_folds(self, source, tmp_path):
        model = {"kind": "stored", "path": tmp_path / "m", "fold_paths": [tmp_path / "a"] * 5}
        with pytest.raises(EntropyModelError, match="is a source of shards, and models that left a fold out"):
            annotate_source(config_for(source, entropy_model=model))

    def test_boundaries_of_other_shards(self, source):
        annotate_source(config_for(source))
        tree = json.loads(source_path(source).read_text())
        tree["splits"]["test"][0]["data_sha256"] = "0" * 64
        source_path(source).write_text(json.dumps(tree))
        with pytest.raises(DataError, match=r"patches\.source\.json belongs to other shards"):
            read_source_annotation(source, "patches", read_source(source))

    @pytest.mark.parametrize(
        ("text", "says"), [(None, "no such file"), ("[]", "not a manifest"), ("{", "not a manifest")]
    )
    def test_no_manifest(self, source, text, says):
        if text is not None:
            source_annotation_path(source, "patches").write_text(text)
        with pytest.raises(DataError, match=rf"patches\.source\.json: {says}"):
            read_source_annotation(source, "patches", read_source(source))

    def test_half_a_manifest(self, source):
        source_annotation_path(source, "patches").write_text('{"format_version": 1}')
        with pytest.raises(DataError, match=r"patches\.source\.json: not a manifest"):
            read_source_annotation(source, "patches", read_source(source))
