"""Writes one shard: documents in, an indexed dataset with manifest and tags out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from hyena_blt_savanna.data.corpus.source import ShardEntry
from hyena_blt_savanna.data.corpus.tags import TagCount, add_tags, tags_path, write_tags
from hyena_blt_savanna.data.dataset_writer import DatasetWriter
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import data_path, index_path
from hyena_blt_savanna.data.manifest import ShardDescription, manifest_path, read_manifest
from hyena_blt_savanna.data.splits import SplitName

_BATCH_BYTES = 1 << 22
_TAG_MARK = b"|"


class ShardWriter:
    """Writes PREFIX.bin, .idx, .tags.tsv where there are tags, and the manifest last.

    A context manager: `finish` completes the shard; without it nothing is left.

    Args:
        prefix: path of the shard without its suffix.
        source: name of the source.
        split: which split the shard is of.
        settings_sha256: digest of all that decides its bytes.

    Raises:
        DiskFullError: from any method, when the disk is full.
    """

    def __init__(self, prefix: Path, source: str, split: SplitName, settings_sha256: str) -> None:
        self.prefix = prefix
        self._source, self._split, self._settings_sha256 = source, split, settings_sha256
        self._writer = DatasetWriter(prefix)
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._batch_tags = np.zeros(256, dtype=np.int64)
        self._tags: dict[str, TagCount] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of the shard so far."""
        return self._writer.num_bytes + self._batch_bytes

    @property
    def num_documents(self) -> int:
        """Documents so far."""
        return self._writer.num_documents + len(self._batch)

    def add(self, document: bytes) -> None:
        """Appends one document as it lies in a shard: tag, letters, end-of-document byte."""
        if document.startswith(_TAG_MARK):
            tag = document[: document.index(_TAG_MARK, 1) + 1]
            self._count_tag(tag, len(document) - len(tag) - 1)
            self._batch_tags += np.bincount(np.frombuffer(tag, dtype=np.uint8), minlength=256)
        self._batch.append(document)
        self._batch_bytes += len(document)
        if self._batch_bytes >= _BATCH_BYTES:
            self._write_batch()

    def add_in_pieces(self, tag: bytes, pieces: Iterable[bytes], num_bases: int) -> None:
        """Appends one document of any length, as it comes.

        Args:
            tag: with its marks, or empty.
            pieces: its letters.
            num_bases: how many they are.
        """
        self._write_batch()
        if tag:
            self._count_tag(tag, num_bases)
        self._writer.add_in_pieces(pieces, tag)

    def finish(self, num_duplicates: int = 0, duplicate_bases: int = 0) -> ShardEntry:
        """Completes the shard.

        Args:
            num_duplicates: documents that were left out of it because another one has their letters.
            duplicate_bases: letters in them.
        """
        self._write_batch()
        self._writer.close()
        if self._tags:
            write_tags(tags_path(self.prefix), self._tags)
        else:
            tags_path(self.prefix).unlink(missing_ok=True)
        shard = ShardDescription(
            source=self._source,
            split=self._split,
            settings_sha256=self._settings_sha256,
            longest_document_bytes=self._writer.longest_document_bytes,
            num_duplicates=num_duplicates,
            duplicate_bases=duplicate_bases,
        )
        manifest = self._writer.write_manifest([], None, {}, shard)
        return ShardEntry.of(self.prefix.name, manifest)

    def _count_tag(self, tag: bytes, num_bases: int) -> None:
        add_tags(self._tags, {tag.decode("ascii"): TagCount(1, num_bases)})

    def _write_batch(self) -> None:
        if not self._batch:
            return
        stream = np.frombuffer(b"".join(self._batch), dtype=np.uint8)
        self._writer.add_documents(stream, [len(document) for document in self._batch], self._batch_tags)
        self._batch, self._batch_bytes = [], 0
        self._batch_tags[:] = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.discard()


def find_shard(prefix: Path, settings_sha256: str, newest_input: float) -> ShardEntry | None:
    """A shard that was finished before, from these settings and inputs.

    Args:
        prefix: of the shard.
        settings_sha256: what decides its bytes.
        newest_input: when the last of its inputs was modified, in seconds since 1970.

    Returns:
        Its entry; None where there is no such shard, or an input was modified after it.
    """
    try:
        manifest = read_manifest(prefix)
    except DataError:
        return None
    shard = manifest.shard
    if shard is None or shard.settings_sha256 != settings_sha256:
        return None
    entry = ShardEntry.of(prefix.name, manifest)
    is_current = entry.is_whole(prefix.parent) and manifest_path(prefix).stat().st_mtime >= newest_input
    return entry if is_current else None


def remove_shard(prefix: Path) -> None:
    """Removes a shard, its manifest first."""
    for path in (manifest_path(prefix), data_path(prefix), index_path(prefix), tags_path(prefix)):
        path.unlink(missing_ok=True)
