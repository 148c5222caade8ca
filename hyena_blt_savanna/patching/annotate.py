"""Patch boundaries for a whole dataset, stored beside it, with the patcher that found them.

The entropy model is fitted on the training stream alone. That stream is then cut by models that have not
seen it: it is divided into `folds` stretches, and each is read with the model of the others. Validation and
test are read with the model of the whole, which has not seen them either. The rule is calibrated on
the training stream's out-of-fold entropies, so patches have the same mean length on new sequence.

Stored models take the fitted ones' place on the same terms (see `stored_models`). A patcher of other data keeps its
limit, unless it is calibrated anew, and how far patches drift from where it was calibrated is told.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config, ConfigError
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
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.calibration import Calibration, CalibrationTarget, calibrate, drift
from hyena_blt_savanna.patching.cutting import PatchCutter, cut
from hyena_blt_savanna.patching.entropy_models import (
    EntropyModel,
    EntropyModelError,
    StreamEntropies,
    kind_of,
    read_about,
)
from hyena_blt_savanna.patching.marks import IN_UNKNOWN_RUN, PLACE, states_before
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import BudgetRule, PatchRule, PatchRuleConfig
from hyena_blt_savanna.patching.stored_models import StoredModelConfig
from hyena_blt_savanna.patching.stretches import JudgedStretch, fold_stretches, read_judged, sample_stretches

logger = logging.getLogger(__name__)

_LARGE_DRIFT = 0.1


class AnnotationConfig(Config):
    """How a dataset is cut into patches."""

    data: Path
    """Folder of the dataset: train, and validation and test where there are any."""
    name: str = Field("patches", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the annotation: the files are SPLIT.NAME.bin and so on, the patcher is NAME.patcher."""
    entropy_model: Annotated[NgramConfig | StoredModelConfig, Field(discriminator="kind")] | None = NgramConfig()
    """What to fit, or a stored model (see `stored_models`); null for a rule that reads no entropies."""
    rule: PatchRule = BudgetRule(kind="budget")
    """Its limit is null where `calibrate_to` is given."""
    patcher: Path | None = None
    """Folder of a patcher that was made on other data, such as a checkpoint's: in place of entropy_model and rule."""
    calibrate_to: CalibrationTarget | None = None
    """What patches of new sequence should be like; null: the rule, or the patcher, has its limit already."""
    folds: int = Field(8, ge=2)
    """Stretches of the training stream that are each read with a model of the others."""
    both_strands: bool = True
    """Whether the reverse strand is cut too; false for RNA."""
    calibration_bases: int = Field(4_000_000, ge=1000)
    """Bases of the training stream, spread evenly, that the rule is calibrated on."""
    store_entropies: bool = False
    """Whether the entropies are stored beside the boundaries, 2 bytes a base and strand: for data.cuts in training."""

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.patcher is not None:
            given = sorted({"entropy_model", "rule"} & self.model_fields_set)
            if given:
                raise ValueError(f"patcher brings entropy model and rule: leave {' and '.join(given)} out")
            return self
        if self.rule.needs_entropies and self.entropy_model is None:
            raise ValueError(f"rule {self.rule.kind!r} reads entropies: set entropy_model, or use static or byte")
        if not self.rule.needs_entropies:
            if self.calibrate_to is not None:
                raise ValueError(
                    f"the rule {self.rule.kind} is not calibrated: set calibrate_to to null, and the length in rule"
                )
        elif (self.calibrate_to is None) == (self.rule.limit_nats is None):
            raise ValueError(
                f"give rule {self.rule.kind!r} either a limit in nats or calibrate_to to find one, and not both"
            )
        if self.store_entropies and self.entropy_model is None:
            raise ValueError("store_entropies needs an entropy model: set entropy_model")
        return self


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
    settings = {"settings": _settings(config), "train_sha256": train_sha256, **_read_from_files(config)}
    manifests = _find_annotated(config, splits, settings)
    if manifests:
        logger.info("%s: already cut into patches with these settings", config.data)
        return manifests

    train = IndexedReader(config.data / "train")
    edges = fold_edges(len(train.stream), config.folds)
    source = _find_source(config, train, train_sha256, edges)
    if source.model is not None and kind_of(source.model) == "adaptive":
        raise EntropyModelError(
            "an adaptive entropy model learns from all that it reads, and data are cut stretch by stretch: fit an "
            "ngram, or give another patcher"
        )
    if config.store_entropies and source.model is None:
        raise EntropyModelError(
            f"store_entropies is true, and {config.patcher} has no entropy model: give another patcher, or set "
            "store_entropies=false"
        )
    patcher, report = _calibrated(config, train, edges, source)
    patcher.save(patcher_folder(config.data, config.name))
    written: dict[str, AnnotationManifest] = {}
    for split in splits:
        folds = (edges, source.by_fold) if split == "train" else None
        written[split] = _annotate(config, split, patcher, folds, settings | report)
    return written


def patcher_folder(data: Path, name: str) -> Path:
    """Where the patcher of an annotation lies."""
    return data / f"{name}.patcher"


