"""Patch boundaries for a whole dataset, stored beside it, with the patcher that found them.

The entropy model is fitted on the training stream alone. That stream is then cut by models that have not
seen it: it is divided into `folds` stretches, and each is read with the model of the others. Validation and
test are read with the model of the whole, which has not seen them either. The rule is calibrated on
the training stream's out-of-fold entropies, so patches have the same mean length on new sequence.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.data.boundaries import BoundaryWriter, boundary_prefix, write_annotation_manifest
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.folds import fold_edges, stretches_of_folds
from hyena_blt_savanna.data.indexed import IndexedReader, data_path
from hyena_blt_savanna.data.manifest import (
    STRANDS,
    AnnotationManifest,
    Strand,
    manifest_path,
    read_annotation_manifest,
    read_manifest,
)
from hyena_blt_savanna.data.splits import SPLIT_NAMES
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.calibration import Calibration, calibrate
from hyena_blt_savanna.patching.cutting import PatchCutter, cut
from hyena_blt_savanna.patching.entropy_models import EntropyModel, EntropyModelError, StreamEntropies
from hyena_blt_savanna.patching.marks import place_after
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import BudgetRule, PatchRule, PatchRuleConfig

logger = logging.getLogger(__name__)

_CHUNK_BASES = 1 << 22
_SAMPLE_BASES = 1 << 16


class AnnotationConfig(Config):
    """How a dataset is cut into patches."""

    data: Path
    """Folder of the dataset: train, and validation and test where there are any."""
    name: str = Field("patches", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the annotation: the files are SPLIT.NAME.bin and so on, the patcher is NAME.patcher."""
    entropy_model: NgramConfig | None = NgramConfig()
    """null for a rule that reads no entropies."""
    rule: PatchRule = BudgetRule(kind="budget")
    """Its limit is null where `mean_patch_bases` is given."""
    mean_patch_bases: float | None = Field(None, gt=1)
    """Wanted mean length on new sequence; null: the rule has its limit already."""
    folds: int = Field(8, ge=2)
    """Stretches of the training stream that are each read with a model of the others."""
    both_strands: bool = True
    """Whether the reverse strand is cut too; false for RNA."""
    calibration_bases: int = Field(4_000_000, ge=1000)
    """Bases of the training stream, spread evenly, that the rule is calibrated on."""

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.rule.needs_entropies and self.entropy_model is None:
            raise ValueError(f"rule {self.rule.kind!r} reads entropies: set entropy_model, or use static or byte")
        if not self.rule.needs_entropies:
            if self.mean_patch_bases is not None:
                raise ValueError(
                    f"the rule {self.rule.kind} is not calibrated: set mean_patch_bases to null, and the length in "
                    "rule.patch_bases of static"
                )
        elif (self.mean_patch_bases is None) == (self.rule.limit_nats is None):
            raise ValueError(
                f"give rule {self.rule.kind!r} either a limit in nats or mean_patch_bases to find one, and not both"
            )
        return self


class Stretch(NamedTuple):
    """Bases [start, stop) of a stream, and what gives them their entropies."""

    start: int
    stop: int
    entropies: StreamEntropies | None


def annotate_dataset(config: AnnotationConfig) -> dict[str, AnnotationManifest]:
    """Fits, calibrates, and writes the boundaries of all splits; does nothing where that is done already.

    Args:
        config: dataset, entropy model and rule.

    Returns:
        The manifest of each split's annotation.

    Raises:
        DataError: there is no training data, or a file can't be read.
        NgramError: the training data are too short for the entropy model.
        PatchRuleError: the wanted mean length can't be reached.
        DiskFullError: the disk is full; what is there is whole, and annotating again finishes the rest.
    """
    splits = [name for name in SPLIT_NAMES if manifest_path(config.data / name).is_file()]
    if "train" not in splits:
        raise DataError(f"{manifest_path(config.data / 'train')}: no such file; prepare the data first")
    settings = {"settings": _settings(config), "train_sha256": read_manifest(config.data / "train").data_sha256}
    manifests = _find_annotated(config, splits, settings)
    if manifests:
        logger.info("%s: already cut into patches with these settings", config.data)
        return manifests

    train = IndexedReader(config.data / "train")
    edges = fold_edges(len(train.stream), config.folds)
    model: EntropyModel | None = None
    by_fold: Sequence[StreamEntropies | None] = [None] * config.folds
    if config.entropy_model is not None:
        logger.info("fitting %s on %s bases", config.entropy_model, f"{len(train.stream):,}")
        model, by_fold = config.entropy_model.fit_out_of_fold(train.stream, edges)
    rule, report = _calibrated(config, train, edges, model, by_fold)
    patcher = Patcher(model, rule)
    patcher.save(patcher_folder(config.data, config.name))
    written: dict[str, AnnotationManifest] = {}
    for split in splits:
        folds = (edges, by_fold) if split == "train" else None
        written[split] = _annotate(config, split, patcher, folds, settings | report)
    return written


def patcher_folder(data: Path, name: str) -> Path:
    """Where the patcher of an annotation lies."""
    return data / f"{name}.patcher"


def fold_stretches(
    reader: IndexedReader, strand: Strand, edges: Sequence[int], by_fold: Sequence[StreamEntropies | None]
) -> list[Stretch]:
    """The stretches of one strand that each are read with one fold's model.

    Args:
        reader: the dataset.
        strand: which strand.
        edges: borders of the folds on the forward stream, from 0 to its length.
        by_fold: what gives each fold its entropies.
    """
    return [Stretch(start, stop, by_fold[fold]) for start, stop, fold in stretches_of_folds(reader, strand, edges)]


