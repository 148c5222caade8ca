"""What it costs to find the boundaries of an annotation, to be spread over the trainings that read them.

Counted are the entropy model's additions and multiplications, a logarithm or a division as one; not look-ups,
comparisons and what the rule does. The held-out splits are not charged to a training.

`ngram` of order k on T bases, S strands, F folds:

- reading, 3 a base: the context's number is shifted and added to, an entropy is added up
- counting, 3 S a base for each of three passes: the stream, the folds that are taken off, the folds of the smoothing
- tables, 36 a context for each of F + 1 models: 17 to interpolate four probabilities, 19 for their entropy; 4^j
  contexts of each length j up to k, but no more than the S T bases of the stream
- smoothing, 100 a sampled base for each of k + 1 orders: 20 halvings of 5

`neural`: reading is a forward pass over a chunk, whose head has four rows; training is three of them over windows,
for the model of the whole and for that of each fold.

Calibration reads its sample with the models of the folds, and once more with that of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import read_annotation_manifest
from hyena_blt_savanna.model.flops import BACKWARD_RATIO, count_flops, linear
from hyena_blt_savanna.nucleotides import BASES
from hyena_blt_savanna.patching.annotate import patcher_folder
from hyena_blt_savanna.patching.entropy_models import read_settings
from hyena_blt_savanna.patching.neural import NeuralConfig
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import MODEL_FILE

_READ, _COUNT, _CONTEXT, _SAMPLE = 3, 3, 36, 100


@dataclass(frozen=True)
class ModelTraining:
    """How a neural entropy model was trained.

    Attributes:
        num_steps: of each model.
        batch_windows: of a step.
        window_bases: of a window.
    """

    num_steps: int
    batch_windows: int
    window_bases: int


@dataclass(frozen=True)
class AnnotationFlops:
    """Operations that an annotation of training data costs.

    Attributes:
        flops_per_base: to read a base once.
        num_bases: that are read, on all strands.
        calibration_flops: to find the rule's limit.
        model_flops: to make the entropy model, and those of the folds.
    """

    flops_per_base: float = 0.0
    num_bases: int = 0
    calibration_flops: float = 0.0
    model_flops: float = 0.0

    @property
    def fixed_flops(self) -> float:
        """Those that don't depend on how many bases are read."""
        return self.calibration_flops + self.model_flops

    @property
    def total(self) -> float:
        """All of them."""
        return self.fixed_flops + self.flops_per_base * self.num_bases


def annotation_flops(data: Path, name: str, training: ModelTraining | None = None) -> AnnotationFlops:
    """Operations behind the boundaries of a dataset's training stream.

    Args:
        data: folder of the dataset.
        name: of the annotation. A permuted one costs what its source costs.
        training: of a neural entropy model, and of those of its folds; not read for others.

    Returns:
        Zeros for a rule that reads no entropies. A patcher of other data, and an `ngram` from a file, cost nothing to
        make here: they were made already.

    Raises:
        DataError: there is no such annotation, or its entropy model is neural and `training` is missing.
        EntropyModelError: the stored model can't be read.
    """
    manifest = read_annotation_manifest(data / "train", name)
    if manifest.rule["kind"] == "permuted":
        return annotation_flops(data, manifest.rule["annotation"], training)
    num_bases = manifest.data_num_bytes * len(manifest.statistics)
    if manifest.entropy_model is None:
        return AnnotationFlops(num_bases=num_bases)
    settings = manifest.calibration["settings"]
    made_here = settings["patcher"] is None
    model_flops = 0.0
    if manifest.entropy_model.kind == "neural":
        if made_here and training is None:
            raise DataError(
                f"{data}: the entropy model of {name!r} is neural, and nothing tells how it was trained: give steps, "
                "windows of a step and bases of a window"
            )
        config = _neural_config(patcher_folder(data, name) / MODEL_FILE)
        flops_per_base = _reading_flops(config)
        if made_here and training is not None:
            num_models = 1 + len(settings["entropy_model"]["fold_paths"])
            model_flops = num_models * _training_flops(config, training)
    else:
        flops_per_base = float(_READ)
        if made_here and settings["entropy_model"]["kind"] == "ngram":
            fitted = NgramConfig.parse(settings["entropy_model"])
            model_flops = ngram_flops(fitted, manifest.data_num_bytes, settings["folds"])
    calibration_flops = flops_per_base * _num_calibration_bases(manifest.calibration)
    return AnnotationFlops(flops_per_base, num_bases, calibration_flops, model_flops)


def ngram_flops(config: NgramConfig, num_bases: int, num_folds: int) -> float:
    """Operations to fit an `ngram` model out of fold.

    Args:
        config: its settings.
        num_bases: T.
        num_folds: F.
    """
    counted = num_bases * (2 if config.both_strands else 1)
    contexts = sum(min(4**length, counted) for length in range(config.order + 1))
    samples = min(config.smoothing_samples, num_bases)
    return float(3 * _COUNT * counted + (num_folds + 1) * _CONTEXT * contexts + (config.order + 1) * _SAMPLE * samples)


def _neural_config(path: Path) -> NeuralConfig:
    return NeuralConfig.parse(read_settings(path), str(path))


def _reading_flops(config: NeuralConfig) -> float:
    """Operations to read a base."""
    num_bases = config.chunk_bases
    parts = count_flops(config.model, num_bases)
    head = linear(num_bases, config.model.stack.width, len(BASES))
    return (parts["total"] - parts["head"] + head) / num_bases


def _training_flops(config: NeuralConfig, training: ModelTraining) -> float:
    """Operations to train one model."""
    forward = count_flops(config.model, training.window_bases)["total"]
    return (1 + BACKWARD_RATIO) * forward * training.num_steps * training.batch_windows


def _num_calibration_bases(calibration: dict[str, Any]) -> int:
    if calibration["settings"]["calibrate_to"] is None:
        drift = calibration.get("drift")
        return int(drift["num_bases"]) if drift else 0
    return int(calibration["num_bases"]) * (2 if "in_sample_mean_bases" in calibration else 1)
