"""Boundary files: the patches of a stream, stored so that any stretch is found from its own blocks alone.

An annotation NAME of the dataset PREFIX is a pair of indexed datasets, `PREFIX.NAME.{bin,idx}` for the
forward strand and `PREFIX.NAME.reverse.{bin,idx}` for the reverse strand, and `PREFIX.NAME.manifest.json`.
The stream is divided into blocks of 65,536 bases; item b of a file describes block b:

    [offset of the first patch that starts at or after the block's first base, length, length, ...]

with one length for each patch that starts in the block. The offset counts from the block's first base; where
no further patch starts, it points at the end of the stream. It is less than the longest patch, so it fits
the type of the lengths: uint8 while the longest patch has at most 255 bases, else uint16, else int32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.data.entropy_model_description import EntropyModelDescription
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader, IndexedWriter, data_path
from hyena_blt_savanna.data.manifest import (
    AnnotationManifest,
    Strand,
    StrandStatistics,
    annotation_prefix,
    current_versions,
    manifest_path,
    read_annotation_manifest,
    read_manifest,
    write_manifest,
)
from hyena_blt_savanna.data.whole_files import WholeWriter

BLOCK_BASES = 65_536


def boundary_prefix(prefix: Path, name: str, strand: Strand) -> Path:
    """Path without suffix of one strand's boundary file."""
    forward = annotation_prefix(prefix, name)
    return forward if strand == "forward" else forward.with_name(forward.name + ".reverse")


def boundary_dtype(longest_patch_bases: int) -> np.dtype[Any]:
    """The narrowest type that a boundary file of such patches may have."""
    for dtype in (np.uint8, np.uint16, np.int32):
        if longest_patch_bases <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    raise DataError(f"a patch of {longest_patch_bases:,} bases: 2,147,483,647 is the most a boundary file holds")


class BoundaryWriter(WholeWriter):
    """Writes one strand's boundary file from patch lengths in stream order, in constant memory.

    A context manager: the file appears when the block ends well, else nothing does. It takes the annotation's old
    manifest away first, so that the annotation counts as unfinished until `write_annotation_manifest`.

    Args:
        prefix: path of the dataset, whose manifest must be there.
        name: name of the annotation.
        strand: whose patches these are.
        longest_patch_bases: no length may be more; it decides the type that lengths are stored in.

    Raises:
        DataError: the dataset has no manifest.
        DiskFullError: from any method, when the disk is full.
    """

    def __init__(self, prefix: Path, name: str, strand: Strand, longest_patch_bases: int) -> None:
        self.prefix, self.name, self.strand = prefix, name, strand
        self.longest_patch_bases = longest_patch_bases
        self.num_bytes = read_manifest(prefix).num_bytes
        self.dtype = boundary_dtype(longest_patch_bases)
        manifest_path(annotation_prefix(prefix, name)).unlink(missing_ok=True)
        self._writer = IndexedWriter(boundary_prefix(prefix, name, strand), self.dtype)
        self._histogram: dict[int, int] = {}
        self._block = 0
        self._offset = 0
        self._pending: list[NDArray[Any]] = []
        self._position = 0

    @property
    def position(self) -> int:
        """Bases of the stream that the patches so far cover; the next patch starts here."""
        return self._position

    @property
    def sha256(self) -> str:
        """Digest of the boundary file so far, in hexadecimal."""
        return self._writer.sha256

    @property
    def statistics(self) -> StrandStatistics:
        """Lengths of the patches so far; there must be some."""
        num_patches = sum(self._histogram.values())
        return StrandStatistics(
            num_patches=num_patches,
            mean_bases=self._position / num_patches,
            min_bases=min(self._histogram),
            max_bases=max(self._histogram),
            histogram=dict(sorted(self._histogram.items())),
        )

    def add(self, lengths: NDArray[np.integer[Any]]) -> None:
        """Appends patches; calls may divide the stream anywhere between two patches.

        Args:
            lengths: [P] integers, the patches' lengths in bases, in stream order.

        Raises:
            DataError: a length is below 1 or above the longest patch, or the stream ends before the patches do.
        """
        if not len(lengths):
            return
        shortest, longest = int(lengths.min()), int(lengths.max())
        if shortest < 1 or longest > self.longest_patch_bases:
            raise DataError(
                f"{data_path(self._writer.prefix)}: patches of {shortest:,} to {longest:,} bases; "
                f"1 to {self.longest_patch_bases:,} are allowed"
            )
        ends = self._position + np.cumsum(lengths, dtype=np.int64)
        if ends[-1] > self.num_bytes:
            raise DataError(
                f"{data_path(self._writer.prefix)}: the patches reach base {int(ends[-1]):,}, "
                f"but {data_path(self.prefix)} has {self.num_bytes:,}"
            )
        for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
            self._histogram[int(length)] = self._histogram.get(int(length), 0) + int(count)
        stored = lengths.astype(self.dtype)
        taken = 0
        while True:
            block_end = (self._block + 1) * BLOCK_BASES
            # A patch starts where the one before ends.
            until = taken
            if self._position < block_end:
                until = min(len(ends), int(np.searchsorted(ends, block_end)) + 1)
            if until > taken:
                self._pending.append(stored[taken:until])
                self._position = int(ends[until - 1])
                taken = until
            if self._position < block_end:
                return
            self._finish_block()

    def close(self) -> None:
        """Writes the index and gives the files their names.

        Raises:
            DataError: the patches don't cover the whole stream.
        """
        if self._position != self.num_bytes:
            raise DataError(
                f"{data_path(self._writer.prefix)}: the patches cover {self._position:,} bases, "
                f"but {data_path(self.prefix)} has {self.num_bytes:,}"
            )
        while self._block * BLOCK_BASES < self.num_bytes:
            self._finish_block()
        self._writer.close()

    def _finish_block(self) -> None:
        # A stream that ends with a block, or before one, has no further item.
        if self._block * BLOCK_BASES < self.num_bytes:
            self._writer.add(np.concatenate([np.array([self._offset], dtype=self.dtype), *self._pending]))
        self._block += 1
        self._offset = self._position - self._block * BLOCK_BASES
        self._pending = []

    def discard(self) -> None:
        """Removes what was written so far."""
        self._writer.discard()