def _calibrated(
    config: AnnotationConfig,
    train: IndexedReader,
    edges: Sequence[int],
    model: EntropyModel | None,
    by_fold: Sequence[StreamEntropies | None],
) -> tuple[PatchRuleConfig, dict[str, Any]]:
    """The rule with its limit, and what is to be known of how it was found."""
    if model is None or config.mean_patch_bases is None:
        return config.rule, {}
    reader = StrandReader(train, "forward")
    pieces, out_of_fold, in_sample = [], [], []
    for (start, stop), fold in zip(itertools.pairwise(edges), by_fold, strict=True):
        for position in _sample_starts(start, stop, config.calibration_bases // config.folds):
            stretch = Stretch(position, min(position + _SAMPLE_BASES, stop), fold)
            for bases, nats in _read(reader, stretch):
                pieces.append(bases)
                out_of_fold.append(nats)
            in_sample += [nats for _, nats in _read(reader, stretch._replace(entropies=model))]
    bases = np.concatenate(pieces)
    rule, found = calibrate(config.rule, bases, np.concatenate(out_of_fold), config.mean_patch_bases)
    in_sample_mean = len(bases) / len(cut(bases, np.concatenate(in_sample), rule))
    logger.info(
        "%s: limit %.4f nats; mean patch %.3f bases out of fold, %.3f in sample",
        rule.kind,
        found.limit_nats,
        found.mean_bases,
        in_sample_mean,
    )
    return rule, _report(found, in_sample_mean)


def _report(found: Calibration, in_sample_mean_bases: float) -> dict[str, Any]:
    return found.to_dict() | {"in_sample_mean_bases": in_sample_mean_bases}


def _sample_starts(start: int, stop: int, num_bases: int) -> list[int]:
    """Where the samples of a fold begin: back to back where it has no more than `num_bases`, else spread evenly."""
    wanted = max(1, num_bases // _SAMPLE_BASES)
    step = max(_SAMPLE_BASES, (stop - start) // wanted)
    return list(range(start, stop, step))


def _annotate(
    config: AnnotationConfig,
    split: str,
    patcher: Patcher,
    folds: tuple[Sequence[int], Sequence[StreamEntropies | None]] | None,
    report: dict[str, Any],
) -> AnnotationManifest:
    """Cuts both strands of a split."""
    prefix = config.data / split
    data = IndexedReader(prefix)
    writers = []
    with ExitStack() as stack:
        for strand in STRANDS if config.both_strands else STRANDS[:1]:
            stretches = [Stretch(0, len(data.stream), patcher.entropy_model)]
            if folds is not None:
                stretches = fold_stretches(data, strand, *folds)
            writer = stack.enter_context(
                BoundaryWriter(prefix, config.name, strand, longest_patch_bases=patcher.rule.max_patch_bases)
            )
            _cut_strand(StrandReader(data, strand), stretches, PatchCutter(patcher.rule), writer)
            writers.append(writer)
    for writer in writers:
        found = writer.statistics
        logger.info(
            "%s, %s strand: %s patches of %.3f bases", prefix, writer.strand, f"{found.num_patches:,}", found.mean_bases
        )
    description = patcher.describe()
    return write_annotation_manifest(
        prefix, config.name, writers, patcher.rule.to_dict(), report, description.entropy_model
    )


def _cut_strand(
    reader: StrandReader, stretches: Sequence[Stretch], cutter: PatchCutter, writer: BoundaryWriter
) -> None:
    for stretch in stretches:
        for bases, nats in _read(reader, stretch):
            writer.add(cutter.cut(bases, nats))
    writer.add(cutter.finish())


def _read(reader: StrandReader, stretch: Stretch) -> Iterator[tuple[Bytes, NDArray[np.float32]]]:
    """Bases of a stretch in chunks, and their entropies as if the document had been read from its start."""
    stepper = None
    if stretch.entropies is not None:
        document_start = int(reader.document_starts[reader.document_at(stretch.start)])
        begin = max(document_start, stretch.start - stretch.entropies.context_bases)
        stepper = stretch.entropies.stepper(place_after(_chunks(reader, document_start, begin)))
        stepper.read(reader.read(begin, stretch.start))
    for bases in _chunks(reader, stretch.start, stretch.stop):
        yield bases, stepper.read(bases) if stepper is not None else np.zeros(0, dtype=np.float32)


def _chunks(reader: StrandReader, start: int, stop: int) -> Iterator[Bytes]:
    for begin in range(start, stop, _CHUNK_BASES):
        yield reader.read(begin, min(begin + _CHUNK_BASES, stop))


def _settings(config: AnnotationConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("data", "name")}


def _find_annotated(
    config: AnnotationConfig, splits: Sequence[str], settings: dict[str, Any]
) -> dict[str, AnnotationManifest] | None:
    """The manifests of an earlier annotation of these data with these settings, if all of it is there."""
    manifests = {}
    try:
        described = Patcher.load(patcher_folder(config.data, config.name)).describe()
        for split in splits:
            prefix = config.data / split
            found = manifests[split] = read_annotation_manifest(prefix, config.name)
            strands = STRANDS if config.both_strands else STRANDS[:1]
            whole = all(data_path(boundary_prefix(prefix, config.name, strand)).is_file() for strand in strands)
            same = settings.items() <= found.calibration.items() and found.entropy_model == described.entropy_model
            if not whole or not same or found.rule != described.rule.to_dict():
                return None
    except (DataError, ConfigError, EntropyModelError) as error:
        logger.debug("%s: to be cut into patches: %s", config.data, error)
        return None
    return manifests
