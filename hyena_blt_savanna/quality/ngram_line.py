"""The count model as a line of a benchmark: scored on the very bases that the contenders are."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from typing import Any

from hyena_blt_savanna.quality.config import Benchmark, digest_of
from hyena_blt_savanna.quality.datasets import Datasets
from hyena_blt_savanna.quality.results import ResultError, Results, current_commit, describe_versions, write_json
from hyena_blt_savanna.quality.scoring import score_ngram

logger = logging.getLogger(__name__)


def read_ngram_line(benchmark: Benchmark, results: Results, genome: str) -> dict[str, Any] | None:
    """The line of a genome; None if it is not there, or of other settings.

    Raises:
        ResultError: the file can't be read.
    """
    path = results.folder / f"ngram.{genome}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        is_fresh = found["digest"] == _digest(benchmark, genome)
    except (ValueError, KeyError) as error:
        raise ResultError(f"{path}: can't be read: {error!r}; remove it to have it made again") from error
    return found if is_fresh else None


def make_ngram_line(benchmark: Benchmark, results: Results, datasets: Datasets, genome: str) -> None:
    """Fits count models of several orders, and scores the best one on the test windows, unless that is done.

    Raises:
        ValueError: the data or the orders can't be used.
    """
    config = benchmark.config
    if not config.ngram_orders or read_ngram_line(benchmark, results, genome) is not None:
        return
    window_bases = datasets.window_bases(config.baseline)
    held_out = datasets.held_out(genome, window_bases)
    logger.info("%s: n-grams of order %s", genome, ", ".join(map(str, config.ngram_orders)))
    found = score_ngram(
        datasets.folder(genome),
        config.ngram_orders,
        window_bases,
        held_out.validation,
        held_out.test,
        config.held_out.skipped_bases,
    )
    scores = found.pop("scores")
    line = {
        "genome": genome,
        "digest": _digest(benchmark, genome),
        "commit": current_commit(),
        "versions": describe_versions(),
        **found,
        "held_out": held_out.about,
        "test": {
            "bits_per_base": scores.bits_per_base,
            **asdict(scores),
            "nats": [round(nats, 2) for nats in scores.nats],
        },
    }
    write_json(results.folder / f"ngram.{genome}.json", line)
    logger.info("%s: n-gram of order %d, %.4f bits per base", genome, found["order"], scores.bits_per_base)


def _digest(benchmark: Benchmark, genome: str) -> str:
    config = benchmark.config
    window_bases = [stage.get("window_bases") for stage in benchmark.tree(config.baseline)["training"]["stages"]]
    held_out = config.held_out.to_dict()
    return digest_of([config.genomes[genome].split.to_dict(), config.ngram_orders, held_out, genome, window_bases])
