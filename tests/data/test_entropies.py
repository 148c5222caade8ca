"""Entropies on a grid, stored beside the boundaries."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hyena_blt_savanna.data.batches import BatchLoader, TrainingSamples, collate
from hyena_blt_savanna.data.boundaries import BoundaryWriter, write_annotation_manifest
from hyena_blt_savanna.data.entropies import EntropyReader, EntropyWriter, entropies_prefix
from hyena_blt_savanna.data.entropy_grid import ENTROPY_STEP_NATS, on_grid
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.folds import LeftOut, stretches_without
from hyena_blt_savanna.data.indexed import IndexedReader, IndexedWriter, data_path
from hyena_blt_savanna.data.manifest import STRANDS, read_annotation_manifest
from hyena_blt_savanna.data.windows import Window, WindowReader
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset


def test_nearest_multiple_of_the_step() -> None:
    steps = np.array([0, 1, 22_713, 14_000])
    nats = on_grid((steps + np.array([0.0, 0.4, -0.4, 0.49])) * ENTROPY_STEP_NATS)
    assert nats.dtype == np.float32
    assert (nats.astype(np.float64) / ENTROPY_STEP_NATS == steps).all()


def test_sums_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    nats = on_grid(rng.uniform(0, np.log(4), 100_000))
    assert nats.sum(dtype=np.float64) == nats[rng.permutation(len(nats))].sum(dtype=np.float64)


@pytest.fixture
def annotated(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A dataset with random boundaries, and random entropies of both strands stored beside them."""
    prefix = tmp_path / "train"
    write_dataset(prefix, [random_genome(70_000, 1), random_genome(80_000, 2)])
    rng = np.random.default_rng(3)
    nats = {strand: on_grid(rng.uniform(0, np.log(4), 150_002)) for strand in STRANDS}
    writers, digests = [], {}
    for strand in STRANDS:
        with (
            BoundaryWriter(prefix, "patches", strand, 16) as boundaries,
            EntropyWriter(prefix, "patches", strand) as writer,
        ):
            boundaries.add(np.full(150_002 // 2, 2))
            for chunk in np.array_split(nats[strand], 7):
                writer.add(chunk)
        writers.append(boundaries)
        digests[strand] = writer.sha256
    write_annotation_manifest(prefix, "patches", writers, {"kind": "test"}, entropies_sha256=digests)
    return prefix, nats


def test_what_is_read_is_what_was_written(annotated: tuple[Path, dict[str, np.ndarray]]) -> None:
    prefix, nats = annotated
    for strand in STRANDS:
        reader = EntropyReader(prefix, "patches", strand)
        for start, stop in [(0, 150_002), (65_530, 65_540), (131_000, 131_073), (9, 9)]:
            found = reader.read(start, stop)
            assert found.dtype == np.float32
            assert np.array_equal(found, nats[strand][start:stop])


def test_a_digest_names_what_was_stored(annotated: tuple[Path, dict[str, np.ndarray]]) -> None:
    prefix, _ = annotated
    manifest = read_annotation_manifest(prefix, "patches")
    for strand in STRANDS:
        stored = data_path(entropies_prefix(prefix, "patches", strand)).read_bytes()
        assert hashlib.sha256(stored).hexdigest() == manifest.entropies_sha256[strand]


def test_too_few_entropies_leave_no_file(tmp_path: Path) -> None:
    write_dataset(tmp_path / "train", [random_genome(100, 1)])
    with (
        pytest.raises(DataError, match=r"100 entropies, but .* has 101 bases"),
        EntropyWriter(tmp_path / "train", "patches", "forward") as writer,
    ):
        writer.add(np.zeros(100, dtype=np.float32))
    assert not list(tmp_path.glob("*entropies*"))


def test_entropies_that_were_not_stored_are_missed_by_name(toy: Path) -> None:
    with pytest.raises(DataError, match=r"no stored entropies of the forward strand; annotate .* store_entropies=true"):
        EntropyReader(toy, "patches", "forward")


def test_entropies_of_other_data_are_refused(annotated: tuple[Path, dict[str, np.ndarray]]) -> None:
    prefix, _ = annotated
    for suffix in (".bin", ".idx"):
        (prefix.parent / f"train.patches.entropies{suffix}").unlink()
    with IndexedWriter(entropies_prefix(prefix, "patches", "forward"), np.uint16) as writer:
        writer.add(np.zeros(7, dtype=np.uint16))
    with pytest.raises(DataError, match=r"has 7 entropies, but .*train\.bin has 150,002 bases"):
        EntropyReader(prefix, "patches", "forward")


class Spy:
    """A cutter that makes patches of 5 and remembers what it was asked."""

    needs_entropies, longest_patch_bases = True, 5

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def cut(self, bases, entropies, num_leading_tag_bytes, key, progress):
        self.asked.append((bases, entropies, num_leading_tag_bytes, key, progress))
        return np.diff([*range(0, len(bases), 5), len(bases)]).astype(np.int32)


def test_windows_are_cut_anew_with_their_own_entropies(annotated: tuple[Path, dict[str, np.ndarray]]) -> None:
    prefix, nats = annotated
    cutter = Spy()
    samples = TrainingSamples(prefix, seed=4, cutter=cutter, window_patches=100)
    plain = TrainingSamples(prefix, None, seed=4)
    keys = set()
    for index in range(40):
        cutter.asked.clear()
        window, whole = samples.sample(0, 700, index, 0.25), plain.sample(0, 700, index)
        assert len(window.patch_lengths) == 100
        assert np.array_equal(window.bases, whole.bases[: len(window.bases)])
        assert np.array_equal(np.concatenate([bases for bases, *_ in cutter.asked]), whole.bases)
        places = (whole.start + np.arange(700)) % len(nats["forward"])
        found = np.concatenate([entropies for _, entropies, *_ in cutter.asked])
        assert [np.array_equal(found, nats[strand][places]) for strand in STRANDS].count(True) == 1
        assert {(num_tag, progress) for _, _, num_tag, _, progress in cutter.asked} == {(0, 0.25)}
        keys |= {key for *_, key, _ in cutter.asked}
        assert window.num_cut_patches in (40, 41)
    assert len(keys) == 40


def test_the_share_of_training_behind_a_step_reaches_the_cutter(annotated: tuple[Path, dict[str, np.ndarray]]) -> None:
    cutter = Spy()
    samples = TrainingSamples(annotated[0], cutter=cutter)
    with BatchLoader(samples, 0, 700, 2, start_step=3, progress_of=lambda step: step / 10) as loader:
        for _ in range(4):
            next(loader)
    assert [entry[4] for entry in cutter.asked][:4] == [0.3, 0.3, 0.4, 0.4]


@pytest.mark.parametrize("cutter", [None, Spy()])
@pytest.mark.parametrize("left_out", [None, LeftOut(fold=1, folds=3)])
def test_a_window_holds_the_entropies_of_its_bases(
    annotated: tuple[Path, dict[str, np.ndarray]], cutter: Spy | None, left_out: LeftOut | None
) -> None:
    """Base by base, on both strands, across the seams of the ring too, where patches are cut off, and cut anew."""
    prefix, nats = annotated
    settings = {"seed": 4, "cutter": cutter, "left_out": left_out, "window_patches": 200}
    samples, without = TrainingSamples(prefix, with_entropies=True, **settings), TrainingSamples(prefix, **settings)
    streams = {strand: WindowReader(prefix, None, strand).find(0, 150_002).read().bases for strand in STRANDS}
    kept = {strand: [*range(150_002)] for strand in STRANDS}
    if left_out is not None:
        reader = IndexedReader(prefix)
        # Stored patches start at even places: half of one before the first is nobody's.
        step = 2 if cutter is None else 1
        stretches = {strand: stretches_without(reader, strand, left_out) for strand in STRANDS}
        kept = {
            strand: [t for start, stop in stretches[strand] for t in range(start + start % step, stop)]
            for strand in STRANDS
        }
    rings = {strand: np.array(places) for strand, places in kept.items()}
    found_on, num_across_seams = set(), 0
    num_windows = samples.num_windows(700)
    for index in range(num_windows):
        window = samples.sample(0, 700, index)
        num_bases = len(window.bases)
        assert window.entropies is not None
        assert window.entropies.dtype == np.float32
        assert len(window.entropies) == num_bases
        for strand in STRANDS:
            ring = rings[strand]
            first = np.flatnonzero(ring == window.start)
            places = ring[(first[0] + np.arange(num_bases)) % len(ring)] if len(first) else np.zeros(0, dtype=int)
            if np.array_equal(streams[strand][places], window.bases):
                assert np.array_equal(window.entropies, nats[strand][places])
                found_on.add(strand)
                num_across_seams += bool((np.diff(places) != 1).any())
                break
        else:
            raise AssertionError(f"window {index} is none of the ring's")
        plain = without.sample(0, 700, index)
        assert plain.entropies is None
        assert np.array_equal(plain.bases, window.bases)
        assert np.array_equal(plain.patch_lengths, window.patch_lengths)
    assert found_on == set(STRANDS)
    assert num_across_seams >= 2


def test_entropies_stand_where_their_bases_do_in_a_batch() -> None:
    windows = [
        Window(np.frombuffer(text, dtype=np.uint8), np.array([len(text)], dtype=np.int32), 0, entropies=nats)
        for text, nats in [(b"ACG", np.float32([1.0, 0.5, 0.25])), (b"A", np.float32([0.125]))]
    ]
    batch = collate(windows, pad_bases_to=5)
    assert batch.entropies is not None
    assert batch.entropies.dtype == torch.float32
    assert batch.entropies.tolist() == [[0, 1.0, 0.5, 0.25, 0], [0, 0.125, 0, 0, 0]]
    assert (batch.entropies[batch.loss_weights == 0] == 0).all()
    assert torch.equal(batch.to("cpu").entropies, batch.entropies)
    bare = collate([replace(window, entropies=None) for window in windows])
    assert bare.entropies is None
    assert bare.to("cpu").entropies is None


def test_a_loader_gives_entropies_where_they_are_asked_for(annotated: tuple[Path, dict[str, np.ndarray]]) -> None:
    for with_entropies in (True, False):
        samples = TrainingSamples(annotated[0], with_entropies=with_entropies)
        with BatchLoader(samples, 0, 700, 2, micro_batch_windows=2) as loader:
            assert (next(loader).entropies is not None) == with_entropies


def test_windows_can_not_hold_entropies_that_were_not_stored(toy: Path) -> None:
    with pytest.raises(DataError, match=r"no stored entropies .* annotate the data again with store_entropies=true"):
        TrainingSamples(toy, with_entropies=True)
