"""Gradients, weights and losses under DeepSpeed against plain torch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from hyena_blt_savanna.model.hnet import HNet, HNetConfig
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.kmer_tokens import KmerTokensConfig
from hyena_blt_savanna.nucleotides import PADDING
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_training import ToyBatch, ToyModel, split_windows, toy_windows
from hyena_blt_savanna.training.engine import DivergedError, Totals, TrainingEngine, faster_precision
from hyena_blt_savanna.training.loss import weighted_nats
from hyena_blt_savanna.training.model_config import with_activation_checkpointing
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.ranks import Ranks, join_ranks

NUM_WINDOWS = 8
CLIPPING = 0.05


def make_model(seed: int = 0) -> ToyModel:
    torch.manual_seed(seed)
    return ToyModel()


def plain_auxiliary_nats(model: nn.Module, batch: ToyBatch) -> torch.Tensor | None:
    targets = {name: getattr(batch, name) for name in ("loss_weights", *getattr(model, "auxiliary_inputs", ()))}
    return model(batch.bases, batch.patch_lengths, **targets).auxiliary_nats


def plain_gradients(model: nn.Module, batch: ToyBatch) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the bases by the formula, in one pass over all windows; the gradients of the model's own too."""
    log_probabilities = model(batch.bases, batch.patch_lengths).log_softmax(-1)
    auxiliary_nats = plain_auxiliary_nats(model, batch)
    scored = []
    for row, position in itertools.product(range(len(batch.bases)), range(1, batch.bases.shape[1])):
        column = int(model.class_of_byte[batch.bases[row, position]])
        if column >= 0:
            scored.append((row, position, column))
    rows, positions, columns = (torch.tensor(indices) for indices in zip(*scored, strict=True))
    nats = -log_probabilities[rows, positions - 1, columns]
    loss = (nats * batch.loss_weights[rows, positions]).sum() / batch.loss_weights.sum()
    model.zero_grad()
    (loss if auxiliary_nats is None else loss + auxiliary_nats / batch.loss_weights.sum()).backward()
    return float(loss.detach()), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def share(ranks: Ranks, accumulation: int, batch: ToyBatch) -> list[ToyBatch]:
    return split_windows(split_windows(batch, ranks.num_ranks)[ranks.rank], accumulation)


def largest_difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    # A gradient may be zero: each window opens with a finished patch, so the decoder's start vector is never read.
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))


def check_gradients(ranks: Ranks, zero_stage: int, accumulation: int) -> None:
    from deepspeed.utils import safe_get_full_grad

    batch = toy_windows(NUM_WINDOWS)
    wanted_loss, wanted = plain_gradients(make_model(), batch)
    model = make_model()
    engine = TrainingEngine(
        model,
        ranks,
        deepspeed_block={"zero_optimization": {"stage": zero_stage}, "zero_allow_untested_optimizer": True},
        torch_optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
    )
    # A step before, with other data: nothing of it may stay.
    engine.accumulate(share(ranks, accumulation, toy_windows(NUM_WINDOWS, seed=1)))
    engine.update(0.0)
    totals = engine.accumulate(share(ranks, accumulation, batch))
    sums = ranks.sum(totals.values())
    assert math.isclose(sums[0] / sums[1], wanted_loss, rel_tol=1e-6)
    real = (batch.bases != 1).sum() - NUM_WINDOWS
    assert sums[2] == int(real)
    assert sums[3] == int((batch.patch_lengths > 0).sum()) - NUM_WINDOWS
    for name, parameter in model.named_parameters():
        difference = largest_difference(safe_get_full_grad(parameter), wanted[name])
        assert difference < 1e-5, f"ZeRO {zero_stage}, accumulation {accumulation}, {name}: {difference}"
    norm = engine.update(0.0)
    wanted_norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in wanted.values()))
    assert math.isclose(norm, wanted_norm, rel_tol=1e-5)
    engine.deepspeed.destroy()


def check_clipped_sgd(ranks: Ranks, zero_stage: int) -> None:
    """Weights after five clipped SGD steps."""
    plain = make_model()
    plain_sgd = torch.optim.SGD(plain.parameters(), lr=1.0)
    model = make_model()
    engine = TrainingEngine(
        model,
        ranks,
        gradient_clipping=CLIPPING,
        deepspeed_block={"zero_optimization": {"stage": zero_stage}, "zero_allow_untested_optimizer": True},
        torch_optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
    )
    for step in range(5):
        batch = toy_windows(NUM_WINDOWS, seed=step)
        plain_gradients(plain, batch)
        assert nn.utils.clip_grad_norm_(plain.parameters(), CLIPPING) > CLIPPING
        plain_sgd.param_groups[0]["lr"] = 1.0 / (step + 1)
        plain_sgd.step()
        engine.accumulate(share(ranks, 2, batch))
        engine.update(1.0 / (step + 1))
    weights = engine.consolidated_weights()
    assert set(weights) == (set(plain.state_dict()) if ranks.is_first else set())
    for name, value in weights.items():
        assert largest_difference(value, plain.state_dict()[name]) < 1e-5, f"ZeRO {zero_stage}, {name}"
    engine.deepspeed.destroy()


