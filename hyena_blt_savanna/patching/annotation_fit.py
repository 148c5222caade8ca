"""Fits an entropy model out of fold, and calibrates a rule with it: what comes before the cutting."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.calibration import Calibration, calibrate, drift
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.entropy_models import (
    EntropyModel,
    EntropyModelError,
    StreamEntropies,
    kind_of,
    learned_digests,
    read_about,
)
from hyena_blt_savanna.patching.marks import IN_UNKNOWN_RUN, PLACE, states_before
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import PatchRuleConfig
from hyena_blt_savanna.patching.stored_models import StoredModelConfig
from hyena_blt_savanna.patching.stretches import JudgedStretch, read_judged
from hyena_blt_savanna.patching.training_stream import TrainingStream

logger = logging.getLogger(__name__)


class FittedPatcher(NamedTuple):
    """All that cutting takes.

    Attributes:
        patcher: of new sequence.
        by_fold: what gives each fold of the training stream its entropies.
        report: how the rule's limit was found, or how far patches drift here.
    """

    patcher: Patcher
    by_fold: Sequence[StreamEntropies | None]
    report: dict[str, Any]


def fit_patcher(
    config: AnnotationConfig,
    train: TrainingStream,
    train_sha256: str,
    edges: Sequence[int],
    fit_bases: int | None = None,
) -> FittedPatcher:
    """Fits or reads the entropy model, and calibrates the rule.

    Args:
        config: entropy model and rule.
        train: the training data.
        train_sha256: their digest.
        edges: borders of the folds.
        fit_bases: bases that the model is fitted on, spread evenly; None: all.

    Raises:
        NgramError: the training data are too short for the entropy model.
        EntropyModelError: a stored model can't be read, has learned what it should judge, or learns while it reads; or
            entropies should be stored and the patcher has none.
        ConfigError: there is no patcher where one is named, or it can't be read.
        PatchRuleError: the calibration target can't be reached.
    """
    source = _find_source(config, train, train_sha256, edges, fit_bases)
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
    return FittedPatcher(patcher, source.by_fold, report)


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


def _find_source(
    config: AnnotationConfig, train: TrainingStream, train_sha256: str, edges: Sequence[int], fit_bases: int | None
) -> _Source:
    if config.patcher is not None:
        patcher = Patcher.load(config.patcher)
        if train_sha256 in learned_digests(patcher.about):
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
    stream, sample_edges = train.fold_sample(edges, fit_bases)
    logger.info("fitting %s on %s bases", config.entropy_model, f"{len(stream):,}")
    fitted, tables = config.entropy_model.fit_out_of_fold(stream, sample_edges)
    about = {"trained_on": {"data_sha256": train_sha256, "left_out": None}}
    return _Source(fitted, tables, config.rule, about=about)


def _calibrated(
    config: AnnotationConfig, train: TrainingStream, edges: Sequence[int], source: _Source
) -> tuple[Patcher, dict[str, Any]]:
    """The patcher with its limit, and what is to be known of how it was found, or how far it drifts here."""
    model, by_fold, rule, known, about = source
    if model is None or (config.calibrate_to is None and known is None):
        return Patcher(model, rule, known, about), {}
    folds = [JudgedStretch(*bounds, model) for bounds, model in zip(itertools.pairwise(edges), by_fold, strict=True)]
    samples = [sample for fold in folds for sample in train.samples(fold, config.calibration_bases // config.folds)]
    bases, nats = _read_known(samples)
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
    rule, calibration = calibrate(rule, bases, nats, config.calibrate_to, len(train))
    report = calibration.to_dict()
    in_words = f"{rule.kind}: limit {calibration.limit_nats:.4f} nats; mean patch {calibration.mean_bases:.3f} bases"
    if by_fold[0] is model:
        logger.info("%s", in_words)
    else:
        _, in_sample = _read_known([(reader, sample._replace(entropies=model)) for reader, sample in samples])
        report["in_sample_mean_bases"] = len(bases) / len(cut(bases, in_sample, rule))
        logger.info("%s out of fold, %.3f in sample", in_words, report["in_sample_mean_bases"])
    return Patcher(model, rule, calibration, about), report


def _read_known(samples: Iterable[tuple[StrandReader, JudgedStretch]]) -> tuple[Bytes, NDArray[np.float32]]:
    """Bases and entropies of stretches end to end, but for all in a run of unknown letters behind its first.

    Such a run is cut into the longest patches that there may be, and says nothing of those of known bases.
    """
    pieces = [piece for reader, stretch in samples for piece in read_judged(reader, stretch)]
    bases, nats = np.concatenate([bases for bases, _ in pieces]), np.concatenate([nats for _, nats in pieces])
    known = states_before(bases) & PLACE != IN_UNKNOWN_RUN
    return bases[known], nats[known]
