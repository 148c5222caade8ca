"""NAME.source.json: what opening the patch boundaries of a whole source takes, in one file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from hyena_blt_savanna.data.corpus.source import ShardEntry, SourceManifest
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import ManifestOfBoundaries, StrandStatistics
from hyena_blt_savanna.data.manifest_files import read_manifest_file, write_manifest_file

FORMAT_VERSION = 1


class SourceAnnotation(ManifestOfBoundaries):
    """Written last, when all shards have their boundaries."""

    format_version: int = FORMAT_VERSION
    source: str
    num_shards: int


def shards_sha256(shards: Iterable[ShardEntry]) -> str:
    """Digest of shards, in order."""
    return hashlib.sha256("".join(shard.data_sha256 for shard in shards).encode()).hexdigest()


def total_statistics(found: Sequence[StrandStatistics]) -> StrandStatistics:
    """The statistics of several streams together."""
    histogram: Counter[int] = Counter()
    for statistics in found:
        histogram.update(statistics.histogram)
    num_patches = histogram.total()
    return StrandStatistics(
        num_patches=num_patches,
        mean_bases=sum(length * num for length, num in histogram.items()) / num_patches,
        min_bases=min(histogram),
        max_bases=max(histogram),
        histogram=dict(sorted(histogram.items())),
    )


def source_annotation_path(folder: Path, name: str) -> Path:
    """FOLDER/NAME.source.json."""
    return folder / f"{name}.source.json"


def read_source_annotation(folder: Path, name: str, source: SourceManifest) -> SourceAnnotation:
    """The boundaries of a source, checked against its data.

    Args:
        folder: of the source.
        name: of the annotation.
        source: the source's manifest.

    Raises:
        DataError: there are none, they can't be read, or they belong to other data.
    """
    path = source_annotation_path(folder, name)
    remedy = "annotate the source (tools/annotate_patches.py)"
    found = read_manifest_file(SourceAnnotation, path, FORMAT_VERSION, remedy)
    if found.data_sha256 != shards_sha256(source.shards()):
        raise DataError(f"{path} belongs to other shards than source.json lists: {remedy} again")
    return found


def write_source_annotation(folder: Path, annotation: SourceAnnotation) -> None:
    """Writes NAME.source.json.

    Raises:
        DiskFullError: the disk is full.
    """
    write_manifest_file(source_annotation_path(folder, annotation.name), annotation)
