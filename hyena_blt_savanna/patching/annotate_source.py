"""Patch boundaries for a whole source: one patcher, and each shard cut with it by whoever has time.

The entropy model is fitted on a sample of the training shards, and out of fold as for a single dataset: the training
shards end to end are divided into folds, and each is read with the model that was fitted without it.
"""

from __future__ import annotations

import logging
from typing import Any

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.corpus.source import SourceManifest, read_source
from hyena_blt_savanna.data.corpus.source_annotation import (
    SourceAnnotation,
    read_source_annotation,
    shards_sha256,
    source_annotation_path,
    total_statistics,
    write_source_annotation,
)
from hyena_blt_savanna.data.corpus.work_sharing import Alone, Workers
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.data.manifest import AnnotationManifest, current_versions
from hyena_blt_savanna.patching.annotate import annotate_shard, find_annotated, patcher_folder
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.annotation_fit import FittedPatcher, fit_patcher
from hyena_blt_savanna.patching.entropy_models import EntropyModelError
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import Patcher, PatcherDescription
from hyena_blt_savanna.patching.stored_models import StoredModelConfig
from hyena_blt_savanna.patching.training_stream import TrainingStream

logger = logging.getLogger(__name__)

Settings = dict[str, Any]


def annotate_source(config: AnnotationConfig, workers: Workers | None = None) -> SourceAnnotation:
    """Fits, calibrates, and writes the boundaries of all shards; what is finished is not done again.

    The bases are never touched.

    Args:
        config: source, entropy model and rule.
        workers: the processes that make this call together; None: this one alone.

    Returns:
        The manifest of the source's boundaries, on every rank.

    Raises:
        DataError: there is no source, a shard can't be read, or the alphabet has no such strand or patches.
        NgramError, EntropyModelError, ConfigError, PatchRuleError: see `annotate_dataset`.
        DiskFullError: the disk is full; what is there is whole, and annotating again finishes the rest.
    """
    workers = workers or Alone()
    source = read_source(config.data)
    config = _fitting(config, source)
    train = source.splits["train"]
    stream = TrainingStream([config.data / shard.name for shard in train], [shard.num_bytes for shard in train])
    edges = fold_edges(len(stream), config.folds)
    train_sha256 = shards_sha256(train)
    settings = {"settings": config.settings() | {"fit_bases": config.fit_bases}, "train_sha256": train_sha256}
    settings |= config.read_from_files()
    [found] = workers.share([1], lambda _: _find_finished(config, source, settings))
    if found is not None:
        return found

    def fit(_: int) -> FittedPatcher:
        source_annotation_path(config.data, config.name).unlink(missing_ok=True)
        fitted = fit_patcher(config, stream, train_sha256, edges, config.fit_bases)
        fitted.patcher.save(patcher_folder(config.data, config.name))
        return fitted

    [fitted] = workers.share([1], fit)
    described = fitted.patcher.describe()
    shards = source.shards()

    def annotate(index: int) -> AnnotationManifest:
        prefix = config.data / shards[index].name
        done = find_annotated(config, prefix, described, settings)
        # The training shards are the first of all.
        folds = stream.folds_of(index, edges, fitted.by_fold) if index < len(train) else None
        return done or annotate_shard(config, prefix, fitted.patcher, folds, settings | fitted.report)

    manifests = workers.share([shard.num_bytes for shard in shards], annotate)
    [annotation] = workers.share([1], lambda _: _finish(config, source, manifests, described, settings | fitted.report))
    return annotation


def _fitting(config: AnnotationConfig, source: SourceManifest) -> AnnotationConfig:
    """The configuration with the strands that the alphabet has.

    Raises:
        DataError: it asks for what the alphabet has not, or for models of folds that no training has left out.
    """
    if source.alphabet == "protein" and config.rule.needs_entropies:
        raise DataError(f"{config.data} holds proteins, and entropy models read bases: use the rule static or byte")
    if isinstance(config.entropy_model, StoredModelConfig) and config.entropy_model.fold_paths:
        raise EntropyModelError(
            f"{config.data} is a source of shards, and models that left a fold out are of a single dataset: leave "
            "entropy_model.fold_paths out, and give a model that was trained on other data"
        )
    if source.alphabet == "dna":
        return config
    if config.both_strands and "both_strands" in config.model_fields_set:
        raise DataError(f"{config.data} holds {source.alphabet}, which has no reverse strand: set both_strands=false")
    changes: dict[str, Any] = {"both_strands": False}
    if isinstance(config.entropy_model, NgramConfig):
        changes["entropy_model"] = config.entropy_model.model_copy(update={"both_strands": False})
    return config.model_copy(update=changes)


def _find_finished(config: AnnotationConfig, source: SourceManifest, settings: Settings) -> SourceAnnotation | None:
    try:
        found = read_source_annotation(config.data, config.name, source)
        described = Patcher.load(patcher_folder(config.data, config.name)).describe()
    except (DataError, ConfigError, EntropyModelError) as error:
        logger.debug("%s: to be cut into patches: %s", config.data, error)
        return None
    if not settings.items() <= found.calibration.items() or found.rule != described.rule.to_dict():
        return None
    shards = [config.data / shard.name for shard in source.shards()]
    if any(find_annotated(config, prefix, described, settings) is None for prefix in shards):
        return None
    logger.info("%s: already cut into patches with these settings", config.data)
    return found


def _finish(
    config: AnnotationConfig,
    source: SourceManifest,
    manifests: list[AnnotationManifest],
    described: PatcherDescription,
    calibration: Settings,
) -> SourceAnnotation:
    strands = manifests[0].statistics
    annotation = SourceAnnotation(
        name=config.name,
        source=source.source,
        data_sha256=shards_sha256(source.shards()),
        num_shards=len(manifests),
        rule=described.rule.to_dict(),
        calibration=calibration,
        entropy_model=described.entropy_model,
        statistics={strand: total_statistics([found.statistics[strand] for found in manifests]) for strand in strands},
        versions=current_versions(),
    )
    write_source_annotation(config.data, annotation)
    return annotation
