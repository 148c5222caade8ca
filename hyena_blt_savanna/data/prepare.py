"""FASTA files to a dataset: train, validation and test in one folder, each with its manifest."""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from pathlib import Path

from pydantic import Field

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.dataset_writer import DatasetWriter
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.fasta import FastaError, no_file, read_fasta
from hyena_blt_savanna.data.indexed import LONGEST_DOCUMENT, data_path, index_path
from hyena_blt_savanna.data.manifest import DatasetManifest, InputFile, SplitDescription, manifest_path, read_manifest
from hyena_blt_savanna.data.splits import SPLIT_NAMES, SplitConfig, SplitName, split_record

logger = logging.getLogger(__name__)


class DataConfig(Config):
    """What a dataset is made from."""

    inputs: list[Path] = Field(min_length=1)
    """FASTA files, plain or gzipped, in the order in which their records are written."""
    output: Path
    """Folder for {train,validation,test}.{bin,idx,manifest.json}."""
    split: SplitConfig = SplitConfig()
    """How records are divided."""
    min_bases: int = Field(default=100, ge=1)
    """Shorter records are left out; a record that would give a shorter stretch goes to training whole."""


def prepare_dataset(config: DataConfig) -> dict[str, DatasetManifest]:
    """Writes a dataset for each split that gets any bases, unless it is there already.

    One pass over the inputs, with one record in memory at a time. The datasets appear when all of them are whole.
    Nothing is done where the manifests say that these inputs, as they lie on the disk, were divided like this.

    Args:
        config: inputs, output folder and split.

    Returns:
        The manifest of each split that was written, by name.

    Raises:
        FastaError: an input can't be read.
        DataError: there is nothing to train on.
        DiskFullError: the disk is full; nothing is left half-written.
    """
    digests = [_file_digest(path) for path in config.inputs]
    manifests = _find_prepared(config, digests)
    if manifests:
        logger.info("%s: already prepared from these inputs", config.output)
        return manifests
    with ExitStack() as stack:
        writers = {name: stack.enter_context(DatasetWriter(config.output / name)) for name in SPLIT_NAMES}
        inputs = []
        num_left_out = 0
        for path, digest in zip(config.inputs, digests, strict=True):
            description, left_out = _add_file(path, digest, config, writers)
            inputs.append(description)
            num_left_out += left_out
        if not writers["train"].num_documents:
            raise DataError(
                f"{', '.join(map(str, config.inputs))}: nothing to train on: {num_left_out:,} records are shorter than "
                f"min_bases ({config.min_bases:,}) and the others are held out; lower min_bases or change split"
            )
        return _finish(config, writers, inputs, num_left_out)


def _finish(
    config: DataConfig, writers: dict[SplitName, DatasetWriter], inputs: list[InputFile], num_left_out: int
) -> dict[str, DatasetManifest]:
    # An older preparation's splits must not be taken for this one's.
    for name in SPLIT_NAMES:
        manifest_path(config.output / name).unlink(missing_ok=True)
    try:
        return _write_splits(config, writers, inputs, num_left_out)
    except BaseException:
        # Some splits without the others are of no use, and may be what fills the disk.
        for name in SPLIT_NAMES:
            for path_of in (manifest_path, data_path, index_path):
                path_of(config.output / name).unlink(missing_ok=True)
        raise


def _write_splits(
    config: DataConfig, writers: dict[SplitName, DatasetWriter], inputs: list[InputFile], num_left_out: int
) -> dict[str, DatasetManifest]:
    parts: dict[str, int] = {name: writer.num_bytes for name, writer in writers.items()}
    manifests: dict[str, DatasetManifest] = {}
    for name, writer in writers.items():
        if not writer.num_documents:
            for path in (data_path(writer.prefix), index_path(writer.prefix)):
                path.unlink(missing_ok=True)
            wanted = {"train": 1.0, "validation": config.split.validation, "test": config.split.test}[name]
            if wanted > 0.0:
                logger.warning(
                    "%s: no record gave any %s data; split by 'record', or lower min_bases", config.output, name
                )
            continue
        writer.close()
    for name, writer in writers.items():
        if writer.num_documents:
            manifests[name] = writer.write_manifest(inputs, _describe_split(config, name, num_left_out), parts)
            logger.info(
                "%s: %s documents, %s bases",
                writer.prefix,
                f"{writer.num_documents:,}",
                f"{manifests[name].num_bases:,}",
            )
    return manifests


def _add_file(
    path: Path, file_sha256: str, config: DataConfig, writers: dict[SplitName, DatasetWriter]
) -> tuple[InputFile, int]:
    """Divides one file's records among the writers; returns its description and the number of records left out."""
    digest = hashlib.sha256()
    num_records = num_bases = num_left_out = 0
    for record in read_fasta(path):
        sequence = record.sequence
        digest.update(sequence.tobytes().upper())
        num_records, num_bases = num_records + 1, num_bases + len(sequence)
        if len(sequence) < config.min_bases:
            num_left_out += 1
            continue
        if len(sequence) >= LONGEST_DOCUMENT:
            raise FastaError(
                path,
                f"record {num_records} ({record.name})",
                None,
                f"{len(sequence):,} bases; {LONGEST_DOCUMENT - 1:,} is the most: cut the record",
            )
        for name, piece in split_record(record.name, len(sequence), config.split, config.min_bases):
            writers[name].add(sequence[piece])
    if num_left_out:
        logger.info("%s: %d records shorter than %d bases left out", path, num_left_out, config.min_bases)
    return (
        InputFile(
            name=path.name,
            file_sha256=file_sha256,
            sequence_sha256=digest.hexdigest(),
            num_records=num_records,
            num_bases=num_bases,
        ),
        num_left_out,
    )


def _describe_split(config: DataConfig, name: SplitName, num_left_out: int) -> SplitDescription:
    split = config.split
    return SplitDescription(
        name=name,
        by=split.by,
        validation=split.validation,
        test=split.test,
        min_bases=config.min_bases,
        num_left_out=num_left_out,
    )


def _find_prepared(config: DataConfig, digests: list[str]) -> dict[str, DatasetManifest] | None:
    """The manifests of an earlier preparation from the same inputs with the same settings, if it is whole."""
    manifests: dict[str, DatasetManifest] = {}
    for name in SPLIT_NAMES:
        prefix = config.output / name
        if not manifest_path(prefix).is_file():
            continue
        try:
            manifests[name] = read_manifest(prefix)
        except DataError as error:
            logger.warning("%s; preparing again", error)
            return None
    if "train" not in manifests:
        return None
    parts = {name: num_bytes for name, num_bytes in manifests["train"].parts.items() if num_bytes}
    wanted = [(path.name, digest) for path, digest in zip(config.inputs, digests, strict=True)]
    for part, manifest in manifests.items():
        path = data_path(config.output / part)
        same = (
            [(found.name, found.file_sha256) for found in manifest.inputs] == wanted
            and manifest.split is not None
            and manifest.split == _describe_split(config, manifest.split.name, manifest.split.num_left_out)
            and index_path(config.output / part).is_file()
            and path.is_file()
            and path.stat().st_size == manifest.num_bytes == parts.get(part)
        )
        if not same:
            return None
    return manifests if manifests.keys() == parts.keys() else None


def _file_digest(path: Path) -> str:
    if not path.is_file():
        raise no_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
