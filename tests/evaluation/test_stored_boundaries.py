"""Bits per base with boundaries that are stored beside a dataset, for models that can't find their own."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.evaluation.bits_per_base import (
    EvaluationError,
    dataset_documents,
    evaluate_bits_per_base,
    stored_patches,
)
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.scoring import NoPatcherError
from hyena_blt_savanna.evaluation.sequences import without_end
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.control import permute_annotation
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset

ModelOf = Callable[[str], HyenaBLTModel]


@pytest.fixture
def prefix(tmp_path: Path, model_of: ModelOf) -> Path:
    """A dataset that the model's own patcher has cut."""
    model_of("budget").patcher.save(tmp_path / "of_model")  # type: ignore[union-attr]
    sizes = (400, 1, 73)
    write_dataset(tmp_path / "train", [random_genome(3000, seed=1)])
    write_dataset(tmp_path / "test", [(b"|D__TOY|", random_genome(size, seed=size)) for size in sizes])
    tree = {"data": tmp_path, "patcher": tmp_path / "of_model", "calibrate_to": None, "folds": 2}
    annotate_dataset(AnnotationConfig.parse(tree))
    return tmp_path / "test"


def without_patcher(model: HyenaBLTModel) -> HyenaBLTModel:
    return HyenaBLTModel(model.module, model.config, None)


def test_the_patchers_own_boundaries_give_its_figures(prefix: Path, model_of: ModelOf) -> None:
    model = model_of("budget")
    found = evaluate_bits_per_base(model, dataset_documents(prefix), 64)
    stored = evaluate_bits_per_base(
        without_patcher(model), dataset_documents(prefix), 64, patches=stored_patches(prefix, "patches")
    )
    assert found.to_dict() | {"seconds": 0} == stored.to_dict() | {"seconds": 0}


def test_stored_patches_are_those_of_each_document(prefix: Path, model_of: ModelOf) -> None:
    documents = [without_end(document) for document in dataset_documents(prefix)]
    patcher = model_of("budget").patcher
    assert patcher is not None
    for document, lengths in zip(documents, stored_patches(prefix, "patches"), strict=True):
        assert lengths.tolist() == patcher.segment_sequence(document).tolist()


def test_a_permuted_annotation_needs_no_patcher(prefix: Path, model_of: ModelOf) -> None:
    permute_annotation(prefix.parent, "patches", "control", seed=0)
    model = without_patcher(model_of("budget"))
    with pytest.raises(NoPatcherError):
        evaluate_bits_per_base(model, dataset_documents(prefix), 64)
    by_name = {
        name: evaluate_bits_per_base(model, dataset_documents(prefix), 64, patches=stored_patches(prefix, name))
        for name in ("patches", "control")
    }
    assert by_name["control"].num_bases == by_name["patches"].num_bases == 474
    assert abs(by_name["control"].num_patches - by_name["patches"].num_patches) <= 3
    assert by_name["control"].bits_per_base != by_name["patches"].bits_per_base


def test_models_of_single_bases_read_no_boundaries(prefix: Path, model_of: ModelOf) -> None:
    model = model_of("isotropic")
    with_patches = evaluate_bits_per_base(
        model, dataset_documents(prefix), 64, patches=stored_patches(prefix, "patches")
    )
    assert with_patches.bits_per_base == evaluate_bits_per_base(model, dataset_documents(prefix), 64).bits_per_base


def test_mistakes_are_told(prefix: Path, model_of: ModelOf) -> None:
    model = without_patcher(model_of("budget"))
    with pytest.raises(DataError, match=r"test\.none\.manifest\.json: no such file"):
        evaluate_bits_per_base(model, dataset_documents(prefix), 64, patches=stored_patches(prefix, "none"))
    with pytest.raises(EvaluationError, match="a patch of 9 bases, and the model has places for 8"):
        evaluate_bits_per_base(model, [random_genome(9)], 64, patches=[np.array([9], dtype=np.int32)])


def test_tool(
    prefix: Path, tmp_path: Path, model_of: ModelOf, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = without_patcher(model_of("budget"))
    model.window_bases = 64
    model.save(tmp_path / "native")
    path = Path(__file__).parents[2] / "tools" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("tools_evaluate_stored", path)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    arguments = ["evaluate.py", str(tmp_path / "native"), "--data", str(prefix), "--annotation", "patches"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert tool.main() == 0
    expected = evaluate_bits_per_base(model, dataset_documents(prefix), 64, patches=stored_patches(prefix, "patches"))
    assert json.loads(capsys.readouterr().out)["bits_per_base"] == pytest.approx(expected.bits_per_base, rel=1e-6)
    for other in ("--patch-factor=2", "--reconstruction"):
        monkeypatch.setattr(sys, "argv", [*arguments, other])
        assert tool.main() == 1
        assert "--annotation reads stored boundaries" in capsys.readouterr().err
