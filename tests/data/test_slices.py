"""Slices that are read alone against slices of whole windows, and what is read of the disk for them."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna.data.batches import Batch, BatchLoader, EvaluationWindows, TrainingSamples, collate, read_batch
from hyena_blt_savanna.data.boundaries import BoundaryWriter, write_annotation_manifest
from hyena_blt_savanna.data.entropies import EntropyReader, EntropyWriter
from hyena_blt_savanna.data.entropy_grid import on_grid
from hyena_blt_savanna.data.folds import LeftOut
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import STRANDS, Strand
from hyena_blt_savanna.data.slices import read_slices, slice_batch
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.data.windows import FoundWindow
from hyena_blt_savanna.nucleotides import tag_length
from hyena_blt_savanna.testing.toy_genomes import random_patches, toy_documents, write_dataset

LONGEST = 12
WINDOW = 150


class Sevens:
    """A cutter that makes patches of 7 or less."""

    needs_entropies, longest_patch_bases = True, 7

    def cut(self, bases, entropies, num_leading_tag_bytes, key, progress):
        assert len(bases) == len(entropies)
        return np.diff([*range(0, len(bases), 7), len(bases)]).astype(np.int32)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that begins with a tag, with random boundaries and entropies of both strands."""
    prefix = tmp_path_factory.mktemp("slices") / "train"
    write_dataset(prefix, toy_documents(4, 9, 400)[1:])
    reader = IndexedReader(prefix)
    rng = np.random.default_rng(3)
    writers, digests = [], {}
    for seed, strand in enumerate(STRANDS):
        stream = StrandReader(reader, strand).read(0, len(reader.stream))
        with (
            BoundaryWriter(prefix, "patches", strand, LONGEST) as boundaries,
            EntropyWriter(prefix, "patches", strand) as entropies,
        ):
            boundaries.add(random_patches(stream, LONGEST, seed))
            entropies.add(on_grid(rng.uniform(0, np.log(4), len(stream))))
        writers.append(boundaries)
        digests[strand] = entropies.sha256
    write_annotation_manifest(prefix, "patches", writers, {"kind": "test"}, entropies_sha256=digests)
    return prefix


SOURCES: dict[str, dict[str, Any]] = {
    "stored": {},
    "without entropies": {"with_entropies": False},
    "single bases": {"annotation": None, "with_entropies": False},
    "few patches": {"window_patches": 9},
    "cut anew": {"cutter": Sevens(), "window_patches": 20},
    "first fold left out": {"left_out": LeftOut(fold=0, folds=5)},
    "a fold left out": {"left_out": LeftOut(fold=3, folds=7)},
    "last fold left out": {"left_out": LeftOut(fold=2, folds=3), "cutter": Sevens()},
}


@pytest.fixture(scope="module")
def sources(prefix: Path) -> dict[str, TrainingSamples]:
    return {
        name: TrainingSamples(prefix, seed=7, **{"with_entropies": True, **fields}) for name, fields in SOURCES.items()
    }