def check_adamw_losses(ranks: Ranks, zero_stage: int) -> None:
    optimizer = OptimizerConfig(lr=1e-2)
    plain = make_model()
    plain_adamw = torch.optim.AdamW(optimizer.build(plain).param_groups, lr=1e-2, betas=optimizer.betas, foreach=False)
    engine = TrainingEngine(
        make_model(), ranks, optimizer, deepspeed_block={"zero_optimization": {"stage": zero_stage}}
    )
    for step in range(5):
        batch = toy_windows(NUM_WINDOWS, seed=step)
        wanted, _ = plain_gradients(plain, batch)
        plain_adamw.step()
        sums = ranks.sum(engine.accumulate(share(ranks, 1, batch)).values())
        engine.update(1e-2)
        assert math.isclose(sums[0] / sums[1], wanted, rel_tol=1e-4), f"ZeRO {zero_stage}, step {step}"
    engine.deepspeed.destroy()


def check_bf16(ranks: Ranks, zero_stage: int) -> None:
    """bf16 keeps fp32 weights and learns nearly what fp32 learns."""
    engine = TrainingEngine(
        make_model(),
        ranks,
        OptimizerConfig(lr=1e-2),
        precision="bf16",
        deepspeed_block={"zero_optimization": {"stage": zero_stage}},
    )
    batch = toy_windows(NUM_WINDOWS)
    wanted, _ = plain_gradients(make_model(), batch)
    first = ranks.sum(engine.accumulate(share(ranks, 2, batch)).values())
    assert engine.logits(share(ranks, 1, batch)[0]).dtype == torch.bfloat16
    engine.update(1e-2)
    second = ranks.sum(engine.accumulate(share(ranks, 2, batch)).values())
    engine.update(1e-2)
    assert first[0] / first[1] != wanted
    assert math.isclose(first[0] / first[1], wanted, rel_tol=2e-2)
    assert second[0] < first[0]
    assert all(value.dtype == torch.float32 for value in engine.consolidated_weights().values())
    engine.deepspeed.destroy()


def check_diverging(ranks: Ranks, zero_stage: int) -> None:
    model = make_model()
    engine = TrainingEngine(model, ranks, deepspeed_block={"zero_optimization": {"stage": zero_stage}})
    before = engine.consolidated_weights()
    batch = toy_windows(NUM_WINDOWS)
    batch.loss_weights[0, 5] = math.nan
    engine.accumulate(share(ranks, 1, batch))
    with pytest.raises(DivergedError, match="training has diverged"):
        engine.update(1e-2)
    after = engine.consolidated_weights()
    assert all(torch.equal(after[name], before[name]) for name in before)
    engine.deepspeed.destroy()


def check_nothing_scored(ranks: Ranks, zero_stage: int) -> None:
    """A step without a scored base changes nothing by its gradients, and does not divide by nothing."""
    engine = TrainingEngine(make_model(), ranks, deepspeed_block={"zero_optimization": {"stage": zero_stage}})
    batch = toy_windows(NUM_WINDOWS)
    batch.loss_weights.zero_()
    totals = engine.accumulate(share(ranks, 1, batch))
    assert totals.nats == totals.weight == 0
    assert engine.update(1e-2) == 0
    engine.deepspeed.destroy()


MODELS = {
    "hyena_blt": HyenaBLTConfig(
        local_width=8,
        max_patch_bases=8,
        kmers={"sizes": [2, 3]},
        global_model={"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"]},
    ),
    "auxiliary": HyenaBLTConfig(
        local_width=8,
        max_patch_bases=8,
        kmers={"sizes": [2, 3]},
        global_model={"width": 16, "num_heads": 2, "blocks": ["hyena_se", "attention"]},
        auxiliary={"patch_length": 0.7, "entropy": 0.3, "reconstruction": 0.5},
    ),
    "hnet": HNetConfig(
        kmers={"sizes": [2, 3]},
        encoder={"width": 8, "blocks": ["hyena_se"]},
        main_network={"width": 12, "num_heads": 2, "blocks": ["hyena_se", "attention"]},
        decoder={"width": 8, "blocks": ["hyena_se"]},
    ),
    "kmer_tokens": KmerTokensConfig(word_bases=8, global_model={"width": 8, "blocks": ["hyena_implicit"]}),
    "isotropic": IsotropicConfig(stack={"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_li", "attention"]}),
}


