"""Shards read end to end: windows are those of one dataset that holds the shards one after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.data import batches
from hyena_blt_savanna.data.batches import EvaluationWindows, TrainingSamples
from hyena_blt_savanna.data.boundaries import BoundaryReader, BoundaryWriter, write_annotation_manifest
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import STRANDS, read_manifest
from hyena_blt_savanna.data.shards import OpenShards, Shard, ShardList, ShardRing, ShardWindows
from hyena_blt_savanna.data.windows import Window, WindowReader
from hyena_blt_savanna.testing.toy_genomes import toy_documents, write_dataset, write_random_boundaries

WINDOW, LONGEST = 512, 16


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardList, Path]:
    """Five shards, one of them shorter than a window, and the path of the dataset of all their documents."""
    folder = tmp_path_factory.mktemp("source")
    shards, everything = [], []
    for number, mean_bases in enumerate((900, 60, 700, 1500, 20)):
        documents = toy_documents(seed=40 + number, num_documents=4, mean_bases=mean_bases)
        prefix = folder / f"train-{number:05d}"
        write_dataset(prefix, documents)
        write_random_boundaries(prefix, longest_patch_bases=LONGEST, seed=number)
        manifest = read_manifest(prefix)
        shards.append(Shard(prefix, manifest.num_bytes, manifest.num_documents))
        everything += documents
    assert min(shard.num_bytes for shard in shards) < WINDOW
    write_dataset(folder / "all", everything)
    writers = []
    for strand in STRANDS:
        with BoundaryWriter(folder / "all", "patches", strand, LONGEST) as writer:
            for shard in shards:
                writer.add(BoundaryReader(shard.prefix, strand=strand).patches(0, shard.num_bytes)[1])
        writers.append(writer)
    write_annotation_manifest(folder / "all", "patches", writers, {"kind": "random"})
    longest = dict.fromkeys(STRANDS, LONGEST)
    return ShardList(folder, tuple(shards), "patches", longest), folder / "all"


def assert_same(window: Window, other: Window) -> None:
    """Of all but the place in its stream."""
    assert np.array_equal(window.bases, other.bases)
    assert np.array_equal(window.patch_lengths, other.patch_lengths)
    assert window.num_cut_patches == other.num_cut_patches
    # Where shards meet there is a seam more, and every document begins with its tag there.
    is_tag, is_other_tag = (np.zeros(len(window.bases), dtype=bool) for _ in range(2))
    for one, marks in ((window, is_tag), (other, is_other_tag)):
        for piece, num_tag_bytes in one.pieces():
            marks[piece][:num_tag_bytes] = True
    starts = np.flatnonzero(is_other_tag)
    assert is_tag[starts].all()


class HalvesCutter:
    """Cuts what it is given in two, at a place that the key draws."""

    needs_entropies = False
    longest_patch_bases = WINDOW

    def cut(self, bases, entropies, num_leading_tag_bytes, key, progress):
        first = 1 + key[0] % max(1, len(bases) - 1)
        return np.array([length for length in (first, len(bases) - first) if length], dtype=np.int32)


@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize("max_patches", [None, 40])
def test_a_ring_of_shards_is_the_ring_of_the_whole(source, strand, max_patches):
    shards, whole = source
    ring = ShardRing(shards, strand, OpenShards())
    reader = WindowReader(whole, "patches", strand)
    assert ring.ring.num_bytes == reader.num_bytes
    num_seams = 0
    for offset in (0, 1, 300, WINDOW - 1):
        for index in range(-(-reader.num_bytes // WINDOW)):
            found = ring.ring_window(index, WINDOW, offset, max_patches)
            assert_same(found.read(), reader.ring_window(index, WINDOW, offset, max_patches).read())
            assert_same(found.read(3, 9), reader.ring_window(index, WINDOW, offset, max_patches).read(3, 9))
            num_seams += len(found.stretches) - 1
    assert num_seams >= 4 * len(shards.shards)


def test_windows_are_cut_anew_stretch_by_stretch(source):
    shards, whole = source
    ring, reader = ShardRing(shards, "reverse", OpenShards()), WindowReader(whole, "patches", "reverse")
    for index in range(-(-reader.num_bytes // WINDOW)):
        key = bytes([index]) * 64
        window, other = (one.cut_window(index, WINDOW, 100, HalvesCutter(), key, 1.0).read() for one in (ring, reader))
        assert np.array_equal(window.bases, other.bases)
        assert window.patch_lengths.sum() == WINDOW
        assert len(window.patch_lengths) == 2 * (1 + len(window.seams))


def test_validation_goes_through_shard_after_shard(source):
    shards, _ = source
    windows = ShardWindows(shards, WINDOW, OpenShards(most_bytes=1))
    expected = [
        window for shard in shards.shards for window in EvaluationWindows(shard.prefix, "patches", "forward", WINDOW)
    ]
    assert len(windows) == len(expected)
    for window, other in zip(windows, expected, strict=True):
        assert_same(window, other)
    with pytest.raises(IndexError):
        windows.find(len(windows))


def test_a_source_of_one_shard_is_a_dataset(source):
    shards, whole = source
    manifest = read_manifest(whole)
    alone = ShardList(
        whole.parent, (Shard(whole, manifest.num_bytes, manifest.num_documents),), "patches", shards.longest_patch_bases
    )
    samples = TrainingSamples(alone, seed=3, opened=OpenShards()), TrainingSamples(whole, seed=3)
    for index in range(2 * samples[0].num_windows(WINDOW)):
        window, other = (one.sample(1, WINDOW, index) for one in samples)
        assert_same(window, other)
        assert window.start == other.start


@pytest.mark.parametrize("pool_bases", [1, 3 * WINDOW, 1 << 36])
def test_an_epoch_has_every_window_once_in_pools_of_few_shards(source, monkeypatch, pool_bases):
    shards, _ = source
    monkeypatch.setattr(batches, "POOL_BASES", pool_bases)
    opened = OpenShards()
    samples = TrainingSamples(shards, seed=5, opened=opened)
    num_windows = samples.num_windows(WINDOW)
    pool_windows = 2 * max(1, pool_bases // WINDOW)
    for epoch in range(2):
        chosen = [samples._chosen(place, num_windows, WINDOW, 0, epoch) for place in range(num_windows)]
        assert sorted(chosen) == list(range(num_windows))
        assert [index // pool_windows for index in chosen] == [place // pool_windows for place in range(num_windows)]
        read = [samples.sample(0, WINDOW, epoch * num_windows + place) for place in range(num_windows)]
        # The grid moves, so that a little comes twice and the rest once.
        num_bases = sum(len(window.bases) for window in read)
        assert 2 * samples.num_bytes <= num_bases < 2 * (samples.num_bytes + WINDOW + 2 * LONGEST * len(shards.shards))
    orders = [
        [samples._chosen(place, num_windows, WINDOW, 0, epoch) for place in range(num_windows)] for epoch in (0, 1)
    ]
    assert orders[0] != orders[1] or pool_windows == 2
    if pool_windows == 6:
        first, second = orders[0][:6], [index - 6 for index in orders[0][6:12]]
        assert first != second


def test_the_shards_are_in_an_order_of_the_seed(source, monkeypatch):
    shards, _ = source
    monkeypatch.setattr(batches, "POOL_BASES", 1)
    opened = OpenShards()
    samples = [TrainingSamples(shards, seed=seed, opened=opened) for seed in range(9)]
    # Pools of one window come in the order of the ring.
    begun = {one.find(0, WINDOW, 0).stretches[0].strand.num_bytes for one in samples}
    assert len(begun) >= 3


def test_only_so_many_shards_are_open(source):
    shards, _ = source
    room_for_two = sum(sorted((1 << 20) + 8 * shard.num_documents for shard in shards.shards)[-2:])
    opened, everything = OpenShards(room_for_two), OpenShards()
    few, all_open = (TrainingSamples(shards, seed=2, opened=one) for one in (opened, everything))
    for index in range(few.num_windows(WINDOW)):
        assert_same(few.sample(0, WINDOW, index), all_open.sample(0, WINDOW, index))
        assert len(opened) <= 2
    assert len(everything) == len(shards.shards)
    # What was asked for last stays.
    first, second, third = shards.shards[:3]
    kept = opened.reader(first, "patches", "forward")
    opened.reader(second, "patches", "forward")
    assert opened.reader(first, "patches", "forward") is kept
    opened.reader(third, "patches", "forward")
    assert opened.reader(first, "patches", "forward") is kept


def test_a_source_shorter_than_a_window_is_refused(source):
    shards, _ = source
    samples = TrainingSamples(shards, opened=OpenShards())
    with pytest.raises(DataError, match=rf"{shards.path} has [\d,]+ bases, fewer than one window of 1,000,000"):
        samples.num_windows(1_000_000)
