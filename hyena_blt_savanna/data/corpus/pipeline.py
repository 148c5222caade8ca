"""Makes a source: inputs to shards to source.json, by one process or by many.

Every step is done by whoever has time for it, and what is finished is known by its manifest. So the result is the same
bytes whatever the number of processes, and after an interruption the same command goes on.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Sequence

from hyena_blt_savanna.data.corpus.cleaning import CleaningCounts
from hyena_blt_savanna.data.corpus.inputs import InputError
from hyena_blt_savanna.data.corpus.plan import SourceConfig, SourcePlan
from hyena_blt_savanna.data.corpus.shards import find_shard, remove_shard
from hyena_blt_savanna.data.corpus.shuffled import spill_input, write_bucket
from hyena_blt_savanna.data.corpus.source import (
    InputReport,
    ShardEntry,
    SourceManifest,
    is_source,
    read_source,
    source_path,
    write_source,
)
from hyena_blt_savanna.data.corpus.straight import write_input, write_report
from hyena_blt_savanna.data.corpus.tags import TagCount, add_tags, read_tags, tags_path, write_tags
from hyena_blt_savanna.data.corpus.work_sharing import Alone, Workers
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import current_versions, manifest_path, read_manifest
from hyena_blt_savanna.data.splits import SPLIT_NAMES, SplitName

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"^(?P<prefix>(train|validation|test)(-\d{5}){1,2})\.manifest\.json$")


def prepare_source(config: SourceConfig, workers: Workers | None = None) -> SourceManifest:
    """Makes a source, or what is missing of it.

    Args:
        config: how, and from what.
        workers: the processes that make this call together; None: this one alone.

    Returns:
        The source's manifest, on every rank.

    Raises:
        InputError: an input can't be read; what is finished stays.
        DataError: there is nothing to train on, or the folder holds another source.
        DiskFullError: the disk is full; what is finished stays.
    """
    workers = workers or Alone()
    plan = config.plan()
    # What one rank finds, all go by.
    [(found, is_complete)] = workers.share([1], lambda _: _read_old(plan))
    if found is not None and is_complete:
        return found
    workers.share([1], lambda _: _begin(plan, found))
    reports, shards = _shuffled(plan, workers) if config.shuffle else _straight(plan, workers)
    [manifest] = workers.share([1], lambda _: _finish(plan, reports, shards))
    return manifest


def _read_old(plan: SourcePlan) -> tuple[SourceManifest | None, bool]:
    """The manifest of the source as it was made before, if it was made just so, and whether its shards are there."""
    if not is_source(plan.output):
        return None, False
    try:
        found = read_source(plan.output)
    except DataError as error:
        logger.warning("%s; preparing again", error)
        return None, False
    if found.source != plan.config.source:
        raise DataError(
            f"{source_path(plan.output)} is of the source {found.source!r}, not {plan.config.source!r}: "
            "give each source a folder of its own"
        )
    is_current = source_path(plan.output).stat().st_mtime >= plan.newest()
    if not is_current or found.settings_sha256 != plan.settings_sha256:
        return None, False
    missing = [shard.name for shard in found.shards() if not shard.is_whole(plan.output)]
    if missing:
        logger.info("%s: making %s again", plan.output, ", ".join(missing))
    else:
        logger.info("%s: already prepared from these inputs", plan.output)
    return found, not missing


def _begin(plan: SourcePlan, found: SourceManifest | None) -> None:
    """From here on the source is not complete; what is known of its inputs stays known."""
    plan.work.mkdir(parents=True, exist_ok=True)
    if found is not None and not plan.config.shuffle:
        for given, report in zip(plan.inputs, found.inputs, strict=True):
            write_report(plan, given, report)
    source_path(plan.output).unlink(missing_ok=True)


def _shuffled(plan: SourcePlan, workers: Workers) -> tuple[list[InputReport], list[ShardEntry]]:
    buckets = [(split, number) for split, num in plan.num_buckets.items() for number in range(num)]
    prefixes = [plan.shard_prefix(split, number) for split, number in buckets]
    # One rank looks for what is there, so that all agree.
    newest = plan.newest()
    [known] = workers.share([1], lambda _: [find_shard(prefix, plan.settings_sha256, newest) for prefix in prefixes])
    wanted = {
        name: frozenset(
            number for (split, number), shard in zip(buckets, known, strict=True) if split == name and not shard
        )
        for name in plan.num_buckets
    }
    sizes = [given.num_bytes for given in plan.inputs]
    spilled = workers.share(sizes, lambda index: spill_input(plan, plan.inputs[index], wanted))
    reports = [found.report for found in spilled]
    _check_bad_records(plan, reports)

    def shard_of(index: int) -> ShardEntry | None:
        split, number = buckets[index]
        return known[index] or write_bucket(plan, split, number, spilled)

    shards = workers.share([0 if shard else 1 for shard in known], shard_of)
    return reports, [shard for shard in shards if shard is not None]


def _straight(plan: SourcePlan, workers: Workers) -> tuple[list[InputReport], list[ShardEntry]]:
    sizes = [given.num_bytes for given in plan.inputs]
    reports = workers.share(sizes, lambda index: write_input(plan, index))
    _check_bad_records(plan, reports)
    return reports, [shard for report in reports for shard in report.shards]


def _check_bad_records(plan: SourcePlan, reports: Sequence[InputReport]) -> None:
    bad = {report.name: report.counts.bad_records for report in reports if report.counts.bad_records}
    if sum(bad.values()) > plan.config.max_bad_records:
        by_input = ", ".join(f"{name}: {num:,}" for name, num in bad.items())
        raise InputError(
            plan.config.source,
            "",
            f"{sum(bad.values()):,} bad records ({by_input}); max_bad_records allows {plan.config.max_bad_records:,}",
        )


def _finish(plan: SourcePlan, reports: Sequence[InputReport], shards: Sequence[ShardEntry]) -> SourceManifest:
    splits: dict[SplitName, list[ShardEntry]] = {}
    for name in SPLIT_NAMES:
        found = [shard for shard in shards if shard.name.startswith(f"{name}-")]
        if found:
            splits[name] = found
    if "train" not in splits:
        raise DataError(
            f"{plan.output}: nothing to train on: all records of {len(plan.inputs):,} inputs are held out, dropped or "
            f"shorter than cleaning.min_bases ({plan.config.cleaning.min_bases:,})"
        )
    manifest = SourceManifest(
        source=plan.config.source,
        alphabet=plan.config.alphabet,
        settings=plan.settings,
        settings_sha256=plan.settings_sha256,
        inputs=list(reports),
        counts=_count(plan, reports, shards),
        splits=splits,
        num_tags={split: _write_tags_of(plan, split, found) for split, found in splits.items()},
        versions=current_versions(),
    )
    _remove_others(plan, {shard.name for shard in shards})
    write_source(plan.output, manifest)
    shutil.rmtree(plan.work)
    for split, found in splits.items():
        num_bases = sum(shard.num_bases for shard in found)
        logger.info("%s, %s: %d shards, %s bases", plan.output, split, len(found), f"{num_bases:,}")
    return manifest


def _count(plan: SourcePlan, reports: Sequence[InputReport], shards: Sequence[ShardEntry]) -> CleaningCounts:
    """Counts over all inputs; which documents are duplicates is known in the shards only."""
    found = [read_manifest(plan.output / shard.name).shard for shard in shards]
    duplicates = [
        CleaningCounts(duplicates=shard.num_duplicates, duplicate_bases=shard.duplicate_bases)
        for shard in found
        if shard
    ]
    return CleaningCounts.total([*(report.counts for report in reports), *duplicates])


def _write_tags_of(plan: SourcePlan, split: SplitName, shards: Sequence[ShardEntry]) -> int:
    """Adds the tags of a split's shards up; returns how many different ones there are."""
    total: dict[str, TagCount] = {}
    for shard in shards:
        path = tags_path(plan.output / shard.name)
        if path.is_file():
            add_tags(total, read_tags(path))
    if total:
        write_tags(tags_path(plan.output / split), total)
    else:
        tags_path(plan.output / split).unlink(missing_ok=True)
    return len(total)


def _remove_others(plan: SourcePlan, names: set[str]) -> None:
    """Removes shards of an earlier preparation that this one has not."""
    for path in plan.output.glob(manifest_path(plan.output / "*").name):
        shard = _SHARD.match(path.name)
        if shard and shard["prefix"] not in names:
            remove_shard(plan.output / shard["prefix"])
