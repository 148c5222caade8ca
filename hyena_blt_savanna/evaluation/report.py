"""The report of a finished run: figures on held-out sequence and on the training, and pictures of both.

RUN/report/report.json
RUN/report/loss.png            training and validation over the steps
RUN/report/patch_lengths.png   how long the patches of the test data are
RUN/report/entropy.png         entropy, boundaries and the model's surprise along a stretch of the test data
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from hyena_blt_savanna.config import Config, merge
from hyena_blt_savanna.data.indexed import IndexedReader, data_path
from hyena_blt_savanna.data.manifest import read_manifest
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.evaluation.bits_per_base import dataset_documents, evaluate_bits_per_base, ngram_bits_per_base
from hyena_blt_savanna.evaluation.native_checkpoint import find_native
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.report_pictures import draw_entropy, draw_loss, draw_patch_lengths
from hyena_blt_savanna.evaluation.scoring import patch_lengths_of, score
from hyena_blt_savanna.evaluation.sealed_folder import read_seal
from hyena_blt_savanna.evaluation.sequences import without_end
from hyena_blt_savanna.patching.ngram import NgramConfig

logger = logging.getLogger(__name__)


class ReportError(ValueError):
    """A run folder that no report can be made of."""


class ReportConfig(Config):
    """What goes into a report."""

    window_bases: PositiveInt | None = None
    """Of the evaluation; null takes the longest window of the training."""
    overlap_bases: PositiveInt | None = None
    """Least context of a scored base; null takes half of a window."""
    batch_windows: PositiveInt = 4
    """Windows of one pass."""
    ngram_order: int = Field(12, ge=0, le=13)
    """Of the baseline, which is fitted on the training data."""
    stretch_bases: PositiveInt = 300
    """Length of the stretch that is drawn."""
    started_unix_seconds: float | None = None
    """When the work began that `total_seconds` measures; null counts training, validation, checkpoints, this report."""


@dataclass(frozen=True)
class Metrics:
    """What metrics.jsonl tells.

    Attributes:
        training: lines of the logging intervals, in order.
        validation: lines of the validations.
        saves: lines of the checkpoints.
    """

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    saves: list[dict[str, Any]]

    @property
    def training_seconds(self) -> float:
        """Spent in training steps."""
        return float(self.training[-1]["seconds"])

    @property
    def bases_per_second(self) -> float:
        """Over all training steps."""
        steps = itertools.pairwise([0, *(line["step"] for line in self.training)])
        seconds = [
            (after - before) * line["seconds_per_step"]
            for (before, after), line in zip(steps, self.training, strict=True)
        ]
        bases = [line["bases_per_second"] * spent for line, spent in zip(self.training, seconds, strict=True)]
        return sum(bases) / sum(seconds)

    @property
    def other_seconds(self) -> float:
        """Spent in validation and checkpoints, as far as their lines tell."""
        validation = sum(line.get("validation_seconds", 0.0) for line in self.validation)
        # What a checkpoint takes in the background is no time of its own.
        saves = sum(line.get("blocked_seconds", line.get("save_seconds", 0.0)) for line in self.saves)
        return float(validation + saves)


def write_report(run: Path, config: ReportConfig) -> dict[str, Any]:
    """Evaluates a run's newest checkpoint on all of the test data, and writes figures and pictures to RUN/report.

    A report that was made of the same things already is left as it is.

    Args:
        run: folder of the run.
        config: what goes into the report.

    Returns:
        What report.json holds.

    Raises:
        ReportError: it is no run folder, has no metrics yet, or its data have no test part.
        PretrainedError: it has no whole checkpoint.
        DataError: the data are missing or broken.
    """
    began = time.time()
    metrics = read_metrics(run)
    data = _data_folder(run)
    native = find_native(run)
    folder = run / "report"
    made_of = _ingredients(run, native, data, config)
    done = _find_report(folder / "report.json", made_of)
    if done is not None:
        logger.info("%s is up to date", folder)
        return done
    model = HyenaBLTModel.load_from_checkpoint(native)
    documents = list(dataset_documents(data / "test"))
    logger.info("evaluating %s on %s", native, data_path(data / "test"))
    evaluated = evaluate_bits_per_base(
        model, documents, config.window_bases, config.overlap_bases, config.batch_windows
    )
    logger.info("fitting the baseline of order %d on %s", config.ngram_order, data_path(data / "train"))
    ngram = NgramConfig(order=config.ngram_order).fit(IndexedReader(data / "train").stream)
    baseline = ngram_bits_per_base(ngram, documents)
    assert baseline.num_bases == evaluated.num_bases
    folder.mkdir(exist_ok=True)
    draw_loss(folder / "loss.png", metrics.training, metrics.validation)
    _draw_patches(folder, model, documents, config.stretch_bases)
    now = time.time()
    figures = {
        "bits_per_base": evaluated.bits_per_base,
        "bits_per_base_ngram": baseline.bits_per_base,
        "mean_patch_bases": evaluated.mean_patch_bases,
        "training_bases_per_second": metrics.bases_per_second,
        "training_seconds": metrics.training_seconds,
        "num_parameters": model.num_parameters,
        "total_seconds": (
            metrics.training_seconds + metrics.other_seconds + now - began
            if config.started_unix_seconds is None
            else now - config.started_unix_seconds
        ),
        "step": metrics.training[-1]["step"],
        "ngram_order": config.ngram_order,
        "evaluation": evaluated.to_dict(),
        "evaluation_ngram": baseline.to_dict(),
        "patch_rule": None if model.patcher is None else model.patcher.rule.to_dict(),
        "made_of": made_of,
    }
    write_whole(folder / "report.json", (json.dumps(figures, indent=2) + "\n").encode())
    return figures


def read_metrics(run: Path) -> Metrics:
    """Reads RUN/metrics.jsonl.

    Raises:
        ReportError: there is none, it has a broken line, or the run has not logged a step yet.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise ReportError(f"{path}: no such file; give the folder of a run that has been trained")
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise ReportError(f"{path}, line {number}: not JSON ({error}): remove the line") from error
    training, validation, saves = (
        [line for line in lines if line.get("kind") == kind] for kind in ("training", "validation", "checkpoint")
    )
    if not training:
        raise ReportError(f"{path} has no line of kind 'training': the run has not logged a step yet")
    return Metrics(training, validation, saves)


