"""Runs on mixtures: of shards, of RNA, of datasets; on any mesh the same windows, and a loss for each source."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.batches import EvaluationWindows, collate
from hyena_blt_savanna.data.corpus.pipeline import prepare_source
from hyena_blt_savanna.data.corpus.plan import SourceConfig
from hyena_blt_savanna.data.corpus.source import read_source, source_path
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.sources import find_source
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.parallel.mesh import ParallelConfig
from hyena_blt_savanna.patching.annotate import annotate_dataset
from hyena_blt_savanna.patching.annotate_source import annotate_source
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_corpus import sequence, write_rows
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset
from hyena_blt_savanna.training.logs import log_to_terminal
from hyena_blt_savanna.training.loss import scored_weight, weighted_nats
from hyena_blt_savanna.training.pretrain import pretrain
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData
from hyena_blt_savanna.training.run_sources import find_sources
from hyena_blt_savanna.training.validation import spread

RANKS = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
WEIGHTS = {"genomes": 0.5, "rna": 0.2, "dataset": 0.3, "unseen": 0.0}
STAGES = "training.stages=[{steps: 6, window_bases: 128, batch_windows: 8, micro_batch_windows: 1}]"


def write_source(folder: Path, name: str, alphabet: str, letters: str, seed: int) -> Path:
    """A source of several shards in which only some letters occur."""
    swap = str.maketrans("ACGTacgt", letters + letters.lower())
    for split, num_rows in (("train", 9), ("valid", 3)):
        rows = [{"text": sequence(200 + 300 * (i % 4), seed + i).translate(swap)} for i in range(num_rows)]
        write_rows(folder / f"data_{name}_{split}_chunk1.jsonl", rows)
    tree = {"source": name, "inputs": [f"{folder}/data_{name}_*.jsonl"], "output": folder / name, "shard_bases": 1200}
    prepare_source(SourceConfig.parse(tree | {"alphabet": alphabet}))
    return folder / name


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source of shards, one of RNA, a dataset and one more source, all cut by the first one's patcher."""
    folder = tmp_path_factory.mktemp("mixed")
    paths = {"genomes": write_source(folder, "genomes", "dna", "ACGT", 0)}
    paths["rna"] = write_source(folder, "rna", "rna", "AAAC", 50)
    paths["dataset"] = folder / "dataset"
    paths["unseen"] = write_source(folder, "unseen", "dna", "CCGG", 90)
    paths["dataset"].mkdir()
    for name, num_bases in (("train", 3000), ("validation", 700)):
        write_dataset(paths["dataset"] / name, [random_genome(num_bases, seed=num_bases)])
    settings: dict[str, Any] = {"entropy_model": {"kind": "ngram", "order": 2, "smoothing_folds": 2}, "folds": 2}
    settings |= {"rule": {"kind": "budget", "max_patch_bases": 8}, "calibrate_to": {"mean_patch_bases": 4}}
    annotate_source(AnnotationConfig.parse({"data": paths["genomes"]} | settings))
    for name, path in paths.items():
        annotate = annotate_dataset if name == "dataset" else annotate_source
        if name != "genomes":
            annotate(AnnotationConfig.parse({"data": path, "patcher": paths["genomes"] / "patches.patcher"}))
    assert len(read_source(paths["genomes"]).splits["train"]) > 2
    return paths


def config_for(toy_config: Path, paths: dict[str, Path], *overrides: str, **changes: Any) -> RunConfig:
    tree = yaml.safe_load(toy_config.read_text())
    sources = [{"path": str(path), "weight": WEIGHTS[name], "name": name} for name, path in paths.items()]
    tree["run"], tree["data"] = "runs/toy", {"sources": sources, "repeat_weight": 0.5, **changes}
    path = toy_config.parent / "mixture.yaml"
    path.write_text(yaml.safe_dump(tree))
    return RunConfig.load([path, STAGES, *overrides])