def build(kind: str, checkpointed: bool) -> nn.Module:
    torch.manual_seed(0)
    model = with_activation_checkpointing(MODELS[kind], checkpointed).build()
    for parameter in model.parameters():
        # Some weights start at zero, behind which no gradient would be seen.
        nn.init.normal_(parameter, std=0.3)
    return model


def num_patches(model: nn.Module, batch: ToyBatch) -> int:
    """Those that are found, or given, the bytes in front not counted."""
    if isinstance(model, HNet):
        return int(model.chunk_starts(batch.bases).sum())
    return int((batch.patch_lengths > 0).sum()) - len(batch.bases)


def check_real_model(ranks: Ranks, zero_stage: int, kind: str, saving: bool) -> None:
    """Losses before and after a step, gradients of the step, of the models that are trained in earnest.

    Saving memory: with activation checkpointing, and the loss by chunks of bases.
    """
    from deepspeed.utils import safe_get_full_grad

    batch = toy_windows(NUM_WINDOWS)
    plain = build(kind, checkpointed=False)
    wanted_loss, wanted = plain_gradients(plain, batch)
    with torch.no_grad():
        wanted_auxiliary = float(plain_auxiliary_nats(plain, batch) or 0.0)
    wanted_patches = num_patches(plain, batch)
    for parameter in plain.parameters():
        parameter.data -= 0.01 * parameter.grad
    wanted_next, _ = plain_gradients(plain, batch)
    model = build(kind, checkpointed=saving)
    engine = TrainingEngine(
        model,
        ranks,
        deepspeed_block={"zero_optimization": {"stage": zero_stage}, "zero_allow_untested_optimizer": True},
        torch_optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        loss_chunk_bases=37 if saving else None,
    )
    sums = ranks.sum(engine.accumulate(share(ranks, 2, batch)).values())
    # ZeRO 3 gathers a weight around its owner's forward; it has noted any that was used elsewhere.
    assert not [name for name, part in model.named_modules() if getattr(part, "_external_params", None)]
    totals = Totals(*sums)
    assert math.isclose(totals.nats_per_base, wanted_loss, rel_tol=1e-6)
    assert math.isclose(totals.auxiliary_nats, wanted_auxiliary, rel_tol=1e-6)
    assert totals.patches == wanted_patches
    assert totals.padding_share_of_bases == float((batch.bases == PADDING).double().mean()) > 0
    assert totals.padding_share_of_patches == float((batch.patch_lengths == 0).double().mean()) > 0
    assert (totals.auxiliary_nats_per_base is None) == (kind not in ("auxiliary", "hnet"))
    # In evaluation the bases are all that counts.
    model.eval()
    with torch.no_grad():
        part = share(ranks, 2, batch)[0]
        scored = engine.score(part, part.loss_weights)
        logits = engine.logits(part)
    assert scored.auxiliary_nats is None
    nats = weighted_nats(logits, part.bases, part.loss_weights, model.class_of_byte)
    assert math.isclose(scored.nats, nats, rel_tol=1e-6)
    model.train()
    for name, parameter in model.named_parameters():
        difference = largest_difference(safe_get_full_grad(parameter), wanted[name])
        assert difference < 1e-5, f"{kind}, ZeRO {zero_stage}, {name}: {difference}"
    engine.update(0.01)
    sums = ranks.sum(engine.accumulate(share(ranks, 2, batch)).values())
    assert math.isclose(sums[0] / sums[1], wanted_next, rel_tol=1e-5)
    engine.update(0.0)
    engine.deepspeed.destroy()


def all_cases() -> None:
    ranks = join_ranks()
    for zero_stage, kind in itertools.product((0, 3), MODELS):
        check_real_model(ranks, zero_stage, kind, saving=zero_stage == 3)
    for zero_stage, accumulation in itertools.product((0, 1, 2, 3), (1, 2)):
        check_gradients(ranks, zero_stage, accumulation)
    for zero_stage in (0, 1, 2, 3):
        check_clipped_sgd(ranks, zero_stage)
        check_adamw_losses(ranks, zero_stage)
    for zero_stage in (0, 1, 3):
        check_bf16(ranks, zero_stage)
        check_diverging(ranks, zero_stage)
    check_nothing_scored(ranks, 0)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_deepspeed_equals_plain_torch(num_ranks: int) -> None:
    run_ranks(all_cases, num_ranks, timeout_seconds=300)


@pytest.mark.parametrize(
    ("capabilities", "wanted"), [({"amx_bf16": True}, "bf16"), ({"amx_bf16": False}, "fp32"), ({}, "fp32")]
)
def test_bf16_is_chosen_where_the_hardware_multiplies_in_it(monkeypatch, capabilities, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert faster_precision(torch.device("cpu")) == wanted
    assert faster_precision(torch.device("cuda")) == "bf16"
