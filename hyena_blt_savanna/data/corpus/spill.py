"""The way of a shuffled source from inputs to shards: documents on the disk, ordered by a keyed hash.

Each document has a key of 64 bits, a hash; the shuffled source is the documents in the order of their keys, and its
shards are equal ranges of keys, `buckets`. An input's documents are written, those of one bucket in runs of some
length, to one file, and a second lists key, place and length of each, sorted. A shard is then the entries of its
bucket of all inputs, read from there. So memory is bounded by a bucket's entries, 20 bytes a document.
"""

from __future__ import annotations

import bisect
import itertools
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.whole_files import WholeFile, WholeWriter

ENTRY = np.dtype([("key", "<u8"), ("offset", "<i8"), ("num_bytes", "<i4")])
_KEY_BITS = 64
_HELD_BYTES = 1 << 26
_LEAST_RUN_BYTES, _MOST_RUN_BYTES = 1 << 14, 1 << 20
_MOST_HELD_ENTRIES = 1 << 21
_END = b"\0"

Entries = NDArray[Any]


def bucket_of(key: int, num_buckets: int) -> int:
    """The bucket of a key in [0, 2^64)."""
    return key * num_buckets >> _KEY_BITS


def spill_path(prefix: Path) -> Path:
    """PREFIX.spill: documents."""
    return prefix.with_name(prefix.name + ".spill")


def entries_path(prefix: Path) -> Path:
    """PREFIX.entries: where they lie."""
    return prefix.with_name(prefix.name + ".entries")


class SpillWriter(WholeWriter):
    """Writes the documents of one input and split; both files appear when it is closed, or neither.

    Args:
        prefix: path of the files without suffix.
        num_buckets: of the split.
        wanted: the buckets that are written; documents of others are passed over.

    Attributes:
        run_starts: in the list of entries, where each sorted run of it starts; complete once it is closed.
    """

    def __init__(self, prefix: Path, num_buckets: int, wanted: frozenset[int]) -> None:
        self.run_starts: list[int] = []
        self._num_buckets, self._wanted = num_buckets, wanted
        self._data = WholeFile(spill_path(prefix))
        self._list = WholeFile(entries_path(prefix))
        self._buckets: dict[int, _Bucket] = {}
        self._run_bytes = min(_MOST_RUN_BYTES, max(_LEAST_RUN_BYTES, _HELD_BYTES // num_buckets))
        self._entries: list[Entries] = []
        self._num_entries = 0

    def add(self, key: int, tag: bytes, pieces: Iterator[bytes], num_bases: int) -> None:
        """Appends one document.

        Args:
            key: in [0, 2^64).
            tag: with its marks, or empty.
            pieces: its letters.
            num_bases: how many they are.
        """
        number = bucket_of(key, self._num_buckets)
        if number not in self._wanted:
            return
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
        num_bytes = len(tag) + num_bases + len(_END)
        if num_bytes < self._run_bytes:
            bucket.add(key, b"".join((tag, *pieces, _END)))
            if bucket.num_bytes >= self._run_bytes:
                self._write(bucket)
            return
        # What is held goes first, so that a bucket's documents lie in the order of their records.
        self._write(bucket)
        self._list_entries(np.array([(key, self._data.num_bytes, num_bytes)], dtype=ENTRY))
        for piece in itertools.chain((tag,), pieces, (_END,)):
            self._data.write(piece)

    def close(self) -> None:
        """Completes both files."""
        for number in sorted(self._buckets):
            self._write(self._buckets[number])
        self._end_run()
        self._data.commit()
        self._list.commit()

    def discard(self) -> None:
        """Removes what was written so far."""
        self._data.discard()
        self._list.discard()

    def _write(self, bucket: _Bucket) -> None:
        if bucket.num_bytes:
            self._list_entries(bucket.entries(self._data.num_bytes))
            self._data.write(b"".join(bucket.documents))
            bucket.clear()

    def _list_entries(self, entries: Entries) -> None:
        self._entries.append(entries)
        self._num_entries += len(entries)
        if self._num_entries >= _MOST_HELD_ENTRIES:
            self._end_run()

    def _end_run(self) -> None:
        if not self._entries:
            return
        entries = np.concatenate(self._entries)
        entries = entries[np.lexsort((entries["offset"], entries["key"]))]
        self.run_starts.append(self._list.num_bytes // ENTRY.itemsize)
        self._list.write(entries)
        self._entries, self._num_entries = [], 0


class _Bucket:
    """Documents of one bucket that wait to be written together."""

    def __init__(self) -> None:
        self.documents: list[bytes] = []
        self.num_bytes = 0
        self._keys = array("Q")

    def add(self, key: int, document: bytes) -> None:
        self.documents.append(document)
        self._keys.append(key)
        self.num_bytes += len(document)

    def entries(self, offset: int) -> Entries:
        """Their entries, where the first of them will lie at an offset."""
        entries = np.empty(len(self.documents), dtype=ENTRY)
        lengths = np.fromiter(map(len, self.documents), dtype=np.int64, count=len(self.documents))
        entries["key"] = self._keys
        entries["num_bytes"] = lengths
        entries["offset"] = offset + np.cumsum(lengths) - lengths
        return entries

    def clear(self) -> None:
        self.documents, self.num_bytes = [], 0
        self._keys = array("Q")


def read_bucket(prefix: Path, run_starts: Sequence[int], number: int, num_buckets: int) -> Entries:
    """The entries of one bucket of one input; runs of them are sorted.

    Args:
        prefix: path of the files without suffix.
        run_starts: `SpillWriter.run_starts`.
        number: of the bucket.
        num_buckets: of the split.
    """
    if not run_starts:
        return np.empty(0, dtype=ENTRY)
    listed = np.memmap(entries_path(prefix), dtype=ENTRY, mode="r")
    first, last = (-(-(index << _KEY_BITS) // num_buckets) for index in (number, number + 1))
    runs = []
    for start, stop in zip(run_starts, [*run_starts[1:], len(listed)], strict=True):
        keys = range(start, stop)
        begin, end = (
            start + bisect.bisect_left(keys, key, key=lambda place: int(listed[place]["key"])) for key in (first, last)
        )
        runs.append(np.array(listed[begin:end]))
    return np.concatenate(runs)


class SpillReader:
    """Reads documents from the spills of all inputs.

    Args:
        prefixes: paths of the files without suffix, one an input.
    """

    def __init__(self, prefixes: Sequence[Path]) -> None:
        self._prefixes = prefixes
        self._files: dict[int, int] = {}

    def read(self, number: int, offset: int, num_bytes: int) -> bytes:
        """Bytes of an input's spill.

        Args:
            number: of the input.
            offset: of the first byte.
            num_bytes: how many.
        """
        descriptor = self._files.get(number)
        if descriptor is None:
            if len(self._files) >= _MOST_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            descriptor = self._files[number] = os.open(spill_path(self._prefixes[number]), os.O_RDONLY)
        return os.pread(descriptor, num_bytes, offset)

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


_MOST_OPEN_FILES = 256
