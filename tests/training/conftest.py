"""A small dataset with boundaries, and the configuration of a run on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset, write_toy_data


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a dataset: 6,000 bases to train on and 1,500 to validate on, with random patches."""
    return write_toy_data(tmp_path_factory.mktemp("data"), train=6000, validation=1500)


@pytest.fixture(scope="session")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a dataset cut by a real patcher, with its entropies."""
    folder = tmp_path_factory.mktemp("annotated")
    for name, num_bases in (("train", 6000), ("validation", 1500)):
        write_dataset(folder / name, [random_genome(num_bases, seed=num_bases)])
    settings = {"entropy_model": {"kind": "ngram", "order": 2, "smoothing_folds": 2}, "rule": {"kind": "budget"}}
    settings |= {"rule": {"kind": "budget", "max_patch_bases": 8}, "calibrate_to": {"mean_patch_bases": 4}, "folds": 2}
    annotate_dataset(AnnotationConfig.parse({"data": folder, "store_entropies": True} | settings))
    return folder


@pytest.fixture(scope="session")
def toy_config(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file that lacks only `run`."""
    path = tmp_path_factory.mktemp("config") / "toy.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "data": {"folder": str(toy_data), "repeat_weight": 0.5},
                "model": {
                    "kind": "hyena_blt",
                    "local_width": 16,
                    "max_patch_bases": 8,
                    "kmers": {"sizes": [2, 3]},
                    "global_model": {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "attention"]},
                },
                "training": {
                    "stages": [
                        {"steps": 24, "window_bases": 128, "batch_windows": 4},
                        {"steps": 16, "window_bases": 256, "batch_windows": 4, "micro_batch_windows": 1},
                    ],
                    "schedule": {"warmup_steps": 5},
                    "validation": {"every_steps": 20, "num_bases": 1000},
                    "checkpoints": {"every_steps": 8},
                    "logging": {"every_steps": 1},
                },
            }
        )
    )
    return path
