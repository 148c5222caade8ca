"""Permuted boundaries: what stays, what moves, and that nothing else differs."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyena_blt_savanna.data.batches import EvaluationWindows, TrainingSamples, collate
from hyena_blt_savanna.data.boundaries import BoundaryReader
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader, data_path
from hyena_blt_savanna.data.manifest import STRANDS, Strand, read_annotation_manifest
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import BASE_CODE, OTHER_CODE, Bytes
from hyena_blt_savanna.patching import control
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.control import permute_annotation, permute_lengths
from hyena_blt_savanna.patching.marks import IN_UNKNOWN_RUN, PLACE, forced_starts, states_before
from hyena_blt_savanna.testing.toy_genomes import random_genome, toy_documents, write_dataset

SPLITS = ("train", "validation")
LONGEST = 12


def annotate(folder: Path, **changes: Any) -> None:
    tree = {"data": folder, "entropy_model": {"kind": "ngram", "order": 4, "smoothing_folds": 2}, "folds": 2}
    tree |= {"rule": {"kind": "entropy", "max_patch_bases": LONGEST}, "calibrate_to": {"mean_patch_bases": 5}}
    annotate_dataset(AnnotationConfig.parse(tree | changes))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents with tags, join marks, runs of N, and a chromosome with a long run of N."""
    folder = tmp_path_factory.mktemp("annotated")
    chromosome = random_genome(20_000, seed=7, num_unknown_runs=3)
    chromosome[5000:9000] = ord("N")
    write_dataset(folder / "train", [*toy_documents(0, 6, 3000), (b"|D__X|", chromosome)])
    write_dataset(folder / "validation", toy_documents(1, 3, 3000))
    annotate(folder)
    return folder


