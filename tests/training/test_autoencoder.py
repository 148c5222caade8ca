"""The autoencoder of patches under DeepSpeed, and runs that start from a checkpoint."""

from __future__ import annotations

import json
import math
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.evaluation.native_checkpoint import PretrainedError, save_pretrained
from hyena_blt_savanna.evaluation.reconstruction import wrong_bases
from hyena_blt_savanna.model.hyena_blt import UNREAD_WEIGHTS, HyenaBLT, HyenaBLTConfig
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_training import ToyBatch, split_windows, toy_windows
from hyena_blt_savanna.training.checkpoints import CheckpointError
from hyena_blt_savanna.training.engine import TrainingEngine
from hyena_blt_savanna.training.first_weights import freeze, load_first_weights
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.loss import base_nats
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.pretrain import pretrain
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.validation import validate

NUM_WINDOWS = 8
UNREAD = UNREAD_WEIGHTS["autoencoder"]
CONFIG = HyenaBLTConfig(
    local_width=8,
    max_patch_bases=8,
    kmers={"sizes": [2, 3]},
    global_model={"width": 16, "num_heads": 2, "blocks": ["hyena_se", "attention"]},
)


def build() -> HyenaBLT:
    torch.manual_seed(0)
    model = CONFIG.build()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def is_unread(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in UNREAD)


def plain_loss(model: HyenaBLT, batch: ToyBatch) -> torch.Tensor:
    nats = base_nats(model.reconstruct(batch.bases, batch.patch_lengths), batch.bases, model.class_of_byte)
    return (nats * batch.loss_weights[:, 1:]).sum() / batch.loss_weights[:, 1:].sum()


def share(ranks: Ranks, batch: ToyBatch) -> list[ToyBatch]:
    return split_windows(split_windows(batch, ranks.num_ranks)[ranks.rank], 2)


def check_steps(ranks: Ranks, zero_stage: int) -> None:
    """Losses, gradients and weights of two SGD steps, of which the frozen ones never move."""
    from deepspeed.utils import safe_get_full_grad

    plain, model = build(), build()
    first = {name: value.clone() for name, value in plain.state_dict().items()}
    freeze(model, UNREAD)
    engine = TrainingEngine(
        model,
        ranks,
        deepspeed_block={"zero_optimization": {"stage": zero_stage}, "zero_allow_untested_optimizer": True},
        torch_optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        objective="autoencoder",
    )
    for step in range(2):
        batch = toy_windows(NUM_WINDOWS, seed=step)
        plain.zero_grad()
        wanted = plain_loss(plain, batch)
        wanted.backward()
        sums = ranks.sum(engine.accumulate(share(ranks, batch)).values())
        assert math.isclose(sums[0] / sums[1], float(wanted.detach()), rel_tol=1e-5), f"ZeRO {zero_stage}, step {step}"
        gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (gradients[name] is not None) == (not is_unread(name)), name
            if parameter.requires_grad:
                difference = (safe_get_full_grad(parameter) - gradients[name]).abs().max() / gradients[name].abs().max()
                assert difference < 1e-5, f"ZeRO {zero_stage}, {name}: {difference}"
        engine.update(0.1)
        with torch.no_grad():
            for parameter in plain.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    weights = engine.consolidated_weights()
    assert set(weights) == (set(first) if ranks.is_first else set())
    for name, value in weights.items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert torch.equal(value, first[name]) == is_unread(name), name
    engine.deepspeed.destroy()


def of_one_letter(batch: ToyBatch, num_windows: int) -> ToyBatch:
    """The first windows hold A where they held A, C, G or T."""
    changed = torch.isin(batch.bases, torch.tensor(list(b"ACGT")))
    changed[num_windows:] = False
    return ToyBatch(batch.bases.masked_fill(changed, ord("A")), batch.patch_lengths, batch.loss_weights)


def check_decay_and_validation(ranks: Ranks, zero_stage: int) -> None:
    """AdamW's decay leaves frozen weights alone; exact patches are counted over the ranks' windows, each once."""
    model = build()
    freeze(model, UNREAD)
    engine = TrainingEngine(
        model,
        ranks,
        OptimizerConfig(lr=1e-2, weight_decay=0.5),
        deepspeed_block={"zero_optimization": {"stage": zero_stage}},
        objective="autoencoder",
    )
    for step in range(6):
        # Soon A is found everywhere, and that is right in some windows and wrong in others.
        engine.accumulate(share(ranks, of_one_letter(toy_windows(NUM_WINDOWS, seed=step), NUM_WINDOWS)))
        engine.update(0.1)
    weights = engine.consolidated_weights()
    windows = of_one_letter(toy_windows(5, num_bases=160, seed=999), 3)
    totals = validate(
        engine,
        range(5),
        2,
        lambda chosen: ToyBatch(
            windows.bases[list(chosen)], windows.patch_lengths[list(chosen)], windows.loss_weights[list(chosen)]
        ),
    )
    if ranks.is_first:
        plain = build()
        first = plain.state_dict()
        assert all(torch.equal(weights[name], first[name]) for name in weights if is_unread(name))
        plain.load_state_dict(weights)
        logits = plain.reconstruct(windows.bases, windows.patch_lengths)
        counts = windows.loss_weights > 0
        wrong, judged = wrong_bases(logits, windows.bases, windows.patch_lengths, plain.class_of_byte, counts)
        assert totals.judged_patches == int(judged.sum())
        assert totals.exact_patches == int((judged & (wrong == 0)).sum())
        assert 3 < totals.exact_patches < totals.judged_patches - 3
        assert math.isclose(totals.nats_per_base, float(plain_loss(plain, windows).detach()), rel_tol=1e-4)
    engine.deepspeed.destroy()


