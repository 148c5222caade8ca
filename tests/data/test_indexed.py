"""The indexed dataset against megatron-core's own builder and reader."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hyena_blt_savanna.data import whole_files
from hyena_blt_savanna.data.errors import DataError, DiskFullError
from hyena_blt_savanna.data.indexed import IndexedReader, IndexedWriter, data_path, index_path

GOLDEN = Path(__file__).parents[1] / "golden" / "stripedhyena2"
DTYPES = [np.uint8, np.uint16, np.int32]


def make_documents(dtype, num=20, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 200, size=rng.integers(1, 300)).astype(dtype) for _ in range(num)]


def write(prefix, documents, dtype=np.uint8):
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add(document)


@pytest.mark.parametrize("dtype", DTYPES)
def test_files_are_byte_equal_to_megatrons(tmp_path, dtype):
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    documents = make_documents(dtype)
    write(tmp_path / "ours", documents, dtype)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in documents:
        builder.add_document(document, [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_savannas_files_are_read_and_written(tmp_path):
    """A token file and index that Savanna's own builder wrote."""
    golden = load_file(GOLDEN / "indexed_dataset_tiny.safetensors")
    for suffix in (".bin", ".idx"):
        (tmp_path / f"theirs{suffix}").write_bytes(golden[f"{suffix[1:]}_file_bytes"].tobytes())
    reader = IndexedReader(tmp_path / "theirs")
    sizes = json.loads((GOLDEN / "indexed_dataset_tiny.json").read_text())["config"]["document_sizes_without_eod"]
    documents = [reader.document(i) for i in range(len(reader))]
    assert [len(document) - 1 for document in documents] == sizes
    assert all(document[-1] == 0 and document[:-1].all() for document in documents)
    write(tmp_path / "ours", documents, np.uint16)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == (tmp_path / f"theirs{suffix}").read_bytes()


def test_index_written_in_pieces_is_the_same(tmp_path, monkeypatch):
    documents = make_documents(np.uint16, num=23)
    write(tmp_path / "whole", documents, np.uint16)
    monkeypatch.setattr("hyena_blt_savanna.data.indexed._WRITE_ITEMS", 4)
    write(tmp_path / "pieces", documents, np.uint16)
    assert (tmp_path / "whole.idx").read_bytes() == (tmp_path / "pieces.idx").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip(tmp_path, dtype):
    documents = make_documents(dtype)
    write(tmp_path / "data", documents, dtype)
    reader = IndexedReader(tmp_path / "data")
    assert len(reader) == reader.num_documents == len(documents)
    assert np.array_equal(reader.stream, np.concatenate(documents))
    assert reader.stream.dtype == dtype
    assert not reader.stream.flags.writeable
    assert reader.document_starts.tolist() == [0, *np.cumsum([len(d) for d in documents])]
    for i, document in enumerate(documents):
        assert np.array_equal(reader.document(i), document)


