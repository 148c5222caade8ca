"""Writes one dataset: documents in, indexed dataset and manifest out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.data.indexed import IndexedWriter
from hyena_blt_savanna.data.manifest import (
    Composition,
    DatasetManifest,
    InputFile,
    ShardDescription,
    SplitDescription,
    current_versions,
    manifest_path,
)
from hyena_blt_savanna.data.manifest import write_manifest as write_manifest_file
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, JOIN_MARKS, Bytes

_END = np.array([END_OF_DOCUMENT], dtype=np.uint8)


class DatasetWriter:
    """Writes PREFIX.bin and PREFIX.idx, then, when the caller knows all there is to say, PREFIX.manifest.json.

    A context manager: `close` gives the files their names; without it nothing is left. The old manifest goes before
    the old data does, so that a dataset without a manifest is one that was never finished.

    Args:
        prefix: path of the dataset without its suffix.

    Raises:
        DiskFullError: from any method, when the disk is full.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self._writer = IndexedWriter(prefix)
        self._counts = np.zeros(256, dtype=np.int64)
        self._longest = 0

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return self._writer.num_documents

    @property
    def longest_document_bytes(self) -> int:
        """Length of the longest document so far."""
        return self._longest

    @property
    def num_bytes(self) -> int:
        """Bytes of the stream so far."""
        return self._writer.num_bytes

    def add(self, sequence: Bytes, tag: bytes = b"") -> None:
        """Appends one document: tag, sequence, end-of-document byte.

        Args:
            sequence: uint8 [L], case kept; nucleotides and join marks.
            tag: with both its marks, or empty.

        Raises:
            DataError: more bytes than a document can have.
        """
        _count(sequence, self._counts)
        self._end([np.concatenate([np.frombuffer(tag, dtype=np.uint8), sequence, _END])])

    def add_in_pieces(self, pieces: Iterable[bytes], tag: bytes = b"") -> None:
        """Appends one document of any length, as it comes.

        Args:
            pieces: its sequence, case kept.
            tag: with both its marks, or empty.

        Raises:
            DataError: more bytes than a document can have.
        """
        self._end(self._with_marks(pieces, tag))

    def add_documents(self, stream: Bytes, lengths: Sequence[int], num_tag_bytes: NDArray[np.int64]) -> None:
        """Appends whole documents that lie end to end.

        Args:
            stream: uint8 [L], each document its tag, its sequence and an end-of-document byte.
            lengths: bytes of each document.
            num_tag_bytes: int64 [256], how often each byte stands in their tags.
        """
        _count(stream, self._counts)
        self._counts -= num_tag_bytes
        self._counts[END_OF_DOCUMENT] -= len(lengths)
        self._writer.write(stream)
        self._writer.end_documents(lengths)
        self._longest = max(self._longest, max(lengths))

    def _with_marks(self, pieces: Iterable[bytes], tag: bytes) -> Iterator[Bytes]:
        yield np.frombuffer(tag, dtype=np.uint8)
        for piece in pieces:
            sequence = np.frombuffer(piece, dtype=np.uint8)
            _count(sequence, self._counts)
            yield sequence
        yield _END

    def _end(self, parts: Iterable[Bytes]) -> None:
        """Appends one document that is given in parts."""
        length = 0
        for part in parts:
            self._writer.write(part)
            length += len(part)
        self._writer.end_documents([length])
        self._longest = max(self._longest, length)

    def close(self) -> None:
        """Gives the data files their names; the manifest is still to be written.

        Raises:
            DataError: nothing was added.
        """
        manifest_path(self.prefix).unlink(missing_ok=True)
        self._writer.close()

    def write_manifest(
        self,
        inputs: list[InputFile],
        split: SplitDescription | None,
        parts: dict[str, int],
        shard: ShardDescription | None = None,
    ) -> DatasetManifest:
        """Completes the dataset, after `close`.

        Args:
            inputs: what the data was made from.
            split: which part of it this is.
            parts: bytes of all parts.
            shard: for a shard of a source, in place of all these: which one it is.
        """
        counts = {letter: self._count_of(letter) for letter in "ACGTN"}
        num_lower = int(self._counts[ord("a") : ord("z") + 1].sum())
        num_bases = int(self._counts.sum()) - sum(int(self._counts[mark]) for mark in JOIN_MARKS)
        manifest = DatasetManifest(
            inputs=inputs,
            split=split,
            parts=parts,
            shard=shard,
            num_documents=self.num_documents,
            num_bases=num_bases,
            num_bytes=self.num_bytes,
            composition=Composition(**counts, other=num_bases - sum(counts.values()), lower=num_lower),
            data_sha256=self._writer.sha256,
            versions=current_versions(),
        )
        write_manifest_file(self.prefix, manifest)
        return manifest

    def discard(self) -> None:
        """Removes what was written so far; does nothing after `close`."""
        self._writer.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def _count_of(self, letter: str) -> int:
        return int(self._counts[ord(letter)] + self._counts[ord(letter.lower())])


@njit(cache=True, nogil=True)
def _count(sequence: Bytes, counts: NDArray[np.int64]) -> None:
    # Two tables, so that equal letters in a row don't wait for each other's count.
    even, odd = np.zeros(256, dtype=np.int64), np.zeros(256, dtype=np.int64)
    for i in range(0, len(sequence) - 1, 2):
        even[sequence[i]] += 1
        odd[sequence[i + 1]] += 1
    if len(sequence) % 2:
        even[sequence[-1]] += 1
    counts += even + odd
