"""Runs on meshes of data times context ranks equal a run on one rank."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.nucleotides import PADDING
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training.pretrain import main, pretrain
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData

STACK = {"width": 16, "num_heads": 4, "blocks": ["hyena_se", "hyena_li", "attention"]}
HYBRID = {
    "kind": "hyena_blt",
    "local_width": 16,
    "max_patch_bases": 8,
    "kmers": {"sizes": [2, 3]},
    "encoder": {"blocks": ["hyena_se"]},
    "decoder": {"blocks": ["gated_convolution"], "hidden_width": 16},
    "global_model": STACK,
}
ISOTROPIC = {"kind": "isotropic", "stack": STACK, "kmers": {"sizes": [2, 4]}}


@pytest.fixture
def write_config(toy_config: Path, tmp_path: Path):
    """Writes a run of five steps of four windows, with other keys of the top level; gives its path."""

    def write(**changes: Any) -> Path:
        tree = yaml.safe_load(toy_config.read_text())
        tree["training"] |= {
            "stages": [{"steps": 5, "window_bases": 256, "batch_windows": 4, "micro_batch_windows": 1}],
            "validation": {"every_steps": 5, "num_bases": 1000},
            "checkpoints": {"every_steps": 3},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**tree, "run": str(tmp_path / "run"), **changes}))
        return path

    return write


def lines_of(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def figures(run: Path, kinds: tuple[str, ...] = ("training", "validation")) -> list[list[float]]:
    """Losses, norms of gradients, bases and patches of a run's lines."""
    keys = ("step", "loss", "grad_norm", "mean_patch_bases", "num_bases")
    return [[line[key] for key in keys if key in line] for line in lines_of(run) if line["kind"] in kinds]


def padding_of_first_step(arguments: list[str], num_ranks: int, num_context: int) -> list[float]:
    """Shares of bases and of patches that are padding, by the bytes and zeros that stand for it."""
    bases, lengths = [], []
    for rank in range(num_ranks):
        ranks = Ranks(rank, num_ranks, torch.device("cpu"), num_context)
        with RunData(RunConfig.load(arguments), ranks).open_stage(0, 0) as batches:
            for batch in islice(batches, 4 * num_context // num_ranks):
                bases.append(batch.bases.flatten())
                lengths.append(batch.patch_lengths.flatten())
    return [float((torch.cat(bases) == PADDING).double().mean()), float((torch.cat(lengths) == 0).double().mean())]


def run_all(cases: list[list[str]]) -> None:
    ranks = join_ranks()
    for arguments in cases:
        pretrain(RunConfig.load(arguments), ranks)


@pytest.mark.slow
def test_a_mesh_trains_as_one_rank_does(write_config, toy_data, tmp_path):
    cases, wanted = [], {}
    for name, model, annotation, meshes in (
        ("hybrid", HYBRID, "patches", ((2, 1), (4, 3))),
        ("isotropic", ISOTROPIC, None, ((2, 3),)),
    ):
        data = {"folder": str(toy_data), "repeat_weight": 0.5, "annotation": annotation}
        path = write_config(model=model, data=data).rename(tmp_path / f"{name}.yaml")
        assert main([str(path), f"run={tmp_path / name}"]) == 0
        for num_context, stage in meshes:
            run = tmp_path / f"{name}, {num_context} of 4 ranks, ZeRO {stage}"
            mesh = [f"parallel.context={num_context}", f"deepspeed.zero_optimization.stage={stage}"]
            cases.append([str(path), f"run={run}", *mesh])
            padding = padding_of_first_step(cases[-1], 4, num_context)
            wanted[run] = figures(tmp_path / name), padding
    run_ranks(run_all, 4, cases, timeout_seconds=300)
    for run, (alone, padding) in wanted.items():
        assert len(alone) == 6
        for found, line in zip(figures(run), alone, strict=True):
            assert found == pytest.approx(line, rel=1e-5), run.name
        told = next(line for line in lines_of(run) if line["kind"] == "training")
        assert [told["padding_share_of_bases"], told["padding_share_of_patches"]] == padding
        assert max(padding) > 0


@pytest.mark.slow
def test_a_run_goes_on_on_other_meshes(write_config, tmp_path):
    """With dropout: whoever shares a window leaves out the same, also after a restart. On two ranks with offload."""
    path = write_config(model={**HYBRID, "kmers": {"sizes": [2, 3], "dropout": 0.3}})
    assert main([str(path), f"run={tmp_path / 'alone'}"]) == 0
    moved = tmp_path / "moved"
    offload = "{stage: 3, offload_optimizer: {device: cpu}, offload_param: {device: cpu}}"
    for num_ranks, num_steps, zero in ((1, 2, "{stage: 1}"), (2, 4, offload), (1, 5, "{stage: 0}")):
        # The warm-up is the same for runs of any length.
        stage = f"{{steps: {num_steps}, window_bases: 256, batch_windows: 4, micro_batch_windows: 1}}"
        mesh = [f"parallel.context={num_ranks}", f"deepspeed.zero_optimization={zero}"]
        arguments = [str(path), f"run={moved}", f"training.stages=[{stage}]", *mesh]
        assert set(run_ranks(main, num_ranks, arguments) if num_ranks > 1 else [main(arguments)]) == {0}
        assert len(list((moved / "checkpoints").glob(f"step_{num_steps:08d}/random_states/*"))) == 1
    losses = [[line[1] for line in figures(run, ("training",))] for run in (tmp_path / "alone", moved)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "overrides", "says"),
    [
        ({**HYBRID, "kind": "hnet"}, [], None),
        (
            HYBRID,
            ["parallel.context=3"],
            r"parallel.context = 3 does not divide hyena.li_groups = 16 .* 1, 2, 4, 8, 16",
        ),
        (HYBRID, ["parallel.context=8"], r"parallel.context = 8 does not divide num_heads = 4 of the attention blocks"),
        (
            {**HYBRID, "global_model": {"width": 6, "blocks": ["hyena_implicit"]}},
            ["parallel.context=4"],
            r"parallel.context = 4 does not divide width = 6 of the hyena_implicit blocks: choose from 1, 2, 3, 6, or",
        ),
        (ISOTROPIC, [], "slices of single bases are of one length: set data.annotation=null"),
    ],
)
def test_what_a_mesh_cannot_train_is_refused(write_config, model, overrides, says):
    if model["kind"] == "hnet":
        parts = {name: {"width": 16, "blocks": ["hyena_se"]} for name in ("encoder", "decoder", "main_network")}
        model, says = (
            {"kind": "hnet", **parts},
            "hyena_blt and isotropic, and model.kind is hnet: use parallel.context=1",
        )
    with pytest.raises(ConfigError, match=says):
        RunConfig.load([write_config(model=model), "parallel.context=2", *overrides])


def test_ranks_that_are_no_multiple_are_refused(write_config, capfd):
    assert main([str(write_config(model=HYBRID)), "parallel.context=2"]) == 2
    said = capfd.readouterr().err
    assert "parallel.context = 2 does not divide the 1 ranks of this run; choose from 1, or start a multiple" in said
