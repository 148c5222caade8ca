"""Runs of a model with losses of its own: what they read, what they tell, and how they go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hyena_blt_savanna.config import ConfigError, merge
from hyena_blt_savanna.data.entropies import EntropyReader
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import STRANDS
from hyena_blt_savanna.data.windows import WindowReader
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.model.flops import BACKWARD_RATIO, count_flops
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training.checkpoints import CheckpointError
from hyena_blt_savanna.training.first_weights import load_first_weights
from hyena_blt_savanna.training.pretrain import pretrain
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData

ROOT = Path(__file__).resolve().parents[2]
RANKS = Ranks(rank=0, num_ranks=1, device=torch.device("cpu"))
ALL = "model.auxiliary={patch_length: 0.1, entropy: 0.2, reconstruction: 0.3}"
DROPOUT = "model.kmers.dropout=0.3"
"""What is drawn after a restart is what would have been drawn without it."""
ENTROPY = "model.auxiliary.entropy=0.1"
LAST = "checkpoints/step_00000006"
HEADS = {f"auxiliary.{name}.{kind}" for name in ("patch_length", "entropy") for kind in ("weight", "bias")}


def arguments(toy_config: Path, data: Path, run: Path, *overrides: str) -> list[str]:
    stages = "training.stages=[{steps: 6, window_bases: 128, batch_windows: 8, micro_batch_windows: 2}]"
    base = [str(toy_config), f"data.folder={data}", f"run={run}", stages, "training.checkpoints.every_steps=3"]
    return [*base, "training.logging.every_steps=2", *overrides]


def run_all(cases: list[list[str] | tuple[Path, Path]]) -> None:
    """Runs configurations and moves folders, in turn."""
    ranks = join_ranks()
    for case in cases:
        if isinstance(case, list):
            pretrain(RunConfig.load(case), ranks)
        elif ranks.is_first:
            case[0].rename(case[1])
        ranks.wait()


def training_lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "auxiliary_nats_per_base", "grad_norm", "mean_patch_bases", "flops_per_base")
    return [{name: line[name] for name in names} for line in lines if line["kind"] == "training"]


@pytest.mark.slow
def test_a_run_with_all_losses_goes_on_bit_for_bit(toy_config: Path, annotated: Path, tmp_path: Path) -> None:
    whole, again, zero3, plain, recut = (tmp_path / name for name in ("whole", "again", "zero3", "plain", "recut"))
    all_losses = arguments(toy_config, annotated, whole, ALL, DROPOUT)
    cases = [
        all_losses,
        arguments(toy_config, annotated, again, ALL, DROPOUT),
        # As if it had been killed after three steps, in the middle of a logging interval.
        (again / LAST, tmp_path / "undisturbed"),
        arguments(toy_config, annotated, again, ALL, DROPOUT),
        arguments(toy_config, annotated, zero3, ALL, DROPOUT, "deepspeed.zero_optimization.stage=3"),
        arguments(toy_config, annotated, plain),
        arguments(
            toy_config, annotated, recut, ALL, "data.cuts={spread: 1.5, static_share: 0.3, blind_patch_bases: [2, 8]}"
        ),
    ]
    run_ranks(run_all, 2, cases, timeout_seconds=300)
    weights = {run: load_file(run / LAST / "native/model.safetensors") for run in (whole, again, plain, recut)}
    assert all(torch.equal(value, weights[again][name]) for name, value in weights[whole].items())
    lines = training_lines(whole)
    assert lines == training_lines(again)
    for line, other in zip(lines, training_lines(zero3), strict=True):
        assert math.isclose(line["auxiliary_nats_per_base"], other["auxiliary_nats_per_base"], rel_tol=1e-4)
    # The loss that is told is the bases' alone: at first, all five classes are as likely.
    assert math.isclose(lines[0]["loss"], math.log(5), rel_tol=1e-2)
    assert math.isclose(lines[0]["loss"], training_lines(plain)[0]["loss"], rel_tol=1e-2)
    assert all(line["auxiliary_nats_per_base"] is None for line in training_lines(plain))
    assert training_lines(recut)[0]["mean_patch_bases"] != lines[0]["mean_patch_bases"]
    assert all(line["auxiliary_nats_per_base"] > 0.3 * math.log(2) for line in lines + training_lines(recut))
    model = RunConfig.load(all_losses).model
    patches = round(128 / lines[0]["mean_patch_bases"])
    wanted = (1 + BACKWARD_RATIO) * count_flops(model, 128, patches, training=True)["total"] / 128
    assert lines[0]["flops_per_base"] == wanted > 3 * count_flops(model, 128, patches)["total"] / 128
    assert weights[whole].keys() - weights[plain].keys() == HEADS
    # The heads have learned, and are a part of the model that is evaluated.
    native = read_native(whole)
    assert all(weights[whole][name].abs().sum() > 0 for name in HEADS)
    assert all(torch.equal(native.module.state_dict()[name], value) for name, value in weights[whole].items())
    logits = native.module(torch.full((1, 12), ord("A")), torch.tensor([[1, 8]]))
    assert isinstance(logits, torch.Tensor)


def test_batches_hold_the_entropies_of_their_own_bases(toy_config: Path, annotated: Path, tmp_path: Path) -> None:
    """Through the whole of a run's data: each row's entropies are those that stand beside its bases on disk."""
    streams = {}
    for strand in STRANDS:
        bases = WindowReader(annotated / "train", None, strand).find(0, 6001).read().bases
        # Read as a ring: windows go on at the start.
        streams[strand] = (
            bytes(bases).upper() * 2,
            EntropyReader(annotated / "train", "patches", strand).read(0, 6001),
        )
    for cuts in ("null", "{spread: 1.5, random_share: 0.5, blind_patch_bases: [2, 8]}"):
        config = RunConfig.load(arguments(toy_config, annotated, tmp_path, ENTROPY, f"data.cuts={cuts}"))
        num_rows, found_on = 0, set()
        with RunData(config, RANKS).open_stage(0, 0) as batches:
            for _ in range(30):
                batch = next(batches)
                for row, bases in enumerate(batch.bases.tolist()):
                    num_bases = int(batch.patch_lengths[row].sum())
                    text = bytes(bases[1:num_bases])
                    [strand] = [strand for strand in STRANDS if text in streams[strand][0]]
                    start = streams[strand][0].index(text)
                    wanted = torch.tensor(streams[strand][1]).roll(-start)[: len(text)]
                    assert torch.equal(batch.entropies[row, 1:num_bases], wanted)
                    assert not batch.entropies[row, num_bases:].any()
                    assert batch.entropies[row, 0] == 0
                    num_rows += 1
                    found_on.add(strand)
        assert num_rows > 50
        assert found_on == set(STRANDS)


def test_entropies_are_read_where_they_are_learned(toy_config: Path, annotated: Path, toy_data: Path) -> None:
    def has_entropies(*overrides: str) -> bool:
        data = RunData(RunConfig.load(arguments(toy_config, annotated, Path("run"), *overrides)), RANKS)
        with data.open_stage(0, 0) as batches:
            return next(batches).entropies is not None

    assert has_entropies(ENTROPY)
    assert not has_entropies("model.auxiliary={patch_length: 1, reconstruction: 1}")
    assert not has_entropies(ENTROPY, "training.objective=autoencoder")
    with pytest.raises(
        DataError, match=r"train\.patches\.manifest\.json: no stored .* again with store_entropies=true"
    ):
        RunData(RunConfig.load(arguments(toy_config, toy_data, Path("run"), ENTROPY)), RANKS)
    RunData(RunConfig.load(arguments(toy_config, toy_data, Path("run"), "model.auxiliary.patch_length=1")), RANKS)


def test_losses_are_for_a_model_of_stored_patches(toy_config: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.annotation is null, and model\.kind hyena_blt reads patches"):
        RunConfig.load([toy_config, "run=x", ENTROPY, "data.annotation=null"])
    tree = yaml.safe_load(toy_config.read_text())
    tree["model"] = {"kind": "isotropic", "stack": {"width": 16, "blocks": ["hyena_se"]}}
    path = tmp_path / "isotropic.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"model: auxiliary losses are for kind hyena_blt, and kind is isotropic"):
        RunConfig.load([path, "run=x", ENTROPY])


def test_first_weights_are_of_a_model_with_the_same_losses(toy_config: Path, annotated: Path, tmp_path: Path) -> None:
    """Neither heads that are missing nor heads that are not asked for are passed over."""
    config, bare = (RunConfig.load([toy_config, "run=x", *more]) for more in ([ENTROPY], []))
    data = RunData(RunConfig.load(arguments(toy_config, annotated, tmp_path, ENTROPY)), RANKS)
    data.native_writer()(tmp_path / "native", config.model.build().state_dict(), 1)
    load_first_weights(config.model.build(), config.model, tmp_path / "native")
    with pytest.raises(CheckpointError, match=r"model\.auxiliary\.entropy: 0\.1 in the checkpoint, 0\.0 in the run"):
        load_first_weights(bare.model.build(), bare.model, tmp_path / "native")


@pytest.mark.parametrize("name", ["patch_length", "entropy", "reconstruction"])
def test_each_loss_has_a_row_over_the_quickstart(name: str) -> None:
    files = [ROOT / "configs/quality/models/hyena_blt.yaml", ROOT / f"configs/quality/auxiliary/{name}.yaml"]
    base, found = (HyenaBLTConfig.parse(merge(chosen)["model"]) for chosen in (files[:1], files))
    assert found.auxiliary.to_dict() == base.auxiliary.to_dict() | {name: 0.1}
    assert found.model_copy(update={"auxiliary": base.auxiliary}) == base
