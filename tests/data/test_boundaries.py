"""Boundary files against plain patch lists."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna.data import boundaries
from hyena_blt_savanna.data.boundaries import (
    BLOCK_BASES,
    BoundaryReader,
    BoundaryWriter,
    boundary_dtype,
    boundary_prefix,
    write_annotation_manifest,
)
from hyena_blt_savanna.data.entropy_model_description import EntropyModelDescription
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader, data_path
from hyena_blt_savanna.testing.toy_genomes import random_genome, random_patches, write_dataset, write_random_boundaries


def annotate(prefix, lengths, longest, chunk=None):
    with BoundaryWriter(prefix, "patches", "forward", longest) as writer:
        for start in range(0, len(lengths), chunk or len(lengths)):
            writer.add(lengths[start : start + (chunk or len(lengths))])
    return write_annotation_manifest(prefix, "patches", [writer], {"kind": "test"})


def lengths_up_to(num_bases, longest, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, size=2 * num_bases // longest + 10)
    ends = np.cumsum(lengths)
    lengths = lengths[: np.searchsorted(ends, num_bases) + 1]
    lengths[-1] -= lengths.sum() - num_bases
    assert lengths.sum() == num_bases
    return lengths


def reference_items(lengths, num_bases):
    """The blocks, from the definition."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    items = []
    for begin in range(0, num_bases, BLOCK_BASES):
        after = [*starts[starts >= begin], num_bases]
        inside = lengths[(starts >= begin) & (starts < begin + BLOCK_BASES)]
        items.append([after[0] - begin, *inside])
    return items


@pytest.mark.parametrize(
    ("num_bases", "longest", "dtype"),
    [
        (1, 1, np.uint8),
        (BLOCK_BASES - 1, 16, np.uint8),
        (BLOCK_BASES, 255, np.uint8),
        (BLOCK_BASES + 1, 255, np.uint8),
        (3 * BLOCK_BASES, 256, np.uint16),
        (5 * BLOCK_BASES + 77, 65_535, np.uint16),
        (7 * BLOCK_BASES + 5, 3 * BLOCK_BASES, np.int32),
    ],
)
@pytest.mark.parametrize("chunk", [None, 1000])
def test_file_and_reader_follow_the_definition(tmp_path, num_bases, longest, dtype, chunk):
    prefix = tmp_path / "train"
    write_dataset(prefix, [random_genome(num_bases - 1)])
    lengths = lengths_up_to(num_bases, longest)
    manifest = annotate(prefix, lengths, longest, chunk)
    items = IndexedReader(boundary_prefix(prefix, "patches", "forward"))
    assert items.stream.dtype == dtype
    assert manifest.dtype == np.dtype(dtype).name
    assert [items.document(i).tolist() for i in range(len(items))] == reference_items(lengths, num_bases)

    reader = BoundaryReader(prefix)
    starts = np.cumsum(lengths) - lengths
    assert np.array_equal(reader.patch_starts(0, num_bases), starts)
    assert reader.last_start == starts[-1]
    rng = np.random.default_rng(1)
    edges = rng.integers(0, num_bases + 1, size=(60, 2))
    for start, stop in [*np.sort(edges), (0, num_bases + 999), (num_bases, num_bases + 1), (5, 5)]:
        inside = (starts >= start) & (starts < stop)
        first, found = reader.patches(int(start), int(stop))
        assert found.dtype == np.int32
        assert np.array_equal(found, lengths[inside])
        if inside.any():
            assert first == starts[inside][0]
        assert reader.next_start(int(start)) == min([*starts[starts >= start], num_bases])


