"""Annotation of toy datasets, end to end: what is stored equals what plain reading with the right model gives."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data import whole_files
from hyena_blt_savanna.data.boundaries import BoundaryReader
from hyena_blt_savanna.data.entropies import EntropyReader
from hyena_blt_savanna.data.errors import DataError, DiskFullError
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import STRANDS, Strand, manifest_path, read_manifest
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import tag_length
from hyena_blt_savanna.patching import stretches
from hyena_blt_savanna.patching.annotate import annotate_dataset, patcher_folder
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.cutting import PatchCutter, cut
from hyena_blt_savanna.patching.entropy_models import EntropyModelError, save_entropy_model
from hyena_blt_savanna.patching.marks import forced_starts
from hyena_blt_savanna.patching.ngram import EntropyTable, NgramConfig
from hyena_blt_savanna.patching.ngram_smoothing import NgramError
from hyena_blt_savanna.patching.patcher import DEFAULT_PATCHER, Patcher
from hyena_blt_savanna.patching.rules import BudgetRule, PatchRuleError, StaticRule
from hyena_blt_savanna.patching.stretches import fold_stretches
from hyena_blt_savanna.testing.toy_genomes import random_genome, toy_documents, write_dataset

REPOSITORY = Path(__file__).parents[2]
MODEL = {"kind": "ngram", "order": 6, "smoothing_folds": 2}


def write_toy_data(folder: Path, seed: int = 0) -> Path:
    write_dataset(folder / "train", [*toy_documents(seed, 6, 6000), (b"|D__X|", random_genome(30_000, seed))])
    write_dataset(folder / "validation", toy_documents(seed + 1, 2, 3000))
    write_dataset(folder / "test", toy_documents(seed + 2, 3, 4000))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_toy_data(tmp_path / "data")


def config_for(data: Path, **changes: Any) -> AnnotationConfig:
    tree = {"data": data, "entropy_model": MODEL, "rule": {"kind": "entropy"}, "folds": 3}
    tree["calibrate_to"] = {"mean_patch_bases": 6}
    return AnnotationConfig.parse(tree | changes)


def stored_lengths(prefix: Path, strand: Strand, name: str = "patches") -> np.ndarray:
    reader = BoundaryReader(prefix, name, strand)
    first, lengths = reader.patches(0, reader.num_bytes)
    assert first == 0
    return lengths


def whole_stream(prefix: Path, strand: Strand) -> np.ndarray:
    reader = IndexedReader(prefix)
    return np.array(StrandReader(reader, strand).read(0, len(reader.stream)))


def folds_of_stream(prefix: Path, strand: Strand, edges: list[int]) -> np.ndarray:
    """The fold of each byte of a strand: that of the base it is, found by reversing a stream of positions."""
    reader = IndexedReader(prefix)
    positions = np.arange(len(reader.stream))
    if strand == "reverse":
        for start, stop in itertools.pairwise(reader.document_starts.tolist()):
            front = start + tag_length(reader.stream[start:stop])
            positions[front : stop - 1] = positions[front : stop - 1][::-1]
    return np.searchsorted(edges, positions, side="right") - 1


@pytest.mark.parametrize("rule", ["entropy", "budget"])
def test_training_data_are_cut_by_models_that_have_not_seen_them(
    data: Path, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "CHUNK_BASES", 1000)
    config = config_for(data, rule={"kind": rule, "min_patch_bases": 2})
    annotate_dataset(config)
    patcher = Patcher.load(patcher_folder(data, "patches"))
    stream = whole_stream(data / "train", "forward")
    edges = fold_edges(len(stream), config.folds)
    assert config.entropy_model is not None
    model, tables = config.entropy_model.fit_out_of_fold(stream, edges)
    assert model.digest == patcher.describe().entropy_model.digest
    for strand in STRANDS:
        bases = whole_stream(data / "train", strand)
        folds = folds_of_stream(data / "train", strand, edges)
        by_fold = np.stack([table.entropies(bases) for table in tables])
        nats = by_fold[folds, np.arange(len(bases))]
        cutter = PatchCutter(patcher.rule)
        expected = [*cutter.cut(bases, nats), *cutter.finish()]
        assert stored_lengths(data / "train", strand).tolist() == expected
        for split in ("validation", "test"):
            held_out = whole_stream(data / split, strand)
            assert stored_lengths(data / split, strand).tolist() == patcher.segment_sequence(held_out).tolist()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("strand", STRANDS)
def test_stored_patches_keep_their_bounds_and_forced_boundaries(data: Path, split: str, strand: Strand) -> None:
    annotate_dataset(config_for(data, rule={"kind": "budget", "min_patch_bases": 3, "max_patch_bases": 12}))
    lengths, bases = stored_lengths(data / split, strand), whole_stream(data / split, strand)
    starts = np.cumsum(lengths) - lengths
    forced = np.flatnonzero(forced_starts(bases))
    assert np.isin(forced, starts).all()
    assert lengths.max() <= 12
    assert lengths.sum() == len(bases)
    short = np.flatnonzero(lengths[:-1] < 3)
    assert np.isin(starts[short + 1], forced).all()


def test_folds_of_the_reverse_strand_mirror_those_of_the_forward_one(data: Path) -> None:
    reader = IndexedReader(data / "train")
    inside_tag = int(reader.document_starts[1]) + 3
    for inner in ([7, 20_000, 21_111], [inside_tag], reader.document_starts[1:-1].tolist(), []):
        edges = [0, *sorted(inner), len(reader.stream)]
        tables = [EntropyTable(0, np.array([i], np.float32)) for i in range(len(edges) - 1)]
        stretches = fold_stretches(reader, "reverse", edges, tables)
        found = np.concatenate([np.full(s.stop - s.start, s.entropies.nats[0]) for s in stretches])
        assert all(a.stop == b.start for a, b in itertools.pairwise(stretches))
        assert found.astype(int).tolist() == folds_of_stream(data / "train", "reverse", edges).tolist()


def test_the_mean_length_is_reached_and_reported(data: Path) -> None:
    manifests = annotate_dataset(config_for(data))
    train = manifests["train"]
    assert train.calibration["mean_bases"] == pytest.approx(6, rel=0.02)
    assert train.statistics["forward"].mean_bases == pytest.approx(6, rel=0.1)
    assert train.rule["threshold_nats"] == train.calibration["limit_nats"]
    assert train.calibration["in_sample_mean_bases"] > 1
    assert manifests["test"].statistics["reverse"].mean_bases == pytest.approx(6, rel=0.25)
    assert {manifest.entropy_model.digest for manifest in manifests.values()} == {train.entropy_model.digest}


def test_finished_work_is_not_repeated_and_changed_work_is(data: Path) -> None:
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in data.rglob("*patches*") if path.is_file()}

    config = config_for(data)
    first, before = annotate_dataset(config), written()
    assert annotate_dataset(config) == first
    assert written() == before
    changed = annotate_dataset(config_for(data, calibrate_to={"mean_patch_bases": 5}))
    assert changed["train"].rule != first["train"].rule
    for path in (
        manifest_path(data / "test.patches"),
        data / "train.patches.reverse.bin",
        patcher_folder(data, "patches") / "patcher.yaml",
    ):
        path.unlink()
        assert annotate_dataset(config_for(data, calibrate_to={"mean_patch_bases": 5})) == changed
        assert path.is_file()


def test_other_data_are_annotated_anew(data: Path) -> None:
    config = config_for(data)
    first = annotate_dataset(config)
    write_toy_data(data, seed=9)
    with pytest.raises(DataError, match=r"train\.patches\.manifest\.json belongs to other data"):
        BoundaryReader(data / "train")
    again = annotate_dataset(config)
    assert again["train"].data_sha256 == read_manifest(data / "train").data_sha256 != first["train"].data_sha256
    BoundaryReader(data / "train")


def test_static_patches_need_no_entropy_model(data: Path) -> None:
    changes = {"entropy_model": None, "rule": {"kind": "static", "patch_bases": 5}, "calibrate_to": None}
    manifests = annotate_dataset(config_for(data, name="grid", **changes))
    assert manifests["train"].entropy_model is None
    assert manifests["train"].statistics["forward"].max_bases == 5
    bases = whole_stream(data / "train", "reverse")
    expected = Patcher.load(patcher_folder(data, "grid")).segment_sequence(bases)
    assert stored_lengths(data / "train", "reverse", "grid").tolist() == expected.tolist()


def test_one_strand_is_enough_for_rna(data: Path) -> None:
    manifests = annotate_dataset(config_for(data, both_strands=False))
    assert list(manifests["train"].statistics) == ["forward"]
    assert not list(data.glob("*.reverse.*"))
    assert annotate_dataset(config_for(data, both_strands=False)) == manifests


def test_a_limit_of_ones_own_is_kept(data: Path) -> None:
    rule = {"kind": "entropy", "threshold_nats": 1.25}
    manifests = annotate_dataset(config_for(data, rule=rule, calibrate_to=None))
    assert manifests["train"].rule["threshold_nats"] == 1.25
    assert "mean_bases" not in manifests["train"].calibration


def test_other_targets_are_reached(data: Path) -> None:
    num_patches = len(IndexedReader(data / "train").stream) // 5
    target = {"num_patches": num_patches}
    train = annotate_dataset(config_for(data, calibrate_to=target, rule={"kind": "budget"}))["train"]
    assert train.statistics["forward"].num_patches == pytest.approx(num_patches, rel=0.03)
    train = annotate_dataset(config_for(data, calibrate_to={"share_in_longer_patches": 0.9}))["train"]
    statistics = train.statistics["forward"]
    assert statistics.histogram[1] / train.data_num_bytes == pytest.approx(0.1, abs=0.02)
    assert train.calibration["reached"] == pytest.approx(0.9, abs=0.002)


def test_runs_of_unknown_letters_do_not_count(data: Path, tmp_path: Path) -> None:
    annotate_dataset(config_for(data))
    unknown = tmp_path / "unknown"
    genome = random_genome(40_000, 3)
    for name in ("train", "test"):
        write_dataset(unknown / name, [np.concatenate([genome, np.full(40_000, ord("N"), np.uint8), genome])])
    manifests = annotate_dataset(config_for(unknown))
    assert manifests["train"].calibration["mean_bases"] == pytest.approx(6, rel=0.02)
    assert manifests["train"].calibration["num_bases"] < 80_100
    # 80,000 bases in patches of 6 and 40,000 N in patches of 16.
    assert manifests["train"].statistics["forward"].mean_bases == pytest.approx(120 / (80 / 6 + 40 / 16), rel=0.05)
    assert manifests["train"].calibration["mean_bases_ratio"] == pytest.approx(1, abs=0.05)


def test_stored_entropies_are_those_that_the_stream_was_cut_by(data: Path) -> None:
    config = config_for(data, store_entropies=True, rule={"kind": "budget"})
    manifests = annotate_dataset(config)
    rule = Patcher.load(patcher_folder(data, "patches")).rule
    for split, strand in itertools.product(("train", "test"), STRANDS):
        bases = whole_stream(data / split, strand)
        nats = EntropyReader(data / split, "patches", strand).read(0, len(bases))
        assert cut(bases, nats, rule).tolist() == stored_lengths(data / split, strand).tolist()
    assert annotate_dataset(config) == manifests
    lost = data / "test.patches.entropies.reverse.bin"
    lost.unlink()
    assert annotate_dataset(config) == manifests
    assert lost.is_file()


def test_a_patcher_of_other_data_keeps_its_limit_and_says_how_far_it_drifts(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotate_dataset(config_for(data))
    other = tmp_path / "other"
    two_letters = np.frombuffer(b"AT", np.uint8)[np.random.default_rng(0).integers(0, 2, 20_000)]
    write_dataset(other / "train", [two_letters, random_genome(20_000, 7)])
    annotations = {"patcher": patcher_folder(data, "patches"), "folds": 3}
    kept = annotate_dataset(AnnotationConfig.parse({"data": other} | annotations))["train"]
    first = Patcher.load(patcher_folder(data, "patches"))
    assert kept.rule == first.rule.to_dict()
    assert kept.entropy_model.digest == first.entropy_model.digest
    found = kept.statistics["forward"].mean_bases
    assert kept.calibration["drift"]["mean_bases"] == pytest.approx(found, rel=0.01)
    assert kept.calibration["mean_bases_ratio"] == pytest.approx(found / first.calibration.mean_bases)
    assert "times as long as where the rule was calibrated" in caplog.text
    again = annotate_dataset(
        AnnotationConfig.parse({"data": other, "calibrate_to": {"mean_patch_bases": 5}} | annotations)
    )["train"]
    assert again.statistics["forward"].mean_bases == pytest.approx(5, rel=0.03)
    assert again.entropy_model == kept.entropy_model
    assert Patcher.load(patcher_folder(other, "patches")).calibration.reached == pytest.approx(5, rel=0.02)


def test_a_patcher_does_not_judge_what_its_model_has_learned(data: Path) -> None:
    annotate_dataset(config_for(data))
    folder = patcher_folder(data, "patches")
    with pytest.raises(EntropyModelError, match="was made on these very data"):
        annotate_dataset(AnnotationConfig.parse({"data": data, "patcher": folder, "name": "again"}))
    stored = {"kind": "stored", "path": folder / "entropy_model.safetensors"}
    with pytest.raises(EntropyModelError, match="must not judge what it has learned"):
        annotate_dataset(config_for(data, entropy_model=stored, name="again"))


def test_a_model_of_a_mixture_does_not_judge_its_sources(data: Path, tmp_path: Path) -> None:
    sources = {"this": {"data_sha256": read_manifest(data / "train").data_sha256, "weight": 0.5}}
    sources["other"] = {"data_sha256": "another", "weight": 0.5}
    for given, names in (("learned", ("other", "this")), ("new", ("other",))):
        about = {"trained_on": {"data_sha256": "of both", "left_out": None, "sources": {n: sources[n] for n in names}}}
        path, folder = tmp_path / f"{given}.safetensors", tmp_path / f"{given}.patcher"
        model = NgramConfig.parse(MODEL).fit(random_genome(20_000, 3))
        save_entropy_model(model, path, about)
        Patcher(model, BudgetRule(budget_nats=6.0), about=about).save(folder)
        stored = config_for(data, entropy_model={"kind": "stored", "path": path}, name=given)
        patched = AnnotationConfig.parse({"data": data, "patcher": folder, "name": f"{given}_too"})
        for config in (stored, patched):
            with pytest.raises(EntropyModelError) if given == "learned" else nullcontext():
                annotate_dataset(config)


def test_a_model_that_left_one_fold_out_does_not_judge_the_others(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "fold_0.safetensors"
    left_out = {"fold": 0, "folds": 3}
    trained_on = {"data_sha256": read_manifest(data / "train").data_sha256, "left_out": left_out}
    save_entropy_model(NgramConfig.parse(MODEL).fit(random_genome(20_000, 3)), path, {"trained_on": trained_on})
    with pytest.raises(EntropyModelError, match="must not judge what it has learned"):
        annotate_dataset(config_for(data, entropy_model={"kind": "stored", "path": path}))


def test_a_stored_model_or_patcher_that_was_made_anew_cuts_anew(data: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "model.safetensors", tmp_path / "some.patcher"
    stored = config_for(data, entropy_model={"kind": "stored", "path": path})
    patched = AnnotationConfig.parse({"data": data, "patcher": folder, "name": "patched", "folds": 3})
    found = []
    for seed in (3, 4):
        model = NgramConfig.parse(MODEL).fit(random_genome(20_000, seed))
        save_entropy_model(model, path)
        Patcher(model, BudgetRule(budget_nats=9.0)).save(folder)
        for config in (stored, patched):
            manifests = annotate_dataset(config)
            assert manifests["train"].entropy_model.digest == model.digest
            assert annotate_dataset(config) == manifests
            found.append(manifests["test"].forward_sha256)
    assert len(set(found)) == 4


def test_a_model_that_learns_while_it_reads_is_refused(data: Path, tmp_path: Path) -> None:
    DEFAULT_PATCHER.save(tmp_path / "some.patcher")
    with pytest.raises(EntropyModelError, match="an adaptive entropy model learns from all that it reads"):
        annotate_dataset(AnnotationConfig.parse({"data": data, "patcher": tmp_path / "some.patcher"}))
    assert not list(data.glob("*patches*"))


def test_a_patcher_without_an_entropy_model_has_none_to_store(data: Path, tmp_path: Path) -> None:
    Patcher(None, StaticRule()).save(tmp_path / "grid.patcher")
    config = AnnotationConfig.parse({"data": data, "patcher": tmp_path / "grid.patcher", "store_entropies": True})
    with pytest.raises(EntropyModelError, match=r"grid\.patcher has no entropy model: .*store_entropies=false"):
        annotate_dataset(config)
    assert not list(data.glob("*patches*"))


def test_stored_models_that_left_a_fold_out_each(data: Path, tmp_path: Path) -> None:
    expected = annotate_dataset(config_for(data))
    stream = np.array(IndexedReader(data / "train").stream)
    edges, sha256 = fold_edges(len(stream), 3), read_manifest(data / "train").data_sha256
    model = NgramConfig.parse(MODEL).fit(stream)
    paths = [tmp_path / f"fold_{fold}.safetensors" for fold in range(3)]
    for fold, (path, (start, stop)) in enumerate(zip(paths, itertools.pairwise(edges), strict=True)):
        left_out = {"fold": fold, "folds": 3}
        save_entropy_model(
            model.without(stream, start, stop), path, {"trained_on": {"data_sha256": sha256, "left_out": left_out}}
        )
    whole = patcher_folder(data, "patches") / "entropy_model.safetensors"
    stored = {"kind": "stored", "path": whole, "fold_paths": paths}
    found = annotate_dataset(config_for(data, entropy_model=stored, name="again"))
    assert found["train"].forward_sha256 == expected["train"].forward_sha256
    assert found["train"].calibration["in_sample_mean_bases"] == expected["train"].calibration["in_sample_mean_bases"]
    swapped = stored | {"fold_paths": [paths[1], paths[0], paths[2]]}
    with pytest.raises(EntropyModelError, match=r"fold_1.*did not leave fold 0 of 3 of these data out"):
        annotate_dataset(config_for(data, entropy_model=swapped, name="third"))
    with pytest.raises(EntropyModelError, match=r"2 entropy_model.fold_paths for 3 folds"):
        annotate_dataset(config_for(data, entropy_model=stored | {"fold_paths": paths[:2]}, name="third"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entropy_model": None}, "reads entropies: set entropy_model"),
        ({"rule": {"kind": "static"}}, "static is not calibrated"),
        ({"calibrate_to": None}, "either a limit in nats or calibrate_to"),
        ({"rule": {"kind": "budget", "budget_nats": 9}}, "and not both"),
        ({"rule": {"kind": "budgte"}}, "budgte"),
        ({"calibrate_too": 3}, "did you mean 'calibrate_to'"),
        ({"name": "a/b"}, "name"),
        ({"patcher": "some"}, "patcher brings entropy model and rule: leave entropy_model and rule out"),
        (
            {"entropy_model": None, "rule": {"kind": "byte"}, "calibrate_to": None, "store_entropies": True},
            "store_entropies needs an entropy model",
        ),
        ({"entropy_model": {"kind": "ngram", "order": 99}}, r"entropy_model.*order.*less than or equal to 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_for(Path("data"), **changes)


def test_there_must_be_training_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.manifest\.json: no such file; prepare the data first"):
        annotate_dataset(config_for(tmp_path))


def test_too_little_training_data_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "train", [np.frombuffer(b"ACG", np.uint8)] * 5)
    with pytest.raises(NgramError, match="no stretch of 7 bases"):
        annotate_dataset(config_for(tmp_path))
    assert not list(tmp_path.glob("*patches*"))


def test_a_mean_that_cannot_be_reached_leaves_nothing(data: Path) -> None:
    with pytest.raises(PatchRuleError, match="can't give a mean patch of 30"):
        annotate_dataset(config_for(data, calibrate_to={"mean_patch_bases": 30}))
    assert not list(data.glob("*patches*"))


def test_a_full_disk_leaves_whole_files_or_none(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, num_calls = os.fsync, itertools.count()

    def full_later(descriptor: int) -> None:
        if next(num_calls) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(whole_files.os, "fsync", full_later)
        with pytest.raises(DiskFullError, match="no space left"):
            annotate_dataset(config_for(data))
    assert not list(data.rglob("*.partial"))
    with pytest.raises(DataError):
        BoundaryReader(data / "train")
    assert annotate_dataset(config_for(data))["train"].statistics["reverse"].num_patches > 0


def test_tool(data: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "tools" / "annotate_patches.py"), *arguments]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)

    result = run(
        "configs/patching/budget.yaml", f"data={data}", "entropy_model.order=3", "calibrate_to.mean_patch_bases=6"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["train"]["calibration"]["mean_bases"] == pytest.approx(6, rel=0.02)
    assert "out of fold" in result.stderr
    failed = run("configs/patching/budget.yaml", f"data={data / 'none'}")
    assert failed.returncode == 1
    assert "none/train.manifest.json: no such file" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_shipped_configurations_load() -> None:
    for path in (REPOSITORY / "configs" / "patching").glob("*.yaml"):
        files = ["entropy_model.path=model.safetensors"] if path.stem == "budget_neural" else []
        config = AnnotationConfig.load([path, "data=somewhere", *files])
        assert config.rule.max_patch_bases == 16
