"""Whole runs of H-Net, of words as tokens and of HyenaDNA's blocks; and what each asks of the data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hyena_blt_savanna.config import ConfigError, merge
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.model.kmer_tokens import KmerTokensConfig
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.pretrain import pretrain
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData

RANKS = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
STACK = {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "attention"]}
MODELS: dict[str, dict[str, Any]] = {
    "hnet": {
        "kind": "hnet",
        "kmers": {"sizes": [2, 3]},
        "encoder": {"width": 12, "blocks": ["hyena_se"]},
        "main_network": STACK,
        "decoder": {"width": 12, "blocks": ["hyena_se"]},
        "chunk_bases": 4,
    },
    "kmer_tokens": {"kind": "kmer_tokens", "word_bases": 3, "global_model": STACK},
    "hyenadna": {"kind": "isotropic", "stack": {**STACK, "blocks": ["hyena_implicit", "hyena_implicit"]}},
}
READS_PATCHES = ("kmer_tokens",)


@pytest.fixture(scope="module")
def words(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data, cut into words of 3 bases as well."""
    folder = shutil.copytree(toy_data, tmp_path_factory.mktemp("words") / "data")
    rule = {"kind": "static", "patch_bases": 3, "max_patch_bases": 3}
    annotate_dataset(AnnotationConfig.parse({"data": folder, "name": "words", "entropy_model": None, "rule": rule}))
    return folder


def load(toy_config: Path, folder: Path, run: Path, kind: str, *overrides: str) -> RunConfig:
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(merge([toy_config]) | {"model": MODELS[kind]}))
    annotation = "words" if kind in READS_PATCHES else "null"
    given = [f"run={run}", f"data.folder={folder}", f"data.annotation={annotation}"]
    return RunConfig.load([path, *given, *overrides])


def run_all(configs: list[dict[str, Any]]) -> None:
    ranks = join_ranks()
    for tree in configs:
        pretrain(RunConfig.parse(tree), ranks)


def test_every_kind_learns(toy_config: Path, words: Path, tmp_path: Path) -> None:
    overrides = (
        "training.stages=[{steps: 60, window_bases: 128, batch_windows: 8, micro_batch_windows: 4}]",
        "training.optimizer.lr=2e-2",
        "training.checkpoints.every_steps=60",
        "training.validation.every_steps=60",
        "training.logging.every_steps=10",
    )
    configs = {kind: load(toy_config, words, tmp_path / kind, kind, *overrides) for kind in MODELS}
    run_ranks(run_all, 1, [config.to_dict() for config in configs.values()])
    for kind in MODELS:
        lines = [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if line["kind"] == "training"]
        # Below a guess among the four bases: it knows more than that there is no end. The least, since steps this large
        # go up again here and there.
        assert min(losses) < min(losses[0] - 0.05, math.log(4)), kind
        [validated] = [line for line in lines if line["kind"] == "validation"]
        assert validated["bits_per_base"] < 2.3, kind
        auxiliary = [line["auxiliary_nats_per_base"] for line in lines if line["kind"] == "training"]
        assert all(nats > 0.01 for nats in auxiliary) if kind == "hnet" else not any(auxiliary)
        assert_told_what_it_costs(configs[kind], [line for line in lines if line["kind"] == "training"])
        model = HyenaBLTModel.load_from_checkpoint(tmp_path / kind)
        assert (model.patcher is not None) == (kind in READS_PATCHES)
        assert model.score("ACGTTGCA" * 20).bits_per_base < 4


def assert_told_what_it_costs(config: RunConfig, lines: list[dict[str, Any]]) -> None:
    """By the lengths of the patches that were read, or found."""
    means = [line["mean_patch_bases"] for line in lines]
    if config.model.kind == "hnet":
        # They are learned, and hardly ever as long as is wanted.
        assert len(set(means)) == len(means)
        assert all(1 < mean < 128 for mean in means)
    else:
        words = pytest.approx(3, rel=0.05)
        assert all(mean == (words if config.model.kind == "kmer_tokens" else 1) for mean in means)
    for line, mean in zip(lines, means, strict=True):
        assert line["flops_per_base"] == training_flops_per_base(config.model, 128, mean)


@pytest.mark.parametrize("kind", ["hnet", "hyenadna"])
def test_cuts_of_no_boundaries_are_refused(toy_config: Path, words: Path, tmp_path: Path, kind: str) -> None:
    name = {"hyenadna": "isotropic"}.get(kind, kind)
    says = rf"data\.cuts is for a model of patches, and model\.kind is {name}: leave data\.cuts out"
    with pytest.raises(ConfigError, match=says):
        load(toy_config, words, tmp_path / "run", kind, "data.annotation=words", "data.cuts.spread=2")


def test_chunks_are_found_whatever_the_annotation(toy_config: Path, words: Path, tmp_path: Path) -> None:
    with_one = RunData(load(toy_config, words, tmp_path / "run", "hnet", "data.annotation=words"), RANKS)
    with_one.native_writer()(tmp_path / "native", HNetConfig.parse(MODELS["hnet"]).build().state_dict(), 1)
    assert HyenaBLTModel.load_from_checkpoint(tmp_path / "native").patcher is None


def test_words_need_boundaries_that_fit(toy_config: Path, words: Path, tmp_path: Path) -> None:
    says = r"data\.annotation is null, and model\.kind kmer_tokens reads patches: name their boundaries"
    with pytest.raises(ConfigError, match=says):
        load(toy_config, words, tmp_path / "run", "kmer_tokens", "data.annotation=null")
    too_long = load(toy_config, words, tmp_path / "run", "kmer_tokens", "data.annotation=patches")
    says = r"patches of up to 8 bases, and the model has places for 3: set model\.word_bases to 8, or cut shorter"
    with pytest.raises(DataError, match=says):
        RunData(too_long, RANKS)
    stages = "training.stages=[{steps: 1, window_bases: 2, batch_windows: 1}]"
    with pytest.raises(ConfigError, match=r"window_bases 2 is shorter than a patch may be \(model\.word_bases 3\)"):
        load(toy_config, words, tmp_path / "run", "kmer_tokens", stages)


def test_other_objectives_are_refused(toy_config: Path, words: Path, tmp_path: Path) -> None:
    for kind in ("hnet", "kmer_tokens"):
        with pytest.raises(ConfigError, match=rf"training\.objective autoencoder .*model\.kind is {kind}"):
            load(toy_config, words, tmp_path / "run", kind, "training.objective=autoencoder")


def test_activation_checkpointing_reaches_every_stack(toy_config: Path, words: Path, tmp_path: Path) -> None:
    config = load(toy_config, words, tmp_path / "run", "hnet", "training.activation_checkpointing=true")
    model = config.model_to_build()
    assert isinstance(model, HNetConfig)
    assert all(part.activation_checkpointing for part in (model.encoder, model.main_network, model.decoder))


def test_operations_of_training() -> None:
    hnet, words = HNetConfig.parse(MODELS["hnet"]), KmerTokensConfig.parse(MODELS["kmer_tokens"])
    # One finds its own chunks: as many as it wants until it has told how many they are.
    assert training_flops_per_base(hnet, 1024, None) == 3 * sum(hnet.flops(1024, 256).values()) / 1024
    assert training_flops_per_base(hnet, 1024, 8.0) == 3 * sum(hnet.flops(1024, 128).values()) / 1024
    assert training_flops_per_base(words, 900, 3.0) == 3 * sum(words.flops(900, 300).values()) / 900
