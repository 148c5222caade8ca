"""A source: a folder of shards, and source.json, which says in one file all that is needed to open it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.corpus.alphabets import AlphabetName
from hyena_blt_savanna.data.corpus.cleaning import CleaningCounts
from hyena_blt_savanna.data.indexed import data_path, index_path
from hyena_blt_savanna.data.manifest import DatasetManifest, manifest_path
from hyena_blt_savanna.data.manifest_files import read_manifest_file, write_manifest_file
from hyena_blt_savanna.data.splits import SplitName

FORMAT_VERSION = 1


class ShardEntry(Config):
    """One shard, as far as opening its source needs to know it."""

    name: str
    """Its prefix in the source's folder: the files are NAME.bin, NAME.idx, NAME.manifest.json."""
    num_documents: int
    num_bases: int
    """Letters: without end-of-document bytes, tags and marks."""
    num_bytes: int
    longest_document_bytes: int
    data_sha256: str

    @classmethod
    def of(cls, name: str, manifest: DatasetManifest) -> ShardEntry:
        """The entry of a shard whose manifest this is."""
        assert manifest.shard is not None
        return cls(
            name=name,
            num_documents=manifest.num_documents,
            num_bases=manifest.num_bases,
            num_bytes=manifest.num_bytes,
            longest_document_bytes=manifest.shard.longest_document_bytes,
            data_sha256=manifest.data_sha256,
        )

    def is_whole(self, folder: Path) -> bool:
        """Whether its files are there, with as many bytes as there should be; none is read."""
        prefix = folder / self.name
        path = data_path(prefix)
        return (
            manifest_path(prefix).is_file()
            and index_path(prefix).is_file()
            and path.is_file()
            and path.stat().st_size == self.num_bytes
        )


class InputReport(Config):
    """One input of a source, and what cleaning did to it."""

    name: str
    num_bytes: int
    sha256: str
    """Digest of the file as it lay on the disk, or of its parts one after the other."""
    counts: CleaningCounts
    shards: list[ShardEntry] = Field(default_factory=list)
    """Those that hold this input and no other: where documents were not shuffled."""


class SourceManifest(Config):
    """source.json, written last."""

    format_version: int = FORMAT_VERSION
    source: str
    """The source's name."""
    alphabet: AlphabetName
    """dna, rna or protein; only dna has a reverse strand."""
    settings: dict[str, Any]
    """How it was made: all settings but the places of files."""
    settings_sha256: str
    """Digest of the settings, and of the inputs' names and sizes."""
    inputs: list[InputReport]
    counts: CleaningCounts
    """Over all inputs, and over all splits."""
    splits: dict[SplitName, list[ShardEntry]]
    """The shards of each split that has any, in order."""
    num_tags: dict[SplitName, int]
    """Different tags of each split; SPLIT.tags.tsv lists them where there are any."""
    versions: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """The figures alone, for a person to read."""
        return {
            "source": self.source,
            "alphabet": self.alphabet,
            "num_inputs": len(self.inputs),
            "counts": {name: count for name, count in self.counts.to_dict().items() if count},
            "splits": {
                split: {
                    "num_shards": len(shards),
                    "num_documents": sum(shard.num_documents for shard in shards),
                    "num_bases": sum(shard.num_bases for shard in shards),
                    "num_bytes": sum(shard.num_bytes for shard in shards),
                    "longest_document_bytes": max(shard.longest_document_bytes for shard in shards),
                    "num_tags": self.num_tags[split],
                }
                for split, shards in self.splits.items()
            },
        }

    def shards(self) -> list[ShardEntry]:
        """All shards, split by split."""
        return [shard for shards in self.splits.values() for shard in shards]


def source_path(folder: Path) -> Path:
    """FOLDER/source.json."""
    return folder / "source.json"


def is_source(folder: Path) -> bool:
    """Whether a folder holds a source that is complete."""
    return source_path(folder).is_file()


def read_source(folder: Path) -> SourceManifest:
    """The manifest of a source.

    Args:
        folder: of the source.

    Raises:
        DataError: there is none, it is of another format version, or it can't be read.
    """
    remedy = "prepare the source (tools/prepare_genomes.py)"
    return read_manifest_file(SourceManifest, source_path(folder), FORMAT_VERSION, remedy)


def write_source(folder: Path, manifest: SourceManifest) -> None:
    """Writes source.json.

    Raises:
        DiskFullError: the disk is full.
    """
    write_manifest_file(source_path(folder), manifest)
