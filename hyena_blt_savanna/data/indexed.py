"""Megatron's indexed dataset: `PREFIX.bin` holds the documents end to end, `PREFIX.idx` their lengths.

The writer streams: it holds 4 bytes a document, whatever the size of the data, and its files are those
of megatron-core's builder byte for byte. The reader goes through megatron-core's `IndexedDataset`.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.whole_files import WholeFile, WholeWriter, as_bytes

_MAGIC = b"MMIDIDX\x00\x00"
_FORMAT_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_DTYPE_CODES: dict[np.dtype[Any], int] = {np.dtype(np.uint8): 1, np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
_WRITE_ITEMS = 1 << 20

LONGEST_DOCUMENT = 2**31 - 1
"""Bytes; the index stores lengths as int32."""


def data_path(prefix: Path) -> Path:
    """PREFIX.bin."""
    return prefix.with_name(prefix.name + ".bin")


def index_path(prefix: Path) -> Path:
    """PREFIX.idx."""
    return prefix.with_name(prefix.name + ".idx")


class IndexedWriter(WholeWriter):
    """Writes an indexed dataset document by document; both files appear when it is closed, or neither.

    A context manager: it commits when the block ends well and removes everything otherwise.

    Args:
        prefix: path of the dataset without its suffix.
        dtype: uint8, uint16 or int32; what one element of a document is.

    Raises:
        DiskFullError: from any method, when the disk is full.

    Source: `IndexedDatasetBuilder` of megatron-core 0.16, whose files these equal.
    """

    def __init__(self, prefix: Path, dtype: DTypeLike = np.uint8) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype)
        assert self.dtype in _DTYPE_CODES
        self._lengths = array("i")
        self._digest = hashlib.sha256()
        self._data = WholeFile(data_path(prefix))

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    @property
    def num_bytes(self) -> int:
        """Bytes of `PREFIX.bin` so far."""
        return self._data.num_bytes

    @property
    def sha256(self) -> str:
        """Digest of `PREFIX.bin` so far, in hexadecimal."""
        return self._digest.hexdigest()

    def add(self, document: NDArray[Any]) -> None:
        """Appends one document.

        Args:
            document: [L] of the writer's dtype.

        Raises:
            DataError: more than 2,147,483,647 elements.
        """
        self._check_length(len(document))
        self.write(document)
        self.end_documents([len(document)])

    def write(self, elements: NDArray[Any]) -> None:
        """Appends elements of documents that `end_documents` gives their lengths, once they are whole.

        Args:
            elements: [L] of the writer's dtype.
        """
        assert elements.dtype == self.dtype
        data = as_bytes(elements)
        self._data.write(data)
        self._digest.update(data)

    def end_documents(self, lengths: Sequence[int]) -> None:
        """Says where the documents end that were written since the last call.

        Args:
            lengths: of each of them, in elements; their sum is what was written.

        Raises:
            DataError: more than 2,147,483,647 elements in one.
        """
        for length in lengths:
            self._check_length(length)
        self._lengths.extend(lengths)

    def _check_length(self, length: int) -> None:
        if length > LONGEST_DOCUMENT:
            raise DataError(
                f"{data_path(self.prefix)}: a document of {length:,} elements; "
                f"the index allows {LONGEST_DOCUMENT:,}: cut the record"
            )

    def close(self) -> None:
        """Writes the index and gives both files their names.

        Raises:
            DataError: nothing was added; there is no empty dataset.
        """
        if not len(self._lengths):
            self.discard()
            raise DataError(f"{data_path(self.prefix)}: no document was written; an indexed dataset can't be empty")
        with WholeFile(index_path(self.prefix)) as index:
            self._write_index(index)
            # The data first: an index never stands beside data that is not there yet.
            self._data.commit()

    def discard(self) -> None:
        """Removes what was written so far."""
        self._data.discard()

    def _write_index(self, index: WholeFile) -> None:
        for part in _index_of(np.frombuffer(self._lengths, dtype=np.int32), self.dtype):
            index.write(part)


def _index_of(lengths: NDArray[np.int32], dtype: np.dtype[Any]) -> Iterator[bytes | NDArray[Any]]:
    """The parts of the index of documents of such lengths, in order."""
    num = len(lengths)
    yield _HEADER.pack(_MAGIC, _FORMAT_VERSION, _DTYPE_CODES[dtype], num, num + 1)
    yield lengths
    start = 0
    for begin in range(0, num, _WRITE_ITEMS):
        ends = start + np.cumsum(lengths[begin : begin + _WRITE_ITEMS], dtype=np.int64) * dtype.itemsize
        yield np.concatenate([[start], ends[:-1]]).astype(np.int64)
        start = int(ends[-1])
    for begin in range(0, num + 1, _WRITE_ITEMS):
        yield np.arange(begin, min(begin + _WRITE_ITEMS, num + 1), dtype=np.int64)


def document_lengths(prefix: Path) -> NDArray[np.int32]:
    """Lengths of the documents of an indexed dataset of our own, int32 [num_documents], without megatron-core.

    Args:
        prefix: path of the dataset without its suffix.

    Raises:
        DataError: a file is missing, or is no index.
    """
    _, num = _read_header(prefix)
    return np.fromfile(index_path(prefix), dtype=np.int32, count=num, offset=_HEADER.size)


def index_agrees(prefix: Path) -> bool:
    """Whether all of an index is what its lengths make it; reads it to its end.

    Args:
        prefix: path of the dataset without its suffix.

    Raises:
        DataError: a file is missing, or is no index.
    """
    dtype, _ = _read_header(prefix)
    lengths = document_lengths(prefix)
    with index_path(prefix).open("rb") as file:
        parts = (bytes(part.data) if isinstance(part, np.ndarray) else part for part in _index_of(lengths, dtype))
        return all(file.read(len(part)) == part for part in parts)


class IndexedReader:
    """Reads an indexed dataset through memory-mapped files: opening costs the index, reading only what is touched.

    Args:
        prefix: path of the dataset without its suffix.

    Attributes:
        stream: [total length] read-only view of `PREFIX.bin`; stays valid for as long as anything refers to it.
        document_starts: int64 [num_documents + 1], where each document starts in `stream`, and its end.

    Raises:
        DataError: a file is missing, is no index, or the two don't belong together.
    """

    stream: NDArray[Any]
    document_starts: NDArray[np.int64]

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        dtype, num_sequences = _read_header(prefix)
        dataset = _open_megatron(prefix)
        pointers = np.asarray(dataset.index.sequence_pointers)
        total = int(pointers[-1]) + int(dataset.index.sequence_lengths[num_sequences - 1]) * dtype.itemsize
        on_disk = data_path(prefix).stat().st_size
        if total != on_disk:
            raise DataError(
                f"{data_path(prefix)} has {on_disk:,} bytes, but {index_path(prefix)} describes {total:,}: "
                "one of them was cut or replaced; prepare the data again"
            )
        document_ends = np.asarray(dataset.index.document_indices)
        self.document_starts = np.append(pointers[document_ends[:-1]], total) // dtype.itemsize
        self.stream = np.asarray(_Alive(dataset.bin_reader.read(dtype.type, total // dtype.itemsize, 0), dataset))

    @property
    def num_documents(self) -> int:
        """Documents in the dataset."""
        return len(self.document_starts) - 1

    def __len__(self) -> int:
        return self.num_documents

    def document(self, index: int) -> NDArray[Any]:
        """One document, [L], as a read-only view."""
        return self.stream[self.document_starts[index] : self.document_starts[index + 1]]


class _Alive:
    """Lends an array's memory together with the object that keeps it mapped.

    megatron-core unmaps the file when its dataset goes, even while views of it are in use; an array made
    from this has it as its base, and so keeps the dataset.
    """

    def __init__(self, view: NDArray[Any], owner: object) -> None:
        self.__array_interface__ = view.__array_interface__
        self._owner = owner


def _open_megatron(prefix: Path) -> Any:
    # It tells which of its parts it has found while it is imported, and later every array that it maps.
    logging.getLogger("megatron").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # It warns of every optional CUDA package that is missing; none is of use here.
        warnings.simplefilter("ignore")
        # Imported here because it takes seconds.
        from megatron.core.datasets.indexed_dataset import IndexedDataset

    return IndexedDataset(str(prefix))


def _read_header(prefix: Path) -> tuple[np.dtype[Any], int]:
    for path in (data_path(prefix), index_path(prefix)):
        if not path.is_file():
            raise DataError(f"{path}: no such file; an indexed dataset has both a .bin and an .idx: prepare the data")
    path = index_path(prefix)
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    codes = {code: dtype for dtype, code in _DTYPE_CODES.items()}
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise DataError(f"{path}: not the index of an indexed dataset")
    _, version, code, num_sequences, num_documents = _HEADER.unpack(header)
    if version != _FORMAT_VERSION or code not in codes:
        raise DataError(f"{path}: format version {version} with dtype code {code}; version 1 with 1, 4 or 8 is read")
    expected = _HEADER.size + num_sequences * 12 + num_documents * 8
    if path.stat().st_size != expected or not num_sequences:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes, {expected:,} expected; prepare the data again")
    return codes[code], num_sequences