def _data_folder(run: Path) -> Path:
    path = run / "config.yaml"
    source = merge([path]).get("data")
    if not isinstance(source, Mapping) or "folder" not in source:
        raise ReportError(f"{path} has no data.folder: it is not the configuration of a run")
    folder = Path(source["folder"])
    if not data_path(folder / "test").is_file():
        raise ReportError(f"{data_path(folder / 'test')}: no such file; prepare the data with a test part")
    return folder


def _ingredients(run: Path, native: Path, data: Path, config: ReportConfig) -> dict[str, Any]:
    return {
        "checkpoint": str(native.relative_to(run)),
        "files_sha256": {name: entry["sha256"] for name, entry in read_seal(native)["files"].items()},
        "data_sha256": {part: read_manifest(data / part).data_sha256 for part in ("train", "test")},
        "metrics_sha256": hashlib.sha256((run / "metrics.jsonl").read_bytes()).hexdigest(),
        "settings": {key: value for key, value in config.to_dict().items() if key != "started_unix_seconds"},
    }


def _find_report(path: Path, made_of: dict[str, Any]) -> dict[str, Any] | None:
    try:
        figures = json.loads(path.read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return figures if figures.get("made_of") == made_of else None


def _draw_patches(folder: Path, model: HyenaBLTModel, documents: Iterable[np.ndarray], stretch_bases: int) -> None:
    sequences = [without_end(document) for document in documents]
    lengths = [patch_lengths_of(model, sequence) for sequence in sequences]
    if model.patcher is not None:
        draw_patch_lengths(folder / "patch_lengths.png", np.concatenate(lengths))
    longest = max(range(len(sequences)), key=lambda index: len(sequences[index]))
    # From the middle of a window, so that what is drawn has context.
    middle = min(len(sequences[longest]) - stretch_bases, model.window_bases or 4096) // 2
    start = max(0, middle)
    sequence = sequences[longest][: start + stretch_bases]
    nats = score(model, sequence).log_likelihoods[start:]
    patch_starts = np.cumsum(lengths[longest], dtype=np.int64) - lengths[longest]
    drawn = patch_starts[(patch_starts >= start) & (patch_starts < len(sequence))]
    entropies = None
    if model.patcher is not None and model.patcher.entropy_model is not None:
        entropies = model.patcher.compute_entropy(sequence)[start:]
    draw_entropy(folder / "entropy.png", start, -nats / np.log(2), drawn, entropies)