def windows_of(config: RunConfig, num_ranks: int, num_context: int, step: int) -> list[tuple[bytes, list[int]]]:
    """Bases and patches of the windows of a step in order, put together from what all ranks read."""
    config = config.model_copy(update={"parallel": ParallelConfig(context=num_context)})
    found = []
    for data_rank in range(num_ranks // num_context):
        slices = []
        for context_rank in range(num_context):
            ranks = Ranks(data_rank * num_context + context_rank, num_ranks, torch.device("cpu"))
            with RunData(config, ranks).open_stage(0, step) as batches:
                slices.append([next(batches) for _ in range(8 * num_context // num_ranks)])
        for parts in zip(*slices, strict=True):
            bases, lengths = b"", []
            for part in parts:
                first, last = int(part.patch_lengths[0, : part.left_patches].sum()), int(part.patch_lengths[0].sum())
                bases += bytes(part.bases[0, first:last].tolist())
                lengths += [length for length in part.patch_lengths[0, part.left_patches :].tolist() if length]
            found.append((bases, lengths))
    return found


def test_all_meshes_and_every_start_see_the_same_windows(toy_config, mixed):
    config = config_for(toy_config, mixed)
    alone = windows_of(config, 1, 1, step=2)
    assert len({bases for bases, _ in alone}) == 8
    for num_ranks, num_context in ((2, 1), (4, 2)):
        assert windows_of(config, num_ranks, num_context, step=2) == alone
    with RunData(config, RANKS).open_stage(0, 0) as batches:
        begun = [bytes(next(batches).bases[0].tolist()) for _ in range(24)]
    assert [bases.rstrip(b"\1") for bases in begun[16:]] == [bases for bases, _ in alone]


def test_shares_strands_and_places(toy_config, mixed):
    samples = find_sources(config_for(toy_config, mixed).data).samples(0, None, False)
    num_windows = 600
    texts = [samples.find(0, 128, index).read().bases.tobytes().upper() for index in range(num_windows)]
    # Each source has letters of its own; the reverse strand of RNA would have G and T alone.
    is_rna = [set(text) <= set(b"AC\0") for text in texts]
    assert not any(set(text) <= set(b"GT\0") for text in texts)
    assert not any(set(text) <= set(b"CG\0") for text in texts), "a source of weight 0"
    assert abs(sum(is_rna) / num_windows - 0.2) < 0.05
    # Neither the order of the sources nor their weights decide which windows of a source come first.
    other = {name: mixed[name] for name in ("dataset", "rna")}
    others = find_sources(config_for(toy_config, other).data).samples(0, None, False)
    found = [others.find(0, 128, index).read().bases.tobytes().upper() for index in range(num_windows)]
    rna = [text for text, is_one in zip(texts, is_rna, strict=True) if is_one]
    assert set(rna) & {text for text in found if set(text) <= set(b"AC\0")}


def test_a_folder_that_is_a_source_is_a_mixture_of_one(toy_config, mixed):
    config = config_for(toy_config, {"genomes": mixed["genomes"]})
    single = config.model_copy(
        update={"data": config.data.model_copy(update={"sources": None, "folder": mixed["genomes"]})}
    )
    assert windows_of(single, 1, 1, 0) == windows_of(config, 1, 1, 0)
    described = find_sources(single.data).describe()
    assert described["data_sha256"] == find_source(mixed["genomes"], "patches").data_sha256
    left_out = single.model_copy(
        update={"data": type(config.data).parse({"folder": mixed["genomes"], "left_out": {"fold": 0, "folds": 2}})}
    )
    with pytest.raises(DataError, match=r"genomes is a source of shards, and data\.left_out is"):
        RunData(left_out, RANKS)


def run_all(trees: list[dict[str, Any]]) -> None:
    ranks = join_ranks()
    log_to_terminal(ranks.is_first)
    for tree in trees:
        pretrain(RunConfig.parse(tree), ranks)


def loss_of_dataset(config: RunConfig, paths: dict[str, Path]) -> float:
    """Of the trained model on windows of the dataset's validation stream, by hand."""
    module = HyenaBLTModel.load_from_checkpoint(config.run).module
    windows = EvaluationWindows(paths["dataset"] / "validation", "patches", "forward", 128)
    batch = collate([windows[index] for index in spread(len(windows), 1600 // 4 // 128)])
    logits = module(batch.bases, batch.patch_lengths)
    nats = weighted_nats(logits, batch.bases, batch.loss_weights, module.class_of_byte)
    return float(nats / scored_weight(batch.loss_weights))


def test_a_run_tells_the_loss_of_each_source(toy_config, mixed, tmp_path):
    overrides = ["training.validation={every_steps: 3, num_bases: 1600}", "training.checkpoints.every_steps=6"]
    config = config_for(toy_config, mixed, *overrides, f"run={tmp_path / 'run'}")
    run_ranks(run_all, 2, [config.to_dict()])
    lines = [json.loads(line) for line in (config.run / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in validations] == [3, 6]
    for line in validations:
        assert set(line["sources"]) == set(WEIGHTS)
        for scores in line["sources"].values():
            assert scores["bits_per_base"] == pytest.approx(scores["loss"] / math.log(2))
            assert 200 < scores["num_bases"] < 600
        # About as many bases of each, and the loss is the mean that is trained on.
        assert line["num_bases"] == sum(scores["num_bases"] for scores in line["sources"].values())
        mean = sum(WEIGHTS[name] * scores["loss"] for name, scores in line["sources"].items())
        assert line["loss"] == pytest.approx(mean)
    printed = (config.run / "logs" / "rank_00000.log").read_text()
    assert re.search(
        r"step 6/6  validation bits/base [\d.]+  genomes [\d.]+  rna [\d.]+  dataset [\d.]+  unseen", printed
    )
    assert validations[1]["sources"]["dataset"]["loss"] == pytest.approx(loss_of_dataset(config, mixed), rel=1e-5)
    native = read_native(config.run / "checkpoints" / "step_00000006" / "native")
    assert native.patcher is not None
    assert native.patcher.describe() == Patcher.load(mixed["genomes"] / "patches.patcher").describe()
    assert native.trained_on is not None
    assert {name: found["weight"] for name, found in native.trained_on["sources"].items()} == {
        name: weight for name, weight in WEIGHTS.items() if weight
    }


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sources": None}, "nothing to train on: set folder, or sources"),
        ({"folder": "a"}, "folder and sources both say what is trained on"),
        ({"left_out": {"fold": 0, "folds": 2}}, "left_out is a stretch of a single dataset"),
        ({"sources": [{"path": "a", "weight": -1}]}, r"data\.sources\.0\.weight: .*greater than or equal to 0"),
        ({"sources": [{"path": "a", "weight": 0}]}, "all weights are 0"),
        ({"sources": [{"path": "a/b", "weight": 1}, {"path": "c/b", "weight": 1}]}, "b: several sources of one name"),
    ],
)
def test_settings_that_are_refused(toy_config, mixed, changes, says):
    with pytest.raises(ConfigError, match=says):
        config_for(toy_config, mixed, **changes)


def test_windows_of_one_dataset_are_not_named_in_several(toy_config, mixed):
    with pytest.raises(ConfigError, match=r"training\.validation\.windows counts the windows of one dataset"):
        config_for(toy_config, mixed, "training.validation.windows=[0]")


def test_sources_that_cannot_be_read(toy_config, mixed, tmp_path):
    def read(config: RunConfig) -> None:
        with RunData(config, RANKS).open_stage(0, 0) as batches:
            for _ in range(100):
                next(batches)

    def refused(paths: dict[str, Path], says: str, *overrides: str) -> None:
        config = config_for(toy_config, paths, *overrides)
        with pytest.raises(DataError, match=says):
            read(config)

    refused({"genomes": tmp_path / "none"}, r"none: neither the folder of a source \(source\.json\) or of a dataset")
    bare = write_source(tmp_path, "bare", "dna", "ACGT", 7)
    refused({"genomes": bare}, r"patches\.source\.json: no such file; annotate the source")
    annotate_source(AnnotationConfig.parse({"data": bare, "entropy_model": None, "rule": {"kind": "byte"}}))
    refused(
        {"genomes": mixed["genomes"], "rna": bare},
        r"bare was cut into patches by another patcher than .*genomes, .* with patcher=.*patches\.patcher",
    )
    refused({"rna": mixed["dataset"] / "train"}, r"no validation part")
    refused({"genomes": mixed["genomes"]}, "fewer than one window of 1,000,000", STAGES.replace("128", "1000000"))
    damaged = shutil.copytree(mixed["genomes"], tmp_path / "damaged")
    for shard in read_source(damaged).splits["train"]:
        (damaged / f"{shard.name}.bin").unlink()
    refused({"genomes": damaged}, r"train-\d+\.bin")
    forward = shutil.copytree(mixed["unseen"], tmp_path / "forward")
    settings = {"data": forward, "patcher": mixed["genomes"] / "patches.patcher", "both_strands": False}
    annotate_source(AnnotationConfig.parse(settings))
    refused({"genomes": forward}, r"forward: patches has no boundaries of the reverse strand")
    manifest = json.loads(source_path(forward).read_text())
    manifest["splits"]["train"][0]["data_sha256"] = "0" * 64
    source_path(forward).write_text(json.dumps(manifest))
    refused({"genomes": forward}, r"patches\.source\.json belongs to other shards than source\.json lists")


def test_a_dataset_is_trained_on_alone(toy_config, mixed):
    paths = {"genomes": mixed["genomes"], "rna": mixed["dataset"] / "train"}
    data = RunData(config_for(toy_config, paths), RANKS)
    assert [list(found) for found in data._validation] == [["genomes"]]
    mean = find_sources(config_for(toy_config, paths).data).mean_patch_bases
    parts = [find_source(path, "patches").mean_patch_bases for path in paths.values()]
    assert mean == pytest.approx(0.7 / (0.5 / parts[0] + 0.2 / parts[1]))
