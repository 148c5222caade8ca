"""Folds left out of training, on both strands."""

import itertools

import numpy as np
import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.batches import TrainingSamples
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.data.folds import LeftOut, stretches_without
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import STRANDS
from hyena_blt_savanna.data.windows import WindowReader
from hyena_blt_savanna.nucleotides import tag_length


def forward_positions(reader: IndexedReader, strand: str) -> np.ndarray:
    """For each byte of a strand, the byte of the forward stream that it is, by reversing documents."""
    positions = np.arange(len(reader.stream))
    if strand == "reverse":
        for index in range(reader.num_documents):
            start, stop = (int(edge) for edge in reader.document_starts[index : index + 2])
            body = slice(start + tag_length(reader.stream[start:stop]), stop - 1)
            positions[body] = positions[body][::-1]
    return positions


@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize("folds", [2, 3, 7])
def test_what_is_kept_is_what_is_not_left_out(toy, strand, folds):
    reader = IndexedReader(toy)
    fold_of = (
        np.searchsorted(fold_edges(len(reader.stream), folds), forward_positions(reader, strand), side="right") - 1
    )
    for fold in range(folds):
        kept = np.zeros(len(fold_of), dtype=bool)
        stretches = stretches_without(reader, strand, LeftOut(fold=fold, folds=folds))
        assert all(a[1] < b[0] for a, b in itertools.pairwise(stretches))
        for start, stop in stretches:
            kept[start:stop] = True
        lost = (fold_of != fold) & ~kept
        assert not kept[fold_of == fold].any()
        # Only the rest of a tag that a border cuts through is lost.
        assert lost.sum() < 40 * folds


@pytest.mark.parametrize("annotation", ["patches", None])
def test_an_epoch_reads_all_but_the_fold_on_both_strands(toy, annotation):
    left_out, window = LeftOut(fold=1, folds=3), 700
    reader = IndexedReader(toy)
    samples = TrainingSamples(toy, annotation, left_out=left_out)
    seen = {strand: np.zeros(len(reader.stream), dtype=int) for strand in STRANDS}
    readers = dict(zip(STRANDS, samples._readers, strict=True))
    for index in range(-(-samples.num_bytes // window)):
        for strand, windows in readers.items():
            for start, stop, _ in windows.ring.pieces(5 + index * window, window):
                seen[strand][start:stop] += 1
            found = windows.ring_window(index, window, 5).read()
            assert found.patch_lengths.sum() == len(found.bases)
            assert found.patch_lengths.min() >= 1
            if annotation is None:
                assert len(found.bases) == window == len(found.patch_lengths)
    for strand, counts in seen.items():
        kept = np.zeros(len(counts), dtype=bool)
        for start, stop in stretches_without(reader, strand, left_out):
            kept[start:stop] = True
        assert (counts[kept] >= 1).all()
        assert not counts[~kept].any()
        assert counts.sum() < kept.sum() + 2 * window


@pytest.mark.parametrize("strand", STRANDS)
def test_a_patch_ends_where_the_fold_that_is_left_out_begins(toy, strand):
    left_out, window = LeftOut(fold=1, folds=3), 700
    reader = IndexedReader(toy)
    kept = np.zeros(len(reader.stream), dtype=bool)
    for start, stop in stretches_without(reader, strand, left_out):
        kept[start:stop] = True
    windows = WindowReader(toy, "patches", strand, reader, left_out)
    stream = windows.bases.read(0, len(kept))
    starts = windows.boundaries.patch_starts(0, len(kept))
    patch_of = np.searchsorted(starts, np.arange(len(kept)), side="right") - 1
    num_ended_early = 0
    for index in range(-(-windows.ring.num_bytes // window)):
        places = []
        for start, stop, _ in windows.ring.pieces(5 + index * window, window):
            begun = (starts[patch_of] >= start) & (starts[patch_of] < stop)
            places.append(np.flatnonzero(begun & kept))
            num_ended_early += int((begun & ~kept).any())
        found = windows.ring_window(index, window, 5).read()
        assert np.array_equal(found.bases, stream[np.concatenate(places)])
        assert found.patch_lengths.sum() == len(found.bases)
    assert num_ended_early > 0


def test_a_fold_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="give at most 2"):
        LeftOut.parse({"fold": 3, "folds": 3})