def differences(found: Batch, wanted: Batch) -> list[str]:
    """Fields in which two batches differ, by a bit or by their type."""
    names = []
    for field in fields(Batch):
        a, b = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(b, torch.Tensor):
            same = isinstance(a, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        else:
            same = type(a) is type(b) and a == b
        names += [] if same else [field.name]
    return names


@given(st.data())
def test_slices_are_those_of_whole_windows(sources: dict[str, TrainingSamples], data: st.DataObject) -> None:
    samples = sources[data.draw(st.sampled_from(list(SOURCES)))]
    num_windows = samples.num_windows(WINDOW)
    indices = data.draw(st.lists(st.integers(0, 2 * num_windows - 1), min_size=1, max_size=3))
    num_ranks = data.draw(st.sampled_from([1, 2, 3, 4, 8, 40]))
    num_left = data.draw(st.sampled_from([0, 1, 5, 1000]))
    windows = [samples.find(0, WINDOW, index) for index in indices]
    whole = collate([samples.sample(0, WINDOW, index) for index in indices], 0.25)
    num_patches = None
    if (spare := data.draw(st.sampled_from([None, 0, 1, 30]))) is not None:
        # As many as somebody wants, behind all slices.
        num_patches = whole.patch_lengths.shape[1] + spare
        whole = replace(whole, patch_lengths=torch.nn.functional.pad(whole.patch_lengths, (0, spare)))
    for rank in range(num_ranks):
        found = read_slices(windows, 0.25, rank, num_ranks, num_left, num_patches)
        assert differences(found, slice_batch(whole, rank, num_ranks, num_left)) == []


def test_windows_of_evaluation_have_slices_too(prefix: Path) -> None:
    windows = EvaluationWindows(prefix, "patches", "reverse", WINDOW)
    # The last one is short: its slices are empty on most ranks.
    chosen = [0, 3, len(windows) - 1]
    assert len(windows[chosen[-1]].patch_lengths) < 8
    whole = collate([windows[index] for index in chosen])
    for rank in range(4):
        found = read_slices([windows.find(index) for index in chosen], 1.0, rank, 4, 3)
        assert differences(found, slice_batch(whole, rank, 4, 3)) == []


def test_a_loader_reads_what_it_is_told_to(sources: dict[str, TrainingSamples]) -> None:
    samples = sources["stored"]

    def load(**how: Any) -> list[Batch]:
        with BatchLoader(samples, 1, WINDOW, 4, micro_batch_windows=2, start_step=3, **how) as loader:
            return [next(loader) for _ in range(4)]

    for whole, found in zip(load(), load(batch_of=lambda windows: read_slices(windows, 1.0, 1, 2, 4)), strict=True):
        assert differences(found, slice_batch(whole, 1, 2, 4)) == []


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[int, int]]]:
    """[start, stop) of all bases and of all entropies that are read from here on."""
    found: dict[str, list[tuple[int, int]]] = {"bases": [], "entropies": []}

    def watch(reader: type, name: str) -> None:
        read = reader.read

        def watched(self: Any, start: int, stop: int) -> Any:
            found[name].append((start, stop))
            return read(self, start, stop)

        monkeypatch.setattr(reader, "read", watched)

    watch(StrandReader, "bases")
    watch(EntropyReader, "entropies")
    return found


@pytest.mark.parametrize("name", ["stored", "a fold left out", "single bases"])
def test_a_rank_reads_its_slice_and_no_more(
    sources: dict[str, TrainingSamples], spans: dict[str, list[tuple[int, int]]], name: str
) -> None:
    num_ranks, num_left = 4, 2
    samples = sources[name]
    num_own = 0
    for index in range(12):
        windows = [samples.find(0, WINDOW, index), samples.find(0, WINDOW, index + 12)]
        assert not spans["bases"]
        assert not spans["entropies"]
        for rank in range(num_ranks):
            batch = read_slices(windows, 1.0, rank, num_ranks, num_left)
            # The byte in front is in no file.
            num_read = int(batch.patch_lengths.sum()) - (2 if rank == 0 else 0)
            assert sum(stop - start for start, stop in spans["bases"]) == num_read
            if batch.entropies is not None:
                assert spans["entropies"] == spans["bases"]
            num_own += batch.num_bases
            spans["bases"].clear()
            spans["entropies"].clear()
        num_own -= sum(int(window.patch_lengths.sum()) for window in windows)
    # All ranks together have each base once, besides the patches on the left.
    assert num_own == 0


@pytest.mark.parametrize("strand", STRANDS)
def test_tags_do_not_count_across_seams(prefix: Path, strand: Strand) -> None:
    """A fold that is left out may end within a tag, and the ring goes on with the tag of the first document."""
    reader = IndexedReader(prefix)
    stream = StrandReader(reader, strand).read(0, len(reader.stream))
    counts = np.isin(stream, np.frombuffer(b"ACGTacgt\0", dtype=np.uint8))
    for start, stop in itertools.pairwise(reader.document_starts):
        counts[start : start + tag_length(stream[start:stop])] = False
    num_tags_behind_seams = 0
    for folds in (2, 3, 7, 20, 50):
        for fold in range(folds):
            left_out = LeftOut(fold=fold, folds=folds)
            samples = TrainingSamples(prefix, left_out=left_out, strands="both")
            found = samples._readers[STRANDS.index(strand)]
            for index in range(-(-found.ring.num_bytes // WINDOW)):
                window = found.ring_window(index, WINDOW, 5)
                wanted = np.concatenate([counts[places] for places in places_of(window)])
                assert (read_batch([window]).loss_weights[0, 1:].numpy() == wanted).all()
                num_tags_behind_seams += sum(seam.num_tag_bytes > 0 for seam in window.read().seams)
    assert num_tags_behind_seams > 10


def places_of(window: FoundWindow) -> list[slice]:
    """Where the bases of a window are in their stream."""
    return [slice(found.start, found.start + int(found.patch_lengths.sum())) for found in window.stretches]