def test_the_stream_outlives_its_reader(tmp_path):
    # In a process of its own: the failure would be a crash.
    write(tmp_path / "data", [np.full(100_000, 7, dtype=np.uint8)])
    code = (
        "import gc; from pathlib import Path; from hyena_blt_savanna.data.indexed import IndexedReader\n"
        f"piece = IndexedReader(Path({str(tmp_path / 'data')!r})).stream[5:]; gc.collect()\n"
        "assert piece.sum() == 7 * 99_995"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digest_and_counts(tmp_path):
    import hashlib

    documents = make_documents(np.uint8)
    with IndexedWriter(tmp_path / "data") as writer:
        for document in documents:
            writer.add(document)
        data = b"".join(document.tobytes() for document in documents)
        assert (writer.num_documents, writer.num_bytes) == (len(documents), len(data))
        assert writer.sha256 == hashlib.sha256(data).hexdigest()


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "data", (np.full(1 // n, 7, dtype=np.uint8) for n in (1, 0)))
    assert list(tmp_path.iterdir()) == []


def test_an_old_dataset_survives_an_error(tmp_path):
    write(tmp_path / "data", make_documents(np.uint8))
    before = (tmp_path / "data.bin").read_bytes()
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "data", (np.full(1 // n, 7, dtype=np.uint8) for n in (1, 0)))
    assert (tmp_path / "data.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.bin", "data.idx"]


def test_an_empty_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match="can't be empty"), IndexedWriter(tmp_path / "data"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_document_that_int32_cannot_count_is_refused(tmp_path):
    # Broadcast: 2^31 elements in one byte of memory.
    document = np.broadcast_to(np.uint8(65), 2**31)
    with pytest.raises(DataError, match="2,147,483,648 elements"), IndexedWriter(tmp_path / "data") as writer:
        writer.add(document)


class FullDisk:
    """A file on a disk that takes `room` more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 100, 1000])
def test_a_full_disk_leaves_nothing_and_says_what_is_needed(tmp_path, room):
    document = np.zeros(400, dtype=np.uint8)
    writer = IndexedWriter(tmp_path / "data")
    writer._data._file = FullDisk(writer._data._file, room)
    for _ in range(room // 400):
        writer.add(document)
    with pytest.raises(DiskFullError) as caught:
        writer.add(document)
    assert list(tmp_path.iterdir()) == []
    needed = (room // 400 + 1) * 400
    assert f"{tmp_path / 'data.bin'}: no space left on the device: at least {needed:,} bytes" in str(caught.value)
    assert "are free" in str(caught.value)


def test_a_disk_that_is_full_when_files_are_flushed(tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(whole_files.os, "fsync", no_space)
    with pytest.raises(DiskFullError):
        write(tmp_path / "data", make_documents(np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_other_write_errors_pass_unchanged(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(whole_files.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "data", make_documents(np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_a_folder_leaves_no_partial_file(tmp_path):
    (tmp_path / "data.bin" / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"data\.bin"):
        write(tmp_path / "data", make_documents(np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["data.bin"]


def test_reading_says_nothing(tmp_path):
    write(tmp_path / "data", make_documents(np.uint8))
    code = (
        "import logging, sys, pathlib; logging.basicConfig(level=logging.INFO)\n"
        "from hyena_blt_savanna.data.indexed import IndexedReader\n"
        "print(IndexedReader(pathlib.Path(sys.argv[1])).num_documents)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("20\n", "")


class TestReaderRefuses:
    @pytest.fixture
    def prefix(self, tmp_path):
        write(tmp_path / "data", make_documents(np.uint8))
        return tmp_path / "data"

    @pytest.mark.parametrize("path_of", [data_path, index_path])
    def test_missing_file(self, prefix, path_of):
        path_of(prefix).unlink()
        with pytest.raises(DataError, match=f"{path_of(prefix).name}: no such file; .*prepare the data"):
            IndexedReader(prefix)

    def test_data_that_was_cut(self, prefix):
        data_path(prefix).write_bytes(data_path(prefix).read_bytes()[:-1])
        with pytest.raises(DataError, match=r"data\.bin has .* but .*data\.idx describes"):
            IndexedReader(prefix)

    def test_index_that_was_cut(self, prefix):
        index_path(prefix).write_bytes(index_path(prefix).read_bytes()[:-1])
        with pytest.raises(DataError, match="expected"):
            IndexedReader(prefix)

    @pytest.mark.parametrize("content", [b"", b"something else altogether, and long enough"])
    def test_no_index(self, prefix, content):
        index_path(prefix).write_bytes(content)
        with pytest.raises(DataError, match="not the index"):
            IndexedReader(prefix)

    @pytest.mark.parametrize(("place", "value"), [(9, 2), (17, 6)])
    def test_other_version_or_dtype(self, prefix, place, value):
        data = bytearray(index_path(prefix).read_bytes())
        data[place] = value
        index_path(prefix).write_bytes(data)
        with pytest.raises(DataError, match="is read"):
            IndexedReader(prefix)