@given(st.data())
def test_any_chunking_gives_the_same_file(tmp_path_factory, data):
    num_bases = data.draw(st.integers(1, 500))
    longest = data.draw(st.integers(1, 70))
    block = data.draw(st.integers(1, 50))
    lengths = lengths_up_to(num_bases, longest, data.draw(st.integers(0, 9)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(lengths)), max_size=8)))
    prefix = tmp_path_factory.mktemp("chunks") / "train"
    write_dataset(prefix, [random_genome(num_bases - 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boundaries, "BLOCK_BASES", block)
        with BoundaryWriter(prefix, "patches", "forward", longest) as writer:
            for piece in np.split(lengths, cuts):
                writer.add(piece)
                assert writer.position <= num_bases
    items = IndexedReader(boundary_prefix(prefix, "patches", "forward"))
    starts = np.cumsum(lengths) - lengths
    for number in range(len(items)):
        begin = number * block
        inside = (starts >= begin) & (starts < begin + block)
        expected = [min([*starts[starts >= begin], num_bases]) - begin, *lengths[inside]]
        assert items.document(number).tolist() == expected
    assert len(items) == -(-num_bases // block)


def test_reading_touches_only_its_own_blocks(tmp_path):
    prefix = tmp_path / "train"
    num_bases = 6 * BLOCK_BASES
    write_dataset(prefix, [random_genome(num_bases - 1)])
    lengths = lengths_up_to(num_bases, 200)
    annotate(prefix, lengths, 200)
    reader = BoundaryReader(prefix)
    expected = reader.patches(2 * BLOCK_BASES + 10, 4 * BLOCK_BASES)
    values = np.zeros_like(reader._values)
    own = slice(reader._starts[2], reader._starts[4])
    values[own] = reader._values[own]
    reader._values = values
    first, found = reader.patches(2 * BLOCK_BASES + 10, 4 * BLOCK_BASES)
    assert first == expected[0]
    assert np.array_equal(found, expected[1])


@pytest.mark.parametrize(("longest", "name"), [(255, "uint8"), (256, "uint16"), (65_535, "uint16"), (65_536, "int32")])
def test_narrowest_type(longest, name):
    assert boundary_dtype(longest).name == name


def test_a_patch_that_no_type_holds():
    with pytest.raises(DataError, match="2,147,483,648 bases"):
        boundary_dtype(2**31)


def test_statistics_and_manifest(tmp_path):
    prefix = tmp_path / "train"
    data = write_dataset(prefix, [random_genome(9)])
    with BoundaryWriter(prefix, "patches", "forward", 4) as writer:
        writer.add(np.array([1, 4, 4]))
        writer.add(np.array([1]))
    model = EntropyModelDescription(kind="ngram", digest="abc", context_bases=8)
    written = write_annotation_manifest(prefix, "patches", [writer], {"kind": "budget"}, {"mean": 2.5}, model)
    manifest = BoundaryReader(prefix).manifest
    assert manifest == written
    assert manifest.statistics["forward"].to_dict() == {
        "num_patches": 4,
        "mean_bases": 2.5,
        "min_bases": 1,
        "max_bases": 4,
        "histogram": {"1": 2, "4": 2},
    }
    assert (manifest.data_sha256, manifest.data_num_bytes) == (data.data_sha256, 10)
    assert manifest.entropy_model == model
    assert manifest.reverse_sha256 is None


class TestWriterRefuses:
    @pytest.fixture
    def prefix(self, tmp_path):
        write_dataset(tmp_path / "train", [random_genome(99)])
        return tmp_path / "train"

    @pytest.mark.parametrize(
        ("lengths", "says"),
        [
            ([50, 0, 50], "patches of 0 to 50"),
            ([50, 51], "1 to 50 are allowed"),
            ([50, 50, 1], "reach base 101"),
            ([50, 49], "cover 99 bases"),
        ],
    )
    def test_lengths(self, prefix, lengths, says):
        before = sorted(path.name for path in prefix.parent.iterdir())
        with pytest.raises(DataError, match=says), BoundaryWriter(prefix, "patches", "forward", 50) as writer:
            writer.add(np.array(lengths))
        assert sorted(path.name for path in prefix.parent.iterdir()) == before

    def test_data_without_a_manifest(self, prefix):
        (prefix.parent / "train.manifest.json").unlink()
        with pytest.raises(DataError, match=r"train\.manifest\.json: no such file"):
            BoundaryWriter(prefix, "patches", "forward", 50)

    def test_an_annotation_in_the_making_has_no_manifest(self, prefix):
        write_random_boundaries(prefix)
        with pytest.raises(KeyError), BoundaryWriter(prefix, "patches", "forward", 50):
            raise KeyError
        with pytest.raises(DataError, match=r"patches\.manifest\.json: no such file"):
            BoundaryReader(prefix)


class TestReaderRefuses:
    @pytest.fixture
    def prefix(self, tmp_path):
        write_dataset(tmp_path / "train", [random_genome(999)])
        write_random_boundaries(tmp_path / "train")
        return tmp_path / "train"

    def test_other_data_of_the_same_length(self, prefix):
        write_dataset(prefix, [random_genome(999, seed=5)])
        with pytest.raises(DataError) as caught:
            BoundaryReader(prefix)
        message = str(caught.value)
        assert "train.patches.manifest.json belongs to other data than" in message
        assert "train.manifest.json" in message
        assert "data_sha256" in message
        assert "num_bytes" not in message

    def test_other_data_of_another_length(self, prefix):
        write_dataset(prefix, [random_genome(500)])
        with pytest.raises(DataError, match="num_bytes 501 in the data, 1000 in the boundaries"):
            BoundaryReader(prefix)

    def test_a_strand_that_was_not_annotated(self, prefix):
        stream = IndexedReader(prefix).stream
        with BoundaryWriter(prefix, "one", "forward", 16) as writer:
            writer.add(random_patches(stream, 16))
        write_annotation_manifest(prefix, "one", [writer], {"kind": "test"})
        with pytest.raises(DataError, match="no reverse strand; annotated: forward"):
            BoundaryReader(prefix, "one", "reverse")

    def test_a_file_that_is_not_the_manifests(self, prefix):
        write_random_boundaries(prefix, "other", longest_patch_bases=5)
        for suffix in (".bin", ".idx"):
            other = prefix.with_name("train.other" + suffix).read_bytes()
            prefix.with_name("train.patches" + suffix).write_bytes(other)
        with pytest.raises(DataError, match="its manifest describes"):
            BoundaryReader(prefix)

    @pytest.mark.parametrize(("change", "end"), [(1, "1,001"), (-1, "999")])
    def test_patches_that_do_not_end_with_the_data(self, prefix, change, end):
        path = data_path(boundary_prefix(prefix, "patches", "forward"))
        values = np.fromfile(path, dtype=np.uint8)
        values[-1] = int(values[-1]) + change
        values.tofile(path)
        with pytest.raises(
            DataError, match=rf"train\.patches\.bin has patches up to base {end}, but .*train\.bin has 1,000 bases"
        ):
            BoundaryReader(prefix)

    @pytest.mark.parametrize("name", ["train.manifest.json", "train.patches.manifest.json"])
    def test_another_format_version(self, prefix, name):
        path = prefix.with_name(name)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 7}))
        with pytest.raises(DataError, match=f"{name}: format_version 7; this code reads 1"):
            BoundaryReader(prefix)

    @pytest.mark.parametrize("content", ["{", "[1]", "\xff", '{"format_version": 1, "nmae": 3}', "{}"])
    def test_a_manifest_that_is_none(self, prefix, content):
        path = prefix.with_name("train.patches.manifest.json")
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match="not a manifest"):
            BoundaryReader(prefix)
