"""Operations of annotations: by hand, and those of a neural model against torch's counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import torch

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import read_manifest
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.annotation_flops import AnnotationFlops, ModelTraining, annotation_flops, ngram_flops
from hyena_blt_savanna.patching.control import permute_annotation
from hyena_blt_savanna.patching.entropy_models import EntropyModelError, read_settings, save_entropy_model
from hyena_blt_savanna.patching.neural import NeuralConfig, NeuralModel
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.testing.flop_counting import count_by_module
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset

NUM_BASES = 12_001
"""Of the training stream: 12,000 and the end of the document."""
TRAINING = ModelTraining(num_steps=10, batch_windows=4, window_bases=256)
NGRAM = {"kind": "ngram", "order": 4, "smoothing_folds": 2, "smoothing_samples": 1000}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "train", [random_genome(12_000, seed=1)])
    write_dataset(tmp_path / "validation", [random_genome(2000, seed=2)])
    return tmp_path


def annotate(data: Path, **changes: Any) -> None:
    tree = {"data": data, "entropy_model": NGRAM, "rule": {"kind": "budget"}, "folds": 3}
    annotate_dataset(AnnotationConfig.parse(tree | {"calibrate_to": {"mean_patch_bases": 6}} | changes))


def neural_config() -> NeuralConfig:
    stack = {"width": 32, "blocks": ["hyena_se", "hyena_mr"], "hyena": {"mr_taps": 32}}
    return NeuralConfig.parse({"model": {"stack": stack, "kmers": {"sizes": [2, 3]}}, "chunk_bases": 512})


def neural_model(seed: int) -> NeuralModel:
    torch.manual_seed(seed)
    config = neural_config()
    return NeuralModel(config, config.model.build().state_dict())


def test_ngram_by_hand() -> None:
    config = NgramConfig(order=2, smoothing_samples=100)
    # Contexts of 0, 1 and 2 bases: 1 + 4 + 16 of them, in 3 models.
    assert ngram_flops(config, 1000, num_folds=2) == 3 * 3 * 2000 + 3 * 36 * 21 + 3 * 100 * 100
    # There are no more contexts of 6 bases than 1000 bases, 4096 if there were more.
    one_strand = NgramConfig(order=6, both_strands=False, smoothing_samples=100)
    contexts = 1 + 4 + 16 + 64 + 256 + 1000 + 1000
    assert ngram_flops(one_strand, 1000, num_folds=2) == 3 * 3 * 1000 + 3 * 36 * contexts + 7 * 100 * 100


def test_an_ngram_annotation_reads_and_fits(data: Path) -> None:
    annotate(data)
    found = annotation_flops(data, "patches")
    # The sample of the calibration is read out of fold, and in sample; it is all there is but for roundings.
    assert found.flops_per_base == 3
    assert found.num_bases == 2 * NUM_BASES
    assert found.calibration_flops == pytest.approx(2 * 3 * NUM_BASES, rel=0.01)
    assert found.model_flops == ngram_flops(NgramConfig.parse(NGRAM), NUM_BASES, 3)
    assert found.fixed_flops == found.calibration_flops + found.model_flops
    assert found.total == found.fixed_flops + 6 * NUM_BASES


def test_a_limit_that_is_given_costs_nothing(data: Path) -> None:
    annotate(data, calibrate_to=None, rule={"kind": "budget", "budget_nats": 8.0}, both_strands=False)
    found = annotation_flops(data, "patches")
    assert (found.calibration_flops, found.num_bases) == (0, NUM_BASES)


def test_rules_without_entropies_cost_nothing(data: Path) -> None:
    annotate(data, entropy_model=None, rule={"kind": "static", "patch_bases": 6}, calibrate_to=None)
    assert annotation_flops(data, "patches") == AnnotationFlops(num_bases=2 * NUM_BASES)
    assert annotation_flops(data, "patches").total == 0


def test_a_permuted_annotation_costs_what_its_source_costs(data: Path) -> None:
    annotate(data)
    permute_annotation(data, "patches", "control", seed=0)
    assert annotation_flops(data, "control") == annotation_flops(data, "patches")


def test_a_patcher_of_other_data_is_made_already(data: Path, tmp_path: Path) -> None:
    annotate(data)
    other = tmp_path / "other"
    write_dataset(other / "train", [random_genome(5000, seed=3)])
    annotate_dataset(AnnotationConfig.parse({"data": other, "patcher": data / "patches.patcher", "folds": 3}))
    found = annotation_flops(other, "patches")
    assert found.model_flops == 0
    # How far patches drift is found on a sample that is read once.
    assert found.calibration_flops == pytest.approx(3 * 5001, rel=0.01)
    assert found.num_bases == 2 * 5001


def test_neural_models_read_and_are_trained(data: Path, tmp_path: Path) -> None:
    about = {"data_sha256": "another", "left_out": None}
    save_entropy_model(neural_model(0), tmp_path / "model.safetensors", {"trained_on": about})
    annotate(data, entropy_model={"kind": "stored", "path": tmp_path / "model.safetensors"})
    found = annotation_flops(data, "patches", TRAINING)
    bases = torch.randint(65, 85, (1, 512))
    model = neural_model(0)
    by_module = count_by_module(lambda: model.log_probabilities_after(bases, None))
    products = sum(count for (_, kind), count in by_module.items() if kind == "product") / 512
    forward = neural_config().model.flops(512, 0)
    # What lies between the products runs in kernels of its own, which torch does not see.
    between = sum(count for part, count in forward.items() if "convolutions" in part) / 512
    assert found.flops_per_base == pytest.approx(products + between, rel=1e-6)
    window = sum(neural_config().model.flops(256, 0).values())
    assert found.model_flops == 3 * 10 * 4 * window
    with pytest.raises(DataError, match="is neural, and nothing tells how it was trained"):
        annotation_flops(data, "patches")


def test_models_of_the_folds_are_trained_too(data: Path, tmp_path: Path) -> None:
    save_entropy_model(neural_model(0), tmp_path / "whole.safetensors", {"trained_on": {"data_sha256": "other"}})
    annotate(data, entropy_model={"kind": "stored", "path": tmp_path / "whole.safetensors"})
    alone = annotation_flops(data, "patches", TRAINING)
    sha256 = read_manifest(data / "train").data_sha256
    paths = [tmp_path / f"fold_{fold}.safetensors" for fold in range(3)]
    for fold, path in enumerate(paths):
        left_out = {"fold": fold, "folds": 3}
        save_entropy_model(neural_model(fold), path, {"trained_on": {"data_sha256": sha256, "left_out": left_out}})
    stored = {"kind": "stored", "path": tmp_path / "whole.safetensors", "fold_paths": paths}
    annotate(data, name="folds", entropy_model=stored)
    assert annotation_flops(data, "folds", TRAINING).model_flops == 4 * alone.model_flops


def test_mistakes_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.patches\.manifest\.json: no such file"):
        annotation_flops(data, "patches")
    with pytest.raises(EntropyModelError, match="no such file"):
        read_settings(tmp_path / "none.safetensors")
    safetensors.numpy.save_file({}, tmp_path / "bare.safetensors", {"kind": "neural"})
    with pytest.raises(EntropyModelError, match="its settings are not JSON"):
        read_settings(tmp_path / "bare.safetensors")
