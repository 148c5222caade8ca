"""What a dataset or a source holds: counts, composition, lengths, patches, tags, a sample, and whether it is whole."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hyena_blt_savanna.data.boundaries import boundary_prefix
from hyena_blt_savanna.data.corpus.source import ShardEntry, is_source, read_source, source_path
from hyena_blt_savanna.data.corpus.source_annotation import total_statistics
from hyena_blt_savanna.data.corpus.tags import TagCount, add_tags, read_tags, tags_path
from hyena_blt_savanna.data.corpus.work_sharing import Alone, Workers
from hyena_blt_savanna.data.entropies import entropies_prefix
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import data_path, document_lengths, index_agrees, index_path
from hyena_blt_savanna.data.manifest import (
    AnnotationManifest,
    DatasetManifest,
    Strand,
    StrandStatistics,
    read_annotation_manifest,
    read_manifest,
)
from hyena_blt_savanna.data.splits import SPLIT_NAMES
from hyena_blt_savanna.data.whole_files import PARTIAL_SUFFIX
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT

SHOWN_BASES = 240
_SHOWN_DOCUMENTS = 3
_PIECE_BYTES = 1 << 22


@dataclass
class ShardInspection:
    """One dataset: a split, or a shard of a source.

    Attributes:
        name: its prefix.
        manifest: None where there is none that can be read.
        document_lengths: how many documents have a length of [2^k, 2^(k+1)) bytes, by k.
        annotations: its sets of boundaries, by name.
        problems: what is missing, or is not what its manifest says.
    """

    name: str
    manifest: DatasetManifest | None = None
    document_lengths: Counter[int] = field(default_factory=Counter)
    annotations: dict[str, AnnotationManifest] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass
class DatasetInspection:
    """A dataset, a folder of them, or a source.

    Attributes:
        path: what was asked for.
        about: what it is, in pairs of a word and a value.
        shards: its datasets.
        tags: how often each tag occurs.
        samples: the beginnings of some documents, by place.
        problems: of the whole; those of a shard are with it.
        verified: whether everything was read against checksums.
    """

    path: Path
    about: list[tuple[str, str]]
    shards: list[ShardInspection]
    tags: dict[str, TagCount]
    samples: dict[str, str]
    problems: list[str]
    verified: bool

    @property
    def all_problems(self) -> list[str]:
        """Everything that is wrong."""
        return self.problems + [f"{shard.name}: {problem}" for shard in self.shards for problem in shard.problems]

    @property
    def manifests(self) -> list[DatasetManifest]:
        """Of the datasets that have one."""
        return [shard.manifest for shard in self.shards if shard.manifest is not None]

    def composition(self) -> dict[str, int]:
        """How often each letter occurs in all datasets."""
        total: Counter[str] = Counter()
        for manifest in self.manifests:
            total.update(manifest.composition.to_dict())
        return dict(total)

    def document_lengths(self) -> Counter[int]:
        """How many documents have a length of [2^k, 2^(k+1)) bytes, by k."""
        return sum((shard.document_lengths for shard in self.shards), Counter())

    def patches(self) -> dict[str, dict[Strand, StrandStatistics]]:
        """Lengths of the patches of each set of boundaries, all datasets together."""
        found: dict[str, dict[Strand, list[StrandStatistics]]] = {}
        for shard in self.shards:
            for name, annotation in shard.annotations.items():
                for strand, statistics in annotation.statistics.items():
                    found.setdefault(name, {}).setdefault(strand, []).append(statistics)
        return {
            name: {strand: total_statistics(statistics) for strand, statistics in strands.items()}
            for name, strands in found.items()
        }


def inspect_dataset(path: Path, verify: bool = False, workers: Workers | None = None) -> DatasetInspection:
    """Looks at a dataset, a folder of datasets, or a source.

    Args:
        path: path of a dataset without its suffix, or a folder.
        verify: whether every byte is read against the checksums.
        workers: processes that make this call together; None: this one alone.

    Raises:
        DataError: there is nothing of the kind at the path.
    """
    workers = workers or Alone()
    about: list[tuple[str, str]] = []
    problems: list[str] = []
    entries: dict[str, ShardEntry] = {}
    if path.is_dir() and is_source(path):
        source = read_source(path)
        entries = {shard.name: shard for shard in source.shards()}
        folder, names = path, list(entries)
        counts = {name: count for name, count in source.counts.to_dict().items() if count}
        about = [("source", source.source), ("alphabet", source.alphabet), ("inputs", f"{len(source.inputs):,}")]
        about += [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
    elif path.is_dir():
        folder, names = path, _names_in(path)
        is_unfinished = any("-" in name for name in names)
        if is_unfinished:
            problems.append(f"{source_path(path)} is missing: the source is not finished; prepare it again to go on")
    else:
        folder, names = path.parent, [path.name]
    if not names or not (index_path(folder / names[0]).exists() or data_path(folder / names[0]).exists() or entries):
        raise DataError(f"{path}: no dataset; give a path without suffix, as in FOLDER/train, or a folder of datasets")
    sizes = [_size_of(folder / name) for name in names]
    shards = workers.share(
        sizes, lambda index: _inspect_shard(folder / names[index], verify, entries.get(names[index]))
    )
    problems += [f"{found}: left by an interrupted run" for found in sorted(folder.glob(f"**/*{PARTIAL_SUFFIX}"))]
    tags: dict[str, TagCount] = {}
    for name in names:
        if tags_path(folder / name).is_file():
            add_tags(tags, read_tags(tags_path(folder / name)))
    return DatasetInspection(path, about, shards, tags, _samples(folder, shards), problems, verify)


def _names_in(folder: Path) -> list[str]:
    """Prefixes of the datasets in a folder, boundaries left out."""
    found = {path.name.removesuffix(path.suffix) for path in folder.glob("*.bin")} | {
        path.name.removesuffix(".manifest.json") for path in folder.glob("*.manifest.json")
    }
    names = [name for name in sorted(found) if "." not in name]
    return sorted(names, key=lambda name: [name.split("-")[0] == split for split in SPLIT_NAMES], reverse=True)


def _size_of(prefix: Path) -> int:
    return data_path(prefix).stat().st_size if data_path(prefix).is_file() else 0


def _inspect_shard(prefix: Path, verify: bool, entry: ShardEntry | None) -> ShardInspection:
    shard = ShardInspection(prefix.name)
    again = "remove its manifest and prepare again: nothing else is made anew"
    try:
        shard.manifest = manifest = read_manifest(prefix)
        lengths = document_lengths(prefix)
    except DataError as error:
        shard.problems.append(f"{error}" if entry is None else f"{error}; only this shard is made anew")
        return shard
    exponents, nums = np.unique(np.frexp(lengths)[1] - 1, return_counts=True)
    shard.document_lengths = Counter(dict(zip(exponents.tolist(), nums.tolist(), strict=True)))
    if (len(lengths), int(lengths.sum())) != (manifest.num_documents, manifest.num_bytes):
        shard.problems.append(
            f"its index has {len(lengths):,} documents of {int(lengths.sum()):,} bytes, its manifest "
            f"{manifest.num_documents:,} of {manifest.num_bytes:,}: {again}"
        )
    if entry is not None and entry != ShardEntry.of(prefix.name, manifest):
        shard.problems.append("its manifest is not what source.json says: prepare again")
    if verify and not shard.problems:
        shard.problems += [f"{problem}: {again}" for problem in _verify_data(prefix, manifest, lengths)]
    for path in sorted(prefix.parent.glob(f"{prefix.name}.*.manifest.json")):
        name = path.name.removeprefix(f"{prefix.name}.").removesuffix(".manifest.json")
        try:
            shard.annotations[name] = annotation = read_annotation_manifest(prefix, name)
        except DataError as error:
            shard.problems.append(str(error))
            continue
        shard.problems += [
            f"{problem}: remove {path.name} and annotate again"
            for problem in _check_boundaries(prefix, annotation, verify)
        ]
    return shard


def _verify_data(prefix: Path, manifest: DatasetManifest, lengths: np.ndarray) -> Iterator[str]:
    """Reads index and data once: the digest, and whether documents end where the index says."""
    if not index_agrees(prefix):
        yield f"{index_path(prefix).name} contradicts itself"
        return
    digest = hashlib.sha256()
    ends = np.cumsum(lengths, dtype=np.int64) - 1
    position = num_seen = 0
    with data_path(prefix).open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            found = position + np.flatnonzero(np.frombuffer(piece, dtype=np.uint8) == END_OF_DOCUMENT)
            if not np.array_equal(found, ends[num_seen : num_seen + len(found)]):
                yield f"{index_path(prefix).name} and {data_path(prefix).name} disagree near byte {position:,}"
                return
            position, num_seen = position + len(piece), num_seen + len(found)
    if digest.hexdigest() != manifest.data_sha256:
        yield f"{data_path(prefix).name} is not what its checksum says"


def _check_boundaries(prefix: Path, annotation: AnnotationManifest, verify: bool) -> Iterator[str]:
    digests: dict[Path, str] = {}
    for strand in annotation.statistics:
        digest = annotation.forward_sha256 if strand == "forward" else annotation.reverse_sha256
        digests[boundary_prefix(prefix, annotation.name, strand)] = digest or ""
    for strand, digest in annotation.entropies_sha256.items():
        digests[entropies_prefix(prefix, annotation.name, strand)] = digest
    for path, expected in digests.items():
        if not data_path(path).is_file() or not index_path(path).is_file():
            yield f"{data_path(path).name} or its index is missing"
        elif verify:
            with data_path(path).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    yield f"{data_path(path).name} is not what its checksum says"


def _samples(folder: Path, shards: Sequence[ShardInspection]) -> dict[str, str]:
    """The beginnings of the first documents of the first dataset of each split."""
    samples: dict[str, str] = {}
    seen = set()
    for shard in shards:
        split = shard.name.split("-")[0]
        if shard.manifest is None or shard.problems or split in seen:
            continue
        seen.add(split)
        start = 0
        with data_path(folder / shard.name).open("rb") as file:
            for number, length in enumerate(document_lengths(folder / shard.name)[:_SHOWN_DOCUMENTS].tolist()):
                file.seek(start)
                text = file.read(min(length - 1, SHOWN_BASES)).decode("ascii", errors="replace")
                samples[f"{shard.name}, document {number} of {length - 1:,} bytes"] = text
                start += length
    return samples