@pytest.fixture
def data(annotated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(annotated, tmp_path / "data")


def read(prefix: Path, name: str, strand: Strand) -> np.ndarray:
    reader = BoundaryReader(prefix, name, strand)
    return reader.patches(0, reader.num_bytes)[1]


def stream_of(prefix: Path, strand: Strand) -> Bytes:
    reader = IndexedReader(prefix)
    return np.array(StrandReader(reader, strand).read(0, len(reader.stream)))


def starts_of(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize("split", SPLITS)
def test_stretches_between_forced_boundaries_keep_their_lengths(data: Path, split: str, strand: Strand) -> None:
    permute_annotation(data, "patches", "control", seed=3)
    old, new = (read(data / split, name, strand) for name in ("patches", "control"))
    bases = stream_of(data / split, strand)
    forced = [*np.flatnonzero(forced_starts(bases)), len(bases)]
    assert np.isin(forced[:-1], starts_of(new)).all()
    for begin, end in itertools.pairwise(forced):
        of_stretch = [
            Counter(lengths[(starts >= begin) & (starts < end)].tolist())
            for lengths, starts in ((old, starts_of(old)), (new, starts_of(new)))
        ]
        assert of_stretch[0] == of_stretch[1]
        assert sum(length * count for length, count in of_stretch[1].items()) == end - begin
    assert (old != new).mean() > 0.3
    statistics = read_annotation_manifest(data / split, "control").statistics[strand]
    assert statistics == read_annotation_manifest(data / split, "patches").statistics[strand]


@pytest.mark.parametrize("strand", STRANDS)
def test_patches_inside_runs_of_unknown_letters_stay(data: Path, strand: Strand) -> None:
    permute_annotation(data, "patches", "control", seed=3)
    bases = stream_of(data / "train", strand)
    inside = (states_before(bases) & PLACE == IN_UNKNOWN_RUN) & (BASE_CODE[bases] == OTHER_CODE)
    by_name = []
    for name in ("patches", "control"):
        lengths = read(data / "train", name, strand)
        starts = starts_of(lengths)
        by_name.append(list(zip(starts[inside[starts]], lengths[inside[starts]], strict=True)))
    assert by_name[0] == by_name[1]
    assert len(by_name[0]) > 4000 / LONGEST


def test_each_order_is_as_likely() -> None:
    bases = np.frombuffer(b"ACGTAC" + b"N" + b"ACGTAC", dtype=np.uint8)
    lengths = np.array([1, 2, 3, 1, 1, 2, 3], dtype=np.int32)
    states = states_before(bases)
    found = Counter(tuple(permute_lengths(bases, states, lengths, key * 2**40).tolist()) for key in range(3600))
    # The N ends a patch of its own; before it three patches and this one, behind it three.
    expected = {
        first + second for first in itertools.permutations([1, 2, 3, 1]) for second in itertools.permutations([1, 2, 3])
    }
    assert set(found) == expected
    mean = 3600 / len(expected)
    assert sum((count - mean) ** 2 / mean for count in found.values()) < 110
    assert lengths.tolist() == [1, 2, 3, 1, 1, 2, 3]


def test_blocks_keep_the_boundary_next_to_their_border(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "BLOCK_BASES", 1000)
    permute_annotation(data, "patches", "control", seed=3)
    for strand in STRANDS:
        old, new = (read(data / "train", name, strand) for name in ("patches", "control"))
        old_starts, new_starts = starts_of(old), starts_of(new)
        for border in range(0, int(old.sum()), 1000):
            if border <= old_starts[-1]:
                assert old_starts[old_starts >= border][0] in new_starts
        forced = np.flatnonzero(forced_starts(stream_of(data / "train", strand)))
        assert np.isin(forced, new_starts).all()
        assert Counter(old.tolist()) == Counter(new.tolist())
    # A block that is shorter than a patch may hold the start of none.
    monkeypatch.setattr(control, "BLOCK_BASES", 3)
    permute_annotation(data, "patches", "same", seed=3)
    assert read(data / "train", "same", "forward").sum() == len(IndexedReader(data / "train").stream)


def test_training_reads_the_same_windows_but_for_their_ends(data: Path) -> None:
    permute_annotation(data, "patches", "control", seed=3)
    old, new = (TrainingSamples(data / "train", name, "both", seed=5) for name in ("patches", "control"))
    window_bases = 512
    assert old.num_windows(window_bases) == new.num_windows(window_bases)
    cuts_differ = 0
    for index in range(2 * old.num_windows(window_bases)):
        theirs, ours = old.sample(0, window_bases, index), new.sample(0, window_bases, index)
        shift = ours.start - theirs.start
        assert abs(shift) < LONGEST
        assert abs(shift + len(ours.bases) - len(theirs.bases)) < LONGEST
        # The bases that both have are the same ones, and weigh the same.
        begin, num_left = max(0, -shift), max(0, shift)
        num = min(len(ours.bases) - begin, len(theirs.bases) - num_left)
        np.testing.assert_array_equal(ours.bases[begin:][:num], theirs.bases[num_left:][:num])
        weights = [collate([window]).loss_weights[0, 1:] for window in (ours, theirs)]
        # A window's opening tag is not scored, and nothing is known of one that was left behind.
        assert (weights[0][begin:][:num] == weights[1][num_left:][:num]).all()
        cuts_differ += ours.patch_lengths.tolist() != theirs.patch_lengths.tolist()
    assert cuts_differ > old.num_windows(window_bases)


def test_evaluation_scores_each_base_once(data: Path) -> None:
    permute_annotation(data, "patches", "control", seed=3)
    for name in ("patches", "control"):
        windows = EvaluationWindows(data / "validation", name, "forward", 512)
        bases = np.concatenate([windows[index].bases for index in range(len(windows))])
        np.testing.assert_array_equal(bases, stream_of(data / "validation", "forward"))


def files_of(data: Path, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(data.glob(f"*.{name}.*bin"))}


def test_a_seed_gives_one_order_for_each_split_and_strand(data: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        permute_annotation(data, "patches", name, seed)
    one, two, three = (files_of(data, name) for name in ("one", "two", "three"))
    assert len(one) == 4
    assert list(one.values()) == list(two.values())
    assert all(first != other for first, other in zip(one.values(), three.values(), strict=True))
    keys = {control._key(seed, split, strand) for seed in (3, 4) for split in SPLITS for strand in STRANDS}
    assert len(keys) == 8


def test_what_is_done_already_is_left(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = permute_annotation(data, "patches", "control", seed=3)
    with monkeypatch.context() as patched:
        patched.setattr(control, "permute_lengths", None)
        assert permute_annotation(data, "patches", "control", seed=3) == first
    data_path(data / "validation.control.reverse").unlink()
    assert permute_annotation(data, "patches", "control", seed=3) == first
    assert data_path(data / "validation.control.reverse").is_file()
    kept = files_of(data, "control")
    assert permute_annotation(data, "patches", "control", seed=4) != first
    assert files_of(data, "control") != kept
    # Boundaries that were found anew are permuted anew.
    annotate(data, calibrate_to={"mean_patch_bases": 6})
    again = permute_annotation(data, "patches", "control", seed=4)
    assert again["train"].statistics["forward"].mean_bases == pytest.approx(6, rel=0.1)


def test_the_manifest_tells_what_was_permuted(data: Path) -> None:
    manifest = permute_annotation(data, "patches", "control", seed=3)["train"]
    source = read_annotation_manifest(data / "train", "patches")
    assert manifest.rule == {
        "kind": "permuted",
        "annotation": "patches",
        "seed": 3,
        "sha256": {"forward": source.forward_sha256, "reverse": source.reverse_sha256},
        "rule": source.rule,
    }
    assert manifest.entropy_model is None
    assert manifest.data_sha256 == source.data_sha256


def test_splits_and_strands_are_those_of_the_source(data: Path) -> None:
    annotate(data, name="single", both_strands=False)
    (data / "validation.single.manifest.json").unlink()
    manifests = permute_annotation(data, "single", "control", seed=0)
    assert {split: list(manifest.statistics) for split, manifest in manifests.items()} == {"train": ["forward"]}


def test_mistakes_are_told(data: Path) -> None:
    with pytest.raises(DataError, match="no boundaries 'patchs' to permute: annotate the data"):
        permute_annotation(data, "patchs", "control", seed=0)
    with pytest.raises(DataError, match="name 'a/b': letters, digits"):
        permute_annotation(data, "patches", "a/b", seed=0)
    annotate(data, name="other")
    for name in ("patches", "other"):
        with pytest.raises(DataError, match=f"has boundaries '{name}' that are no permutation"):
            permute_annotation(data, "patches", name, seed=0)
    write_dataset(data / "validation", [random_genome(3000, seed=8)])
    with pytest.raises(
        DataError, match=r"belongs to other data than .*validation\.manifest\.json.*annotate the data again"
    ):
        permute_annotation(data, "patches", "control", seed=0)
    assert not files_of(data, "control")


def test_tool(data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "tools" / "permute_patches.py"
    spec = importlib.util.spec_from_file_location("tools_permute_patches", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, "argv", ["permute_patches.py", str(data), "--name", "control", "--seed", "3"])
    assert tool.main() == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["train"]["rule"]["seed"] == 3
    assert "histogram" not in printed["train"]["statistics"]["forward"]
    monkeypatch.setattr(sys, "argv", ["permute_patches.py", str(data), "--source", "none"])
    assert tool.main() == 1
    assert "no boundaries 'none' to permute" in capsys.readouterr().err
