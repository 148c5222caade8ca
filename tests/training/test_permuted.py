"""A run on boundaries that no patcher can find: it trains, and its checkpoints say what they lack."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.evaluation.bits_per_base import dataset_documents, evaluate_bits_per_base, stored_patches
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.scoring import NoPatcherError
from hyena_blt_savanna.patching.control import permute_annotation
from hyena_blt_savanna.training.ranks import Ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData

RANKS = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))


@pytest.fixture
def permuted(annotated: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(annotated, tmp_path / "data")
    permute_annotation(folder, "patches", "control", seed=0)
    return folder


def config_for(toy_config: Path, folder: Path, *overrides: str) -> RunConfig:
    tree = yaml.safe_load(toy_config.read_text())
    tree["run"], tree["data"] = "runs/toy", {"folder": str(folder), "annotation": "control"}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return RunConfig.load([path, *overrides])


def test_a_run_trains_and_its_checkpoints_are_scored_with_stored_boundaries(
    toy_config: Path, permuted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_for(toy_config, permuted)
    with caplog.at_level(logging.WARNING):
        data = RunData(config, RANKS)
    assert "control.patcher: no such folder; the checkpoints can't find boundaries" in caplog.text
    model = config.model.build()
    with data.open_stage(0, 0) as batches:
        batch = next(batches)
    assert model(batch.bases, batch.patch_lengths).isfinite().all()
    data.native_writer()(tmp_path / "native", model.state_dict(), 40)
    loaded = HyenaBLTModel.load_from_checkpoint(tmp_path / "native")
    assert loaded.patcher is None
    prefix = permuted / "validation"
    with pytest.raises(NoPatcherError, match="came without a patcher"):
        evaluate_bits_per_base(loaded, dataset_documents(prefix))
    figures = evaluate_bits_per_base(loaded, dataset_documents(prefix), patches=stored_patches(prefix, "control"))
    assert figures.num_bases == 1500
    assert figures.window_bases == 256


def test_boundaries_without_a_rule_are_not_cut_anew(toy_config: Path, permuted: Path) -> None:
    config = config_for(toy_config, permuted, "data.cuts.first_factor=0.5")
    with pytest.raises(DataError, match=r"control\.patcher: no such folder, and data\.cuts multiplies the limit"):
        RunData(config, RANKS)