def write_annotation_manifest(
    prefix: Path,
    name: str,
    writers: list[BoundaryWriter],
    rule: dict[str, Any],
    calibration: dict[str, Any] | None = None,
    entropy_model: EntropyModelDescription | None = None,
    entropies_sha256: dict[Strand, str] | None = None,
) -> AnnotationManifest:
    """Completes an annotation, after its boundary files.

    Args:
        prefix: path of the dataset.
        name: name of the annotation.
        writers: the closed writer of the forward strand, and that of the reverse strand where it is used.
        rule: the rule's kind and settings.
        calibration: how its limit was found.
        entropy_model: None for a rule that needs none.
        entropies_sha256: digest of each strand's stored entropies, where they were stored.

    Returns:
        The manifest as written.
    """
    data = read_manifest(prefix)
    by_strand = {writer.strand: writer for writer in writers}
    reverse = by_strand.get("reverse")
    assert all(writer.prefix == prefix and writer.name == name for writer in writers)
    manifest = AnnotationManifest.parse(
        {
            "name": name,
            "data_sha256": data.data_sha256,
            "data_num_bytes": data.num_bytes,
            "dtype": max((writer.dtype for writer in writers), key=lambda dtype: dtype.itemsize).name,
            "rule": rule,
            "calibration": calibration or {},
            "entropy_model": entropy_model,
            "statistics": {strand: writer.statistics for strand, writer in by_strand.items()},
            "forward_sha256": by_strand["forward"].sha256,
            "reverse_sha256": reverse.sha256 if reverse else None,
            "entropies_sha256": entropies_sha256 or {},
            "versions": current_versions(),
        }
    )
    write_manifest(annotation_prefix(prefix, name), manifest)
    return manifest


class Boundaries(Protocol):
    """Where the patches of a stream start."""

    @property
    def num_bytes(self) -> int:
        """Length of the stream in bases."""

    @property
    def longest_patch_bases(self) -> int:
        """Length of the longest patch."""

    @property
    def last_start(self) -> int:
        """Start of the stream's last patch."""

    def patches(self, start: int, stop: int) -> tuple[int, NDArray[np.int32]]:
        """See `BoundaryReader.patches`."""


class SingleBases:
    """Each base a patch, with no file: for models of single bases.

    Args:
        num_bytes: length of the stream in bases.
    """

    longest_patch_bases = 1

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    @property
    def last_start(self) -> int:
        """Start of the stream's last base."""
        return self.num_bytes - 1

    def patches(self, start: int, stop: int) -> tuple[int, NDArray[np.int32]]:
        """See `BoundaryReader.patches`."""
        start, stop = max(0, start), min(stop, self.num_bytes)
        return min(start, self.num_bytes), np.ones(max(0, stop - start), dtype=np.int32)