def all_cases() -> None:
    ranks = join_ranks()
    for zero_stage in (0, 1, 3):
        check_steps(ranks, zero_stage)
        check_decay_and_validation(ranks, zero_stage)


def test_deepspeed_equals_plain_torch() -> None:
    run_ranks(all_cases, 2, timeout_seconds=300)


def stages(steps: int) -> str:
    return f"training.stages=[{{steps: {steps}, window_bases: 128, batch_windows: 4}}]"


def run_all(cases: list[list[str] | tuple[Path, Path]]) -> None:
    """Runs configurations and moves folders, in turn."""
    ranks = join_ranks()
    for case in cases:
        if isinstance(case, list):
            pretrain(RunConfig.load(case), ranks)
        elif ranks.is_first:
            case[0].rename(case[1])
        ranks.wait()


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "native/model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_runs_that_start_from_others(toy_config: Path, tmp_path: Path, zero_stage: int) -> None:
    local, started, main = (tmp_path / name for name in ("local", "started", "main"))
    last = "checkpoints/step_00000006"
    base = [str(toy_config), f"deepspeed.zero_optimization.stage={zero_stage}", stages(6)]
    autoencoder = [*base, "training.objective=autoencoder", "training.checkpoints.every_steps=3"]
    start = [f"start_from={local}", "seed=7"]
    still = ["training.optimizer.lr=1e-30", "training.optimizer.weight_decay=0"]
    cases = [
        [*autoencoder, f"run={local}"],
        [*base, f"run={main}", *start, *still],
        [*autoencoder, f"run={started}", *start],
        # As if it had been killed after three steps; and what it started from is gone.
        (started / last, tmp_path / "undisturbed"),
        (local, tmp_path / "moved"),
        [*autoencoder, f"run={started}", *start],
    ]
    run_ranks(run_all, 2, cases, timeout_seconds=300)
    first, fresh = weights_of(tmp_path / "moved" / last), RunConfig.load([*base, "run=x"]).model.build().state_dict()
    undisturbed, again, of_main = (
        weights_of(tmp_path / "undisturbed"),
        weights_of(started / last),
        weights_of(main / last),
    )
    for name, value in first.items():
        torch.testing.assert_close(of_main[name], value, rtol=0, atol=1e-20)
        assert torch.equal(again[name], undisturbed[name]), name
        # Frozen weights are those of the checkpoint, after going on too.
        assert torch.equal(again[name], value) == is_unread(name), name
    assert any(is_unread(name) and not torch.equal(fresh[name], value) for name, value in first.items())
    assert RunConfig.load([started / "config.yaml"]).start_from == local
    lines = [json.loads(line) for line in (started / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["objective"] == "autoencoder"
    (validation,) = (line for line in lines if line["kind"] == "validation")
    assert 0 <= validation["share_of_patches_exact"] <= 1
    training = next(line for line in lines if line["kind"] == "training")
    wanted = training_flops_per_base(
        RunConfig.load([*autoencoder, f"run={started}"]).model, 128, training["mean_patch_bases"], "autoencoder"
    )
    assert training["flops_per_base"] == wanted


@pytest.fixture
def native(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "native", build().state_dict(), CONFIG, None)
    return tmp_path / "native"


def test_first_weights_are_the_checkpoint_s(native: Path) -> None:
    model = CONFIG.build()
    load_first_weights(model, CONFIG, native)
    wanted = build().state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    recomputing = CONFIG.parse(
        {**CONFIG.to_dict(), "global_model": {**CONFIG.to_dict()["global_model"], "activation_checkpointing": True}}
    )
    load_first_weights(model, recomputing, native)


def test_checkpoints_of_other_models_are_refused_by_key(native: Path, tmp_path: Path) -> None:
    tree = CONFIG.to_dict()
    other = CONFIG.parse({**tree, "local_width": 12, "kmers": {"sizes": [2]}})
    with pytest.raises(CheckpointError) as caught:
        load_first_weights(other.build(), other, native)
    message = str(caught.value)
    assert f"start_from: {native} is a checkpoint of another model" in message
    assert "model.local_width: 8 in the checkpoint, 12 in the run" in message
    assert "model.kmers.sizes" in message
    with pytest.raises(PretrainedError, match="nowhere does not exist"):
        load_first_weights(CONFIG.build(), CONFIG, tmp_path / "nowhere")


def test_the_autoencoder_is_for_models_of_patches(toy_config: Path, tmp_path: Path) -> None:
    path = tmp_path / "isotropic.yaml"
    tree = yaml.safe_load(toy_config.read_text())
    tree["model"] = {"kind": "isotropic", "stack": {"width": 16, "blocks": ["hyena_se"]}}
    path.write_text(yaml.safe_dump(tree))
    RunConfig.load([path, "run=x"])
    with pytest.raises(ConfigError, match=r"training\.objective autoencoder is for a model of patches .*isotropic"):
        RunConfig.load([path, "run=x", "training.objective=autoencoder"])


def other_objective(toy_config: Path, run: Path) -> None:
    ranks = join_ranks()
    base = [str(toy_config), f"run={run}", stages(2)]
    pretrain(RunConfig.load([*base, "training.objective=autoencoder"]), ranks)
    with pytest.raises(CheckpointError) as caught:
        pretrain(RunConfig.load(base), ranks)
    message = str(caught.value)
    assert "was trained with training.objective autoencoder, and this run has next_base" in message
    assert f"start_from={run / 'checkpoints/step_00000002'}" in message


def test_a_run_does_not_change_its_objective(toy_config: Path, tmp_path: Path) -> None:
    run_ranks(other_objective, 1, toy_config, tmp_path / "run")
