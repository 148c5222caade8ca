"""A neural entropy model, out of fold, by one command: trained, frozen, and its boundaries stored."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.data.boundaries import BoundaryReader
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import read_annotation_manifest
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.entropy_models import load_entropy_model
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_each_fold_is_cut_by_the_model_that_left_it_out(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    for name, num_bases in (("train", 40_000), ("validation", 3000)):
        write_dataset(data / name, [random_genome(num_bases, seed=num_bases)])
    settings = "training.stages=[{steps: 6, window_bases: 256, batch_windows: 2}]", "training.schedule.warmup_steps=1"
    command = [str(ROOT / "launch" / "entropy_model.sh"), str(data), str(run), "model.stack.width=16", *settings]
    environment = {**os.environ, "NUM_RANKS": "1", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

    stream = np.array(IndexedReader(data / "train").stream)
    patcher = Patcher.load(data / "neural.patcher")
    models = [load_entropy_model(run / f"fold_{fold}.safetensors") for fold in range(2)]
    assert len({patcher.entropy_model.digest, *(model.digest for model in models)}) == 3
    edges = fold_edges(len(stream), 2)
    nats = [
        model.entropies(stream)[start:stop]
        for model, (start, stop) in zip(models, itertools.pairwise(edges), strict=True)
    ]
    _, found = BoundaryReader(data / "train", "neural").patches(0, len(stream))
    expected = cut(stream, np.concatenate(nats), patcher.rule)
    # Passes begin elsewhere, and sums of floating-point numbers differ with them: a cut may move here and there.
    shared = np.intersect1d(np.cumsum(found), np.cumsum(expected))
    assert len(shared) > 0.99 * len(found)
    assert found.sum() == len(stream)
    assert read_annotation_manifest(data / "train", "neural").calibration["mean_bases"] == pytest.approx(8, rel=0.02)
