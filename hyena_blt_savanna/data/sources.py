"""What a source is made of, whatever it lies in: a source's folder, a folder of datasets, or one dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hyena_blt_savanna.data.corpus.alphabets import ALPHABETS
from hyena_blt_savanna.data.corpus.source import ShardEntry, is_source, read_source
from hyena_blt_savanna.data.corpus.source_annotation import read_source_annotation, shards_sha256
from hyena_blt_savanna.data.entropy_model_description import EntropyModelDescription
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import (
    Strand,
    StrandStatistics,
    manifest_path,
    read_annotation_manifest,
    read_manifest,
)
from hyena_blt_savanna.data.shards import Shard, ShardList

_SINGLE_BASES: Mapping[Strand, int] = {"forward": 1, "reverse": 1}


@dataclass(frozen=True)
class Source:
    """A source as its manifests know it; none of its shards is open.

    Attributes:
        path: where it was found.
        folder: holds its patcher.
        train: what is trained on.
        validation: what is validated on; None: nothing.
        has_reverse_strand: whether its alphabet has one.
        data_sha256: digest of what is trained on.
        cut_by: rule and entropy model that its patches were cut by; None: each base is a patch.
        mean_patch_bases: over all its forward strands; 1 where each base is a patch.
    """

    path: Path
    folder: Path
    train: ShardList
    validation: ShardList | None
    has_reverse_strand: bool
    data_sha256: str
    cut_by: tuple[dict[str, Any], EntropyModelDescription | None] | None
    mean_patch_bases: float

    def strands(self, wanted: Literal["both", "forward"]) -> Literal["both", "forward"]:
        """The strands that are trained on: of what has no reverse strand the forward one, whatever is wanted.

        Raises:
            DataError: both are wanted and there are two, but the reverse one has no boundaries.
        """
        if wanted == "forward" or not self.has_reverse_strand:
            return "forward"
        if "reverse" not in self.train.longest_patch_bases:
            raise DataError(
                f"{self.path}: {self.train.annotation} has no boundaries of the reverse strand: annotate the data "
                "again with both_strands=true, or set data.strands=forward"
            )
        return "both"


def find_source(path: Path, annotation: str | None) -> Source:
    """Reads the manifests of a source.

    Args:
        path: of a source's folder, of a folder with train.bin, or of a dataset without its suffix.
        annotation: name of the patch boundaries; None: each base a patch.

    Raises:
        DataError: there is no source, a manifest can't be read, or the boundaries are missing or of other data.
    """
    if is_source(path):
        return _of_shards(path, annotation)
    if manifest_path(path / "train").is_file():
        return _of_datasets(path, path, path / "train", path / "validation", annotation)
    if manifest_path(path).is_file():
        return _of_datasets(path, path.parent, path, None, annotation)
    raise DataError(
        f"{path}: neither the folder of a source (source.json) or of a dataset (train.manifest.json) nor a dataset "
        f"({manifest_path(path).name}): prepare it (tools/prepare_genomes.py), or correct the path"
    )


def _of_shards(folder: Path, annotation: str | None) -> Source:
    manifest = read_source(folder)
    longest, cut_by, mean = _SINGLE_BASES, None, 1.0
    if annotation is not None:
        found = read_source_annotation(folder, annotation, manifest)
        longest, cut_by, mean = _longest(found.statistics), (found.rule, found.entropy_model), _mean(found.statistics)

    def shards_of(split: Literal["train", "validation"]) -> ShardList | None:
        entries = manifest.splits.get(split)
        return ShardList(folder, _shards(folder, entries), annotation, longest) if entries else None

    train = shards_of("train")
    assert train is not None, "no source is written without training data"
    return Source(
        path=folder,
        folder=folder,
        train=train,
        validation=shards_of("validation"),
        has_reverse_strand=ALPHABETS[manifest.alphabet].has_reverse_strand,
        data_sha256=shards_sha256(manifest.splits["train"]),
        cut_by=cut_by,
        mean_patch_bases=mean,
    )


def _shards(folder: Path, entries: list[ShardEntry]) -> tuple[Shard, ...]:
    return tuple(Shard(folder / entry.name, entry.num_bytes, entry.num_documents) for entry in entries)


def _of_datasets(path: Path, folder: Path, train: Path, validation: Path | None, annotation: str | None) -> Source:
    found = read_annotation_manifest(train, annotation) if annotation is not None else None
    has_validation = validation is not None and manifest_path(validation).is_file()
    return Source(
        path=path,
        folder=folder,
        train=_list_of_one(path, train, annotation),
        validation=_list_of_one(path, validation, annotation) if validation is not None and has_validation else None,
        has_reverse_strand=True,
        data_sha256=read_manifest(train).data_sha256,
        cut_by=None if found is None else (found.rule, found.entropy_model),
        mean_patch_bases=1.0 if found is None else _mean(found.statistics),
    )


def _list_of_one(path: Path, prefix: Path, annotation: str | None) -> ShardList:
    manifest = read_manifest(prefix)
    longest = _SINGLE_BASES
    if annotation is not None:
        longest = _longest(read_annotation_manifest(prefix, annotation).statistics)
    return ShardList(path, (Shard(prefix, manifest.num_bytes, manifest.num_documents),), annotation, longest)


def _longest(statistics: Mapping[Strand, StrandStatistics]) -> Mapping[Strand, int]:
    return {strand: found.max_bases for strand, found in statistics.items()}


def _mean(statistics: Mapping[Strand, StrandStatistics]) -> float:
    return statistics["forward"].mean_bases
