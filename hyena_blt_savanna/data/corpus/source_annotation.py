"""NAME.source.json: what opening the patch boundaries of a whole source takes, in one file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.data.corpus.source import ShardEntry, SourceManifest
from hyena_blt_savanna.data.entropy_model_description import EntropyModelDescription
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import Strand, StrandStatistics
from hyena_blt_savanna.data.whole_files import write_whole

FORMAT_VERSION = 1


class SourceAnnotation(Config):
    """Written last, when all shards have their boundaries."""

    format_version: int = FORMAT_VERSION
    name: str
    source: str
    data_sha256: str
    """Digest of the digests of the source's shards."""
    num_shards: int
    rule: dict[str, Any]
    calibration: dict[str, Any]
    entropy_model: EntropyModelDescription | None
    statistics: dict[Strand, StrandStatistics]
    """Lengths of the patches of all shards together."""
    versions: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """The plain values without the histograms of lengths, for a person to read."""
        values = self.to_dict()
        for statistics in values["statistics"].values():
            del statistics["histogram"]
        return values


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
    if not path.is_file():
        raise DataError(f"{path}: no such file; {remedy}, which writes it last")
    try:
        tree = json.loads(path.read_bytes())
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if version != FORMAT_VERSION:
            raise DataError(f"{path}: format_version {version}; this code reads {FORMAT_VERSION}: {remedy} again")
        found = SourceAnnotation.parse(tree, str(path))
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise DataError(f"{path}: not a manifest of boundaries: {error}") from error
    if found.data_sha256 != shards_sha256(source.shards()):
        raise DataError(f"{path} belongs to other shards than source.json lists: {remedy} again")
    return found


def write_source_annotation(folder: Path, annotation: SourceAnnotation) -> None:
    """Writes NAME.source.json.

    Raises:
        DiskFullError: the disk is full.
    """
    text = json.dumps(annotation.to_dict(), indent=1) + "\n"
    write_whole(source_annotation_path(folder, annotation.name), text.encode())