class BoundaryReader:
    """Finds the patches of any stretch of a stream.

    Args:
        prefix: path of the dataset.
        name: name of the annotation.
        strand: whose patches.

    Attributes:
        manifest: the annotation's manifest.
        num_bytes: length of the stream in bases.
        last_start: start of the stream's last patch.

    Raises:
        DataError: the annotation or the strand is missing, is of another format version, belongs to other data, or
            does not end where the data do.
    """

    def __init__(self, prefix: Path, name: str = "patches", strand: Strand = "forward") -> None:
        self.manifest = read_annotation_manifest(prefix, name)
        self.num_bytes = self.manifest.data_num_bytes
        path = boundary_prefix(prefix, name, strand)
        if strand not in self.manifest.statistics:
            raise DataError(
                f"{manifest_path(annotation_prefix(prefix, name))}: no {strand} strand; "
                f"annotated: {', '.join(self.manifest.statistics)}"
            )
        items = IndexedReader(path)
        num_blocks = -(-self.num_bytes // BLOCK_BASES)
        num_patches = self.manifest.statistics[strand].num_patches
        if items.num_documents != num_blocks or len(items.stream) != num_blocks + num_patches:
            raise DataError(
                f"{data_path(path)} has {items.num_documents:,} blocks with {len(items.stream):,} values, but its "
                f"manifest describes {num_blocks:,} with {num_blocks + num_patches:,}: annotate the data again"
            )
        self._values, self._starts = items.stream, items.document_starts
        self.longest_patch_bases = self.manifest.statistics[strand].max_bases
        end, length = self._last_patch()
        if end != self.num_bytes:
            raise DataError(
                f"{data_path(path)} has patches up to base {end:,}, but {data_path(prefix)} has {self.num_bytes:,} "
                "bases: annotate the data again"
            )
        self.last_start = end - length

    def patches(self, start: int, stop: int) -> tuple[int, NDArray[np.int32]]:
        """The patches that start in [start, stop).

        Args:
            start: first base, at least 0.
            stop: base after the last one; may lie beyond the stream.

        Returns:
            Start of the first of them (where none starts, of the next patch after them, or the end of the stream),
            and int32 [P], their lengths in bases. They end at the first number plus the sum of the lengths.
        """
        start, stop = max(0, start), min(stop, self.num_bytes)
        if start >= stop:
            return min(start, self.num_bytes), np.zeros(0, dtype=np.int32)
        first_block, last_block = start // BLOCK_BASES, (stop - 1) // BLOCK_BASES
        items = self._starts[first_block : last_block + 2]
        lengths = np.empty(items[-1] - items[0] - (last_block + 1 - first_block), dtype=np.int32)
        first, num = _gather(self._values, items, first_block * BLOCK_BASES, start, stop, lengths)
        return first, lengths[:num]

    def patch_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Starts of the patches that start in [start, stop), int64 [P]."""
        first, lengths = self.patches(start, stop)
        return first + np.cumsum(lengths, dtype=np.int64) - lengths

    def next_start(self, position: int) -> int:
        """Start of the first patch that starts at or after a position; the end of the stream where none does."""
        if position >= self.num_bytes:
            return self.num_bytes
        return self.patches(position, position + 1)[0]

    def _last_patch(self) -> tuple[int, int]:
        """Where the last patch ends, and its length."""
        block = len(self._starts) - 2
        # Only patches longer than a block leave blocks in which none starts.
        while block > 0 and self._starts[block + 1] - self._starts[block] == 1:
            block -= 1
        item = self._values[self._starts[block] : self._starts[block + 1]]
        return block * BLOCK_BASES + int(item.sum(dtype=np.int64)), int(item[-1])


@njit(cache=True, nogil=True)
def _gather(
    values: NDArray[Any],
    items: NDArray[np.int64],
    block_start: int,
    start: int,
    stop: int,
    lengths: NDArray[np.int32],
) -> tuple[int, int]:
    """Walks the items of consecutive blocks; returns the first patch start >= start, and how many lie before stop."""
    first, num = -1, 0
    position = block_start
    for i in range(len(items) - 1):
        position = block_start + i * BLOCK_BASES + values[items[i]]
        for j in range(items[i] + 1, items[i + 1]):
            if position >= stop:
                break
            length = np.int64(values[j])
            if position >= start:
                if num == 0:
                    first = position
                lengths[num] = length
                num += 1
            position += length
    return (first if num else position), num
