"""Strands and windows against whole streams built document by document."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.data.weights import loss_weights
from hyena_blt_savanna.data.windows import WindowReader
from hyena_blt_savanna.nucleotides import reverse_complement_document, tag_length
from hyena_blt_savanna.testing.toy_genomes import (
    random_genome,
    random_patches,
    write_dataset,
    write_random_boundaries,
)

STRANDS = ["forward", "reverse"]
LONGEST_PATCH = 16


@pytest.fixture(scope="module")
def streams(toy):
    reader = IndexedReader(toy)
    reverse = [reverse_complement_document(reader.document(i)) for i in range(len(reader))]
    return {"forward": np.array(reader.stream), "reverse": np.concatenate(reverse)}


@pytest.fixture(scope="module")
def patches(streams):
    return {name: random_patches(streams[name], LONGEST_PATCH, seed) for seed, name in enumerate(STRANDS)}


@pytest.fixture(scope="module")
def readers(toy):
    return {name: WindowReader(toy, "patches", name) for name in STRANDS}


@pytest.mark.parametrize("strand", STRANDS)
def test_slices_of_a_strand(toy, streams, strand):
    reader = StrandReader(IndexedReader(toy), strand)
    stream = streams[strand]
    rng = np.random.default_rng(0)
    edges = np.sort(rng.integers(0, len(stream) + 1, size=(300, 2)))
    short = rng.integers(0, len(stream) - 40, size=300)
    borders = reader.document_starts[:-1]
    for start, stop in [*edges, *zip(short, short + 40, strict=True), *zip(borders, borders + 1, strict=True)]:
        assert np.array_equal(reader.read(int(start), int(stop)), stream[start:stop])
    assert np.array_equal(reader.read(0, len(stream)), stream)


def test_the_reverse_strand_reads_only_what_it_mirrors(toy, streams):
    reader = StrandReader(IndexedReader(toy), "reverse")
    begin, end = (int(reader.document_starts[i]) for i in (0, 1))
    assert tag_length(reader._stream[begin:end]) == 0
    start, stop = begin + 100, begin + 200
    mirrored = slice(begin + end - 1 - stop, begin + end - 1 - start)
    hidden = np.full_like(reader._stream, ord("A"))
    hidden[mirrored] = reader._stream[mirrored]
    hidden[end - 1] = 0
    reader._stream = hidden
    assert np.array_equal(reader.read(start, stop), streams["reverse"][start:stop])


@pytest.mark.parametrize("strand", STRANDS)
def test_tags_are_known_from_inside(toy, streams, strand):
    reader = StrandReader(IndexedReader(toy), strand)
    for begin, end in itertools.pairwise(reader.document_starts):
        length = tag_length(streams[strand][begin:end])
        for inside in range(length):
            assert reader.tag_bytes_at(begin + inside) == length - inside
        assert reader.tag_bytes_at(begin + length) == 0
    assert reader.tag_bytes_at(reader.num_bytes) == 0


@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize(("window_bases", "offset"), [(16, 0), (1000, 0), (1000, 999), (65_536, 1), (10**9, 0)])
def test_windows_cover_the_stream_once(readers, streams, patches, strand, window_bases, offset):
    reader = readers[strand]
    first = -1 if offset else 0
    windows = [
        reader.window(k, window_bases, offset).read() for k in range(first, reader.num_windows(window_bases, offset))
    ]
    assert np.array_equal(np.concatenate([window.bases for window in windows]), streams[strand])
    assert np.array_equal(np.concatenate([window.patch_lengths for window in windows]), patches[strand])
    for k, window in enumerate(windows, start=first):
        assert window.bases.dtype == np.uint8
        assert window.patch_lengths.dtype == np.int32
        assert len(window.bases) == window.patch_lengths.sum() <= window_bases + LONGEST_PATCH - 1
        starts = window.start + np.cumsum(window.patch_lengths) - window.patch_lengths
        assert starts[0] >= offset + k * window_bases
        assert starts[-1] < offset + (k + 1) * window_bases
    beyond = reader.window(reader.num_windows(window_bases, offset), window_bases, offset).read()
    assert len(beyond.bases) == len(beyond.patch_lengths) == 0


@given(st.data())
def test_ring_windows(readers, streams, patches, data):
    strand = data.draw(st.sampled_from(STRANDS))
    reader, stream, lengths = readers[strand], streams[strand], patches[strand]
    window_bases = data.draw(st.sampled_from([LONGEST_PATCH, 777, 8192, len(stream) - 1, len(stream)]))
    offset = data.draw(st.integers(0, window_bases - 1))
    num_windows = -(-len(stream) // window_bases)
    near_the_seam = st.integers(max(0, num_windows - 3), num_windows - 1)
    index = data.draw(st.integers(0, num_windows - 1) | near_the_seam)
    # Unrolled: the ring read three times over.
    ends = np.cumsum(np.tile(lengths, 3))
    starts = ends - np.tile(lengths, 3)
    inside = (starts >= offset + index * window_bases) & (starts < offset + (index + 1) * window_bases)
    window = reader.ring_window(index, window_bases, offset).read()
    assert np.array_equal(window.patch_lengths, np.tile(lengths, 3)[inside])
    begin, end = int(starts[inside][0]), int(ends[inside][-1])
    assert np.array_equal(window.bases, np.take(stream, np.arange(begin, end), mode="wrap"))
    assert window.start == begin % len(stream)
    max_patches = data.draw(st.integers(0, len(window.patch_lengths) + 2))
    cut = reader.ring_window(index, window_bases, offset, max_patches).read()
    assert np.array_equal(cut.patch_lengths, window.patch_lengths[:max_patches])
    assert np.array_equal(cut.bases, window.bases[: cut.patch_lengths.sum()])
    assert cut.num_cut_patches == max(0, len(window.patch_lengths) - max_patches)


@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize(("window_bases", "offset"), [(1000, 0), (1000, 617), (9999, 5000)])
def test_the_ring_covers_every_base(readers, streams, strand, window_bases, offset):
    num_bases = len(streams[strand])
    seen = np.zeros(num_bases, dtype=np.int64)
    for index in range(-(-num_bases // window_bases)):
        window = readers[strand].ring_window(index, window_bases, offset).read()
        np.add.at(seen, (window.start + np.arange(len(window.bases))) % num_bases, 1)
    assert seen.min() == 1
    assert seen.max() <= 2
    assert (seen == 2).sum() < window_bases + LONGEST_PATCH


def weights_by_document(document, repeat_weight):
    """The plainest statement of what counts."""
    tag = tag_length(document)
    values = {ord(c): 1.0 for c in "ACGT\0"} | {ord(c): repeat_weight for c in "acgt"}
    return [0.0 if i < tag else values.get(int(byte), 0.0) for i, byte in enumerate(document)]


@pytest.mark.parametrize("strand", STRANDS)
@pytest.mark.parametrize("repeat_weight", [1.0, 0.1, 0.0])
def test_weights_do_not_depend_on_where_a_window_is_cut(readers, streams, strand, repeat_weight):
    reader, stream = readers[strand], streams[strand]
    starts = reader.bases.document_starts
    expected = np.concatenate(
        [weights_by_document(stream[a:b], repeat_weight) for a, b in itertools.pairwise(starts)]
    ).astype(np.float32)
    for window_bases, offset in [(16, 0), (23, 7), (5000, 1234)]:
        for index in range(-1, reader.num_windows(window_bases, offset)):
            window = reader.window(index, window_bases, offset).read()
            weights = loss_weights(window.bases, repeat_weight, window.num_leading_tag_bytes)
            assert weights.dtype == np.float32
            assert np.array_equal(weights, expected[window.start : window.start + len(window.bases)])
    offset = (len(stream) - 2500) % 5000
    ring = reader.ring_window((len(stream) - 2500) // 5000, 5000, offset).read()
    places = (ring.start + np.arange(len(ring.bases))) % len(stream)
    assert places[0] > places[-1]
    assert np.array_equal(loss_weights(ring.bases, repeat_weight, ring.num_leading_tag_bytes), expected[places])


def test_data_that_shrank_under_its_manifest(tmp_path):
    prefix = tmp_path / "train"
    write_dataset(prefix, [random_genome(999)])
    write_random_boundaries(prefix)
    manifest = (tmp_path / "train.manifest.json").read_text()
    write_dataset(prefix, [random_genome(500)])
    (tmp_path / "train.manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=r"train\.bin has 501 bytes, but .*train\.patches\.bin describes 1,000"):
        WindowReader(prefix)
