"""Patch boundaries for a whole dataset, stored beside it, with the patcher that found them.

The entropy model is fitted on the training stream alone. That stream is then cut by models that have not
seen it: it is divided into `folds` stretches, and each is read with the model of the others. Validation and
test are read with the model of the whole, which has not seen them either. The rule is calibrated on
the training stream's out-of-fold entropies, so patches have the same mean length on new sequence.

Stored models take the fitted ones' place on the same terms (see `stored_models`). A patcher of other data keeps its
limit, unless it is calibrated anew, and how far patches drift from where it was calibrated is told.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.boundaries import BoundaryWriter, boundary_prefix, write_annotation_manifest
from hyena_blt_savanna.data.entropies import EntropyWriter, entropies_prefix
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.fold_edges import fold_edges
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
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.annotation_fit import fit_patcher
from hyena_blt_savanna.patching.cutting import PatchCutter
from hyena_blt_savanna.patching.entropy_models import EntropyModelError, StreamEntropies
from hyena_blt_savanna.patching.patcher import Patcher, PatcherDescription
from hyena_blt_savanna.patching.stretches import JudgedStretch, fold_stretches, read_judged
from hyena_blt_savanna.patching.training_stream import TrainingStream

logger = logging.getLogger(__name__)

_LARGE_DRIFT = 0.1


def annotate_dataset(config: AnnotationConfig) -> dict[str, AnnotationManifest]:
    """Fits, calibrates, and writes the boundaries of all splits; does nothing where that is done already.

    Args:
        config: dataset, entropy model and rule.

    Returns:
        The manifest of each split's annotation.

    Raises:
        DataError: there is no training data, or a file can't be read.
        NgramError: the training data are too short for the entropy model.
        EntropyModelError: a stored model can't be read, has learned what it should judge, or learns while it reads; or
            entropies should be stored and the patcher has none.
        ConfigError: there is no patcher where one is named, or it can't be read.
        PatchRuleError: the calibration target can't be reached.
        DiskFullError: the disk is full; what is there is whole, and annotating again finishes the rest.
    """
    splits = [name for name in SPLIT_NAMES if manifest_path(config.data / name).is_file()]
    if "train" not in splits:
        raise DataError(f"{manifest_path(config.data / 'train')}: no such file; prepare the data first")
    train_sha256 = read_manifest(config.data / "train").data_sha256
    settings = {"settings": config.settings(), "train_sha256": train_sha256, **config.read_from_files()}
    manifests = _find_annotated(config, splits, settings)
    if manifests:
        logger.info("%s: already cut into patches with these settings", config.data)
        return manifests

    train = TrainingStream([config.data / "train"], [read_manifest(config.data / "train").num_bytes])
    edges = fold_edges(len(train), config.folds)
    fitted = fit_patcher(config, train, train_sha256, edges)
    fitted.patcher.save(patcher_folder(config.data, config.name))
    written: dict[str, AnnotationManifest] = {}
    for split in splits:
        folds = (edges, fitted.by_fold) if split == "train" else None
        written[split] = annotate_shard(config, config.data / split, fitted.patcher, folds, settings | fitted.report)
    return written


def patcher_folder(data: Path, name: str) -> Path:
    """Where the patcher of an annotation lies."""
    return data / f"{name}.patcher"


class _Writers(NamedTuple):
    """What is written of one strand."""

    boundaries: BoundaryWriter
    entropies: EntropyWriter | None


Folds = tuple[Sequence[int], Sequence[StreamEntropies | None]]
"""Borders of the folds of a stream, from 0 to its length, and what gives each of them its entropies."""


def annotate_shard(
    config: AnnotationConfig, prefix: Path, patcher: Patcher, folds: Folds | None, report: dict[str, Any]
) -> AnnotationManifest:
    """Cuts the strands of one dataset.

    Args:
        config: what is written, and under which name.
        prefix: path of the dataset without its suffix.
        patcher: of new sequence.
        folds: of training data; None for others.
        report: what the manifest is to say of how the rule's limit was found.

    Raises:
        DataError: the dataset can't be read.
        DiskFullError: the disk is full.
    """
    data = IndexedReader(prefix)
    writers: dict[Strand, _Writers] = {}
    with ExitStack() as stack:
        for strand in _strands(config):
            stretches = [JudgedStretch(0, len(data.stream), patcher.entropy_model)]
            if folds is not None:
                stretches = fold_stretches(data, strand, *folds)
            boundaries = stack.enter_context(
                BoundaryWriter(prefix, config.name, strand, longest_patch_bases=patcher.rule.max_patch_bases)
            )
            entropies = (
                stack.enter_context(EntropyWriter(prefix, config.name, strand)) if config.store_entropies else None
            )
            writers[strand] = _Writers(boundaries, entropies)
            _cut_strand(StrandReader(data, strand), stretches, PatchCutter(patcher.rule), writers[strand])
    for strand, (boundaries, _) in writers.items():
        found = boundaries.statistics
        logger.info(
            "%s, %s strand: %s patches of %.3f bases", prefix, strand, f"{found.num_patches:,}", found.mean_bases
        )
    if patcher.calibration is not None:
        ratio = _mean_of_known(prefix, writers["forward"].boundaries) / patcher.calibration.mean_bases
        report = report | {"mean_bases_ratio": ratio}
        if abs(ratio - 1) > _LARGE_DRIFT:
            logger.warning(
                "%s: patches are %.2f times as long as where the rule was calibrated; calibrate_to finds another limit "
                "for other data",
                prefix,
                ratio,
            )
    return write_annotation_manifest(
        prefix,
        config.name,
        [boundaries for boundaries, _ in writers.values()],
        patcher.rule.to_dict(),
        report,
        patcher.describe().entropy_model,
        {strand: entropies.sha256 for strand, (_, entropies) in writers.items() if entropies is not None},
    )


def _mean_of_known(prefix: Path, boundaries: BoundaryWriter) -> float:
    """Mean length of the patches that are no part of a run of N, but for the ends of such runs."""
    num_unknown = read_manifest(prefix).composition.N
    num_patches = boundaries.statistics.num_patches - num_unknown / boundaries.longest_patch_bases
    return (boundaries.num_bytes - num_unknown) / num_patches


def _cut_strand(
    reader: StrandReader, stretches: Sequence[JudgedStretch], cutter: PatchCutter, writers: _Writers
) -> None:
    for stretch in stretches:
        for bases, nats in read_judged(reader, stretch):
            writers.boundaries.add(cutter.cut(bases, nats))
            if writers.entropies is not None:
                writers.entropies.add(nats)
    writers.boundaries.add(cutter.finish())


def _strands(config: AnnotationConfig) -> Sequence[Strand]:
    return STRANDS if config.both_strands else STRANDS[:1]


def _find_annotated(
    config: AnnotationConfig, splits: Sequence[str], settings: dict[str, Any]
) -> dict[str, AnnotationManifest] | None:
    """The manifests of an earlier annotation of these data with these settings, if all of it is there."""
    manifests = {}
    try:
        described = Patcher.load(patcher_folder(config.data, config.name)).describe()
    except (DataError, ConfigError, EntropyModelError) as error:
        logger.debug("%s: to be cut into patches: %s", config.data, error)
        return None
    for split in splits:
        found = find_annotated(config, config.data / split, described, settings)
        if found is None:
            return None
        manifests[split] = found
    return manifests


def find_annotated(
    config: AnnotationConfig, prefix: Path, patcher: PatcherDescription, settings: dict[str, Any]
) -> AnnotationManifest | None:
    """The manifest of an earlier annotation of one dataset, if it was made just so and all of it is there.

    Args:
        config: what is written, and under which name.
        prefix: path of the dataset without its suffix.
        patcher: that it must have been cut with.
        settings: what the manifest must say of how the rule's limit was found.
    """
    try:
        found = read_annotation_manifest(prefix, config.name)
    except DataError as error:
        logger.debug("%s: to be cut into patches: %s", prefix, error)
        return None
    whole = all(data_path(path).is_file() for path in _strand_files(config, prefix))
    same = settings.items() <= found.calibration.items() and found.entropy_model == patcher.entropy_model
    return found if whole and same and found.rule == patcher.rule.to_dict() else None


def _strand_files(config: AnnotationConfig, prefix: Path) -> list[Path]:
    files = [boundary_prefix(prefix, config.name, strand) for strand in _strands(config)]
    if config.store_entropies:
        files += [entropies_prefix(prefix, config.name, strand) for strand in _strands(config)]
    return files
