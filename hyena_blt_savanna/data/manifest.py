"""Manifests: what a dataset was made from, and what its patch boundaries were made with."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import hyena_blt_savanna
from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.entropy_model_description import EntropyModelDescription
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest_files import read_manifest_file, write_manifest_file

FORMAT_VERSION = 1
Strand = Literal["forward", "reverse"]
STRANDS: tuple[Strand, Strand] = ("forward", "reverse")


def _is_none(value: object) -> bool:
    return value is None


class InputFile(Config):
    """One FASTA file that a dataset was made from."""

    name: str
    """File name, without its folder."""
    file_sha256: str
    """Digest of the file as it lies on the disk."""
    sequence_sha256: str
    """Digest of its letters alone: upper case, records in file order."""
    num_records: int
    num_bases: int


class Composition(Config):
    """How often each letter occurs, in bases; `lower` counts those of any kind in lower case."""

    A: int = 0
    C: int = 0
    G: int = 0
    T: int = 0
    N: int = 0
    other: int = 0
    lower: int = 0


class SplitDescription(Config):
    """Which part of the inputs a dataset holds."""

    name: Literal["train", "validation", "test"]
    by: Literal["stretch", "record"]
    validation: float
    test: float
    min_bases: int
    num_left_out: int = 0
    """Records that were shorter than `min_bases`, over all parts."""


class ShardDescription(Config):
    """Which shard of a source a dataset is; the source's own manifest, source.json, says what it was made from."""

    source: str
    split: Literal["train", "validation", "test"]
    settings_sha256: str
    """Digest of all that decides the shard's bytes: settings and inputs of the source."""
    longest_document_bytes: int
    num_duplicates: int = 0
    """Documents that were left out because another one has their letters."""
    duplicate_bases: int = 0
    """Letters in them."""


class DatasetManifest(Config):
    """PREFIX.manifest.json, written last: what PREFIX.bin holds."""

    format_version: int = FORMAT_VERSION
    inputs: list[InputFile]
    split: SplitDescription | None = None
    """None for a shard of a source."""
    parts: dict[str, int]
    """Bytes of each part (train, validation, test) that the same preparation wrote."""
    shard: ShardDescription | None = Field(default=None, exclude_if=_is_none)
    """For a shard of a source."""
    num_documents: int
    num_bases: int
    """Letters: without end-of-document bytes and tags."""
    num_bytes: int
    composition: Composition
    data_sha256: str
    versions: dict[str, str]


class StrandStatistics(Config):
    """Lengths of the patches of one strand."""

    num_patches: int
    mean_bases: float
    min_bases: int
    max_bases: int
    histogram: dict[int, int]
    """Number of patches of each length in bases; lengths that don't occur are left out."""


class ManifestOfBoundaries(Config):
    """How patch boundaries were found, and how long the patches are: of one dataset, or of a whole source."""

    name: str
    data_sha256: str
    """Digest of the data that the boundaries belong to: of PREFIX.bin, or of the digests of a source's shards."""
    rule: dict[str, Any]
    calibration: dict[str, Any] = Field(default_factory=dict)
    entropy_model: EntropyModelDescription | None = None
    statistics: dict[Strand, StrandStatistics]
    versions: dict[str, str]

    def summary(self) -> dict[str, Any]:
        """The plain values without the histograms of lengths, for a person to read."""
        values = self.to_dict()
        for statistics in values["statistics"].values():
            del statistics["histogram"]
        return values


class AnnotationManifest(ManifestOfBoundaries):
    """PREFIX.NAME.manifest.json, written last: whose boundaries these are, and how they were found."""

    format_version: int = FORMAT_VERSION
    data_num_bytes: int
    dtype: Literal["uint8", "uint16", "int32"]
    forward_sha256: str
    reverse_sha256: str | None = None
    """None where the reverse strand is not used (RNA)."""
    entropies_sha256: dict[Strand, str] = Field(default_factory=dict)
    """Digest of each strand's stored entropies, where they were stored."""


def manifest_path(prefix: Path) -> Path:
    """PREFIX.manifest.json."""
    return prefix.with_name(prefix.name + ".manifest.json")


def annotation_prefix(prefix: Path, name: str) -> Path:
    """PREFIX.NAME, the prefix of an annotation's forward strand."""
    return prefix.with_name(f"{prefix.name}.{name}")


def read_manifest(prefix: Path) -> DatasetManifest:
    """The manifest of a dataset.

    Args:
        prefix: path of the dataset without its suffix.

    Raises:
        DataError: there is none, it is of another format version, or it can't be read.
    """
    remedy = "prepare the data (tools/prepare_genomes.py)"
    return read_manifest_file(DatasetManifest, manifest_path(prefix), FORMAT_VERSION, remedy)


def read_annotation_manifest(prefix: Path, name: str) -> AnnotationManifest:
    """The manifest of a dataset's patch boundaries, checked against the data's own.

    Args:
        prefix: path of the dataset without its suffix.
        name: name of the annotation.

    Raises:
        DataError: there is none, it is of another format version, or it belongs to other data.
    """
    path = manifest_path(annotation_prefix(prefix, name))
    remedy = "annotate the data (tools/annotate_patches.py)"
    annotation = read_manifest_file(AnnotationManifest, path, FORMAT_VERSION, remedy)
    data = read_manifest(prefix)
    differences = [
        f"{what} {theirs} in the data, {ours} in the boundaries"
        for what, theirs, ours in (
            ("num_bytes", data.num_bytes, annotation.data_num_bytes),
            ("data_sha256", data.data_sha256, annotation.data_sha256),
        )
        if theirs != ours
    ]
    if differences:
        raise DataError(
            f"{path} belongs to other data than {manifest_path(prefix)}: {'; '.join(differences)}; "
            "annotate the data again"
        )
    return annotation


def write_manifest(prefix: Path, manifest: DatasetManifest | AnnotationManifest) -> None:
    """Writes PREFIX.manifest.json; for an annotation PREFIX is `annotation_prefix`.

    Raises:
        DiskFullError: the disk is full.
    """
    write_manifest_file(manifest_path(prefix), manifest)


def current_versions() -> dict[str, str]:
    """Versions of what writes and reads the data."""
    versions = {"hyena_blt_savanna": hyena_blt_savanna.__version__}
    return versions | {name: importlib.metadata.version(name) for name in ("megatron-core", "numpy")}