class _Source(NamedTuple):
    """Where entropies come from, and a rule that may lack its limit yet.

    Attributes:
        model: of new sequence; None for a rule that reads no entropies.
        by_fold: what gives each fold of the training stream its entropies.
        rule: as configured, or as it comes with a patcher.
        calibration: what came with a patcher.
        about: what else is known of the model.
    """

    model: EntropyModel | None
    by_fold: Sequence[StreamEntropies | None]
    rule: PatchRuleConfig
    calibration: Calibration | None = None
    about: dict[str, Any] | None = None


def _find_source(config: AnnotationConfig, train: IndexedReader, train_sha256: str, edges: list[int]) -> _Source:
    if config.patcher is not None:
        patcher = Patcher.load(config.patcher)
        if (patcher.about.get("trained_on") or {}).get("data_sha256") == train_sha256:
            raise EntropyModelError(
                f"{config.patcher} was made on these very data: set entropy_model and rule instead of patcher, so that "
                "the training stream is cut out of fold"
            )
        by_fold = [patcher.entropy_model] * config.folds
        return _Source(patcher.entropy_model, by_fold, patcher.rule, patcher.calibration, patcher.about)
    if config.entropy_model is None:
        return _Source(None, [None] * config.folds, config.rule)
    if isinstance(config.entropy_model, StoredModelConfig):
        model, models = config.entropy_model.read(train_sha256, config.folds)
        return _Source(model, models, config.rule, about=read_about(config.entropy_model.path))
    logger.info("fitting %s on %s bases", config.entropy_model, f"{len(train.stream):,}")
    fitted, tables = config.entropy_model.fit_out_of_fold(train.stream, edges)
    about = {"trained_on": {"data_sha256": train_sha256, "left_out": None}}
    return _Source(fitted, tables, config.rule, about=about)


def _calibrated(
    config: AnnotationConfig, train: IndexedReader, edges: Sequence[int], source: _Source
) -> tuple[Patcher, dict[str, Any]]:
    """The patcher with its limit, and what is to be known of how it was found, or how far it drifts here."""
    model, by_fold, rule, known, about = source
    if model is None or (config.calibrate_to is None and known is None):
        return Patcher(model, rule, known, about), {}
    reader = StrandReader(train, "forward")
    folds = [JudgedStretch(*bounds, model) for bounds, model in zip(itertools.pairwise(edges), by_fold, strict=True)]
    samples = [sample for fold in folds for sample in sample_stretches(fold, config.calibration_bases // config.folds)]
    bases, nats = _read_known(reader, samples)
    if config.calibrate_to is None:
        assert known is not None
        found = drift(known, bases, nats, rule)
        logger.info(
            "%s: mean patch %.3f bases here, %.3f where it was calibrated",
            rule.kind,
            found.mean_bases,
            known.mean_bases,
        )
        return Patcher(model, rule, known, about), {"drift": found.to_dict()}
    rule, calibration = calibrate(rule, bases, nats, config.calibrate_to, len(train.stream))
    report = calibration.to_dict()
    in_words = f"{rule.kind}: limit {calibration.limit_nats:.4f} nats; mean patch {calibration.mean_bases:.3f} bases"
    if by_fold[0] is model:
        logger.info("%s", in_words)
    else:
        _, in_sample = _read_known(reader, [sample._replace(entropies=model) for sample in samples])
        report["in_sample_mean_bases"] = len(bases) / len(cut(bases, in_sample, rule))
        logger.info("%s out of fold, %.3f in sample", in_words, report["in_sample_mean_bases"])
    return Patcher(model, rule, calibration, about), report


def _read_known(reader: StrandReader, stretches: Sequence[JudgedStretch]) -> tuple[Bytes, NDArray[np.float32]]:
    """Bases and entropies of stretches end to end, but for all in a run of unknown letters behind its first.

    Such a run is cut into the longest patches that there may be, and says nothing of those of known bases.
    """
    pieces = [piece for stretch in stretches for piece in read_judged(reader, stretch)]
    bases, nats = np.concatenate([bases for bases, _ in pieces]), np.concatenate([nats for _, nats in pieces])
    known = states_before(bases) & PLACE != IN_UNKNOWN_RUN
    return bases[known], nats[known]


class _Writers(NamedTuple):
    """What is written of one strand."""

    boundaries: BoundaryWriter
    entropies: EntropyWriter | None


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


def _settings(config: AnnotationConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("data", "name")}


def _read_from_files(config: AnnotationConfig) -> dict[str, Any]:
    """What the settings name by a path only, and what may be another by now."""
    if config.patcher is not None:
        return {"patcher": Patcher.load(config.patcher).describe().to_dict()}
    if isinstance(config.entropy_model, StoredModelConfig):
        return {"entropy_model_digests": config.entropy_model.digests()}
    return {}


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
            whole = all(data_path(path).is_file() for path in _strand_files(config, prefix))
            same = settings.items() <= found.calibration.items() and found.entropy_model == described.entropy_model
            if not whole or not same or found.rule != described.rule.to_dict():
                return None
    except (DataError, ConfigError, EntropyModelError) as error:
        logger.debug("%s: to be cut into patches: %s", config.data, error)
        return None
    return manifests


def _strand_files(config: AnnotationConfig, prefix: Path) -> list[Path]:
    files = [boundary_prefix(prefix, config.name, strand) for strand in _strands(config)]
    if config.store_entropies:
        files += [entropies_prefix(prefix, config.name, strand) for strand in _strands(config)]
    return files
