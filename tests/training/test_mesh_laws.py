"""Steps on meshes of data times context ranks, under every stage of ZeRO, equal those of plain torch on one device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hyena_blt_savanna.data.batches import Batch, collate
from hyena_blt_savanna.data.slices import slice_batch
from hyena_blt_savanna.data.windows import Window
from hyena_blt_savanna.evaluation.reconstruction import wrong_bases
from hyena_blt_savanna.model.hyena_blt import UNREAD_WEIGHTS, HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel
from hyena_blt_savanna.patching.cutting import PatchCutter
from hyena_blt_savanna.patching.rules import (
    BudgetRule,
    ByteRule,
    EntropyRule,
    JumpRule,
    MonotonicRule,
    PatchRuleConfig,
    StaticRule,
)
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_genomes import random_genome
from hyena_blt_savanna.training.engine import Totals, TrainingEngine
from hyena_blt_savanna.training.first_weights import freeze
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.validation import validate

NUM_RANKS, NUM_STEPS, NUM_WINDOWS, LONGEST = 4, 5, 4, 8
LR, CLIPPING = 0.3, 0.1
RULES: list[PatchRuleConfig] = [
    StaticRule(patch_bases=4, max_patch_bases=LONGEST),
    EntropyRule(threshold_nats=1.0, max_patch_bases=LONGEST),
    MonotonicRule(rise_nats=0.3, max_patch_bases=LONGEST),
    ByteRule(max_patch_bases=LONGEST),
    JumpRule(threshold_nats=0.7, rise_nats=0.1, max_patch_bases=LONGEST),
    BudgetRule(budget_nats=3.0, min_patch_bases=2, max_patch_bases=LONGEST),
]
TAG = b"|D__TOY|"
STACK = {
    "width": 16,
    "num_heads": 4,
    # Slices of 20 patches are shorter than the halo of hyena_mr.
    "blocks": ["hyena_se", "hyena_mr", "hyena_li", "hyena_implicit", "attention"],
    "hyena": {"mr_taps": 30, "se_groups": 8, "mr_groups": 4, "li_groups": 8, "implicit_hidden_width": 8},
}
CONFIGS: dict[str, HyenaBLTConfig | IsotropicConfig] = {
    "hybrid": HyenaBLTConfig(
        local_width=8,
        max_patch_bases=LONGEST,
        kmers={"sizes": [2, 3]},
        encoder={"blocks": ["hyena_se"]},
        global_model=STACK,
        decoder={"blocks": ["gated_convolution"], "hidden_width": 8},
        auxiliary={"patch_length": 0.3, "entropy": 0.1, "reconstruction": 0.2},
    ),
    "isotropic": IsotropicConfig(stack={**STACK, "activation_checkpointing": True}, kmers={"sizes": [2]}),
}
TO_CPU = {"device": "cpu"}
ZERO: dict[str, dict[str, Any]] = {
    **{str(stage): {"stage": stage} for stage in range(4)},
    "2 offloaded": {"stage": 2, "offload_optimizer": TO_CPU},
    "3 offloaded": {"stage": 3, "offload_optimizer": TO_CPU, "offload_param": TO_CPU},
}


@dataclass(frozen=True)
class Case:
    """A mesh, how ZeRO shares its weights out, and the windows of a micro batch."""

    model: str
    num_context: int
    zero: str
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.model}, {self.num_context} context ranks, ZeRO {self.zero}, micro batches of {self.micro_batch}"


SGD_CASES = [
    *(Case("hybrid", 2, zero, micro) for zero, micro in (("0", 1), ("1", 2), ("2", 1), ("3", 2))),
    *(Case("hybrid", 2, zero, micro) for zero, micro in (("2 offloaded", 1), ("3 offloaded", 2))),
    *(Case("hybrid", 4, zero, micro) for zero, micro in (("0", 2), ("2 offloaded", 4))),
    *(Case("hybrid", 1, zero, 1) for zero in ("2 offloaded", "3 offloaded")),
    Case("isotropic", 2, "3", 2),
    Case("isotropic", 4, "0", 1),
]
ADAMW_CASES = [Case("hybrid", 4, "0", 2), Case("hybrid", 2, "2 offloaded", 2)]


def window(rule: PatchRuleConfig | None, seed: int) -> Window:
    """A tag, masked repeats and a run of unknown bases, of another length for each seed; without a rule, bare bases."""
    num_bases = 80 + 3 * (seed % 5)
    genome = random_genome(num_bases, seed, lower_fraction=0.4)
    genome[50:54] = ord("N")
    bases = np.concatenate([np.frombuffer(TAG, np.uint8), genome])
    entropies = np.random.default_rng(seed).uniform(0, 1.386, len(bases)).astype(np.float32)
    if rule is None:
        lengths = np.ones(90, dtype=np.int32)
        return Window(bases[:90], lengths, 0, len(TAG))
    cutter = PatchCutter(rule)
    lengths = np.concatenate([cutter.cut(bases, entropies), cutter.finish()])
    return Window(bases, lengths, 0, len(TAG), entropies=entropies)


def steps() -> dict[str, list[Batch]]:
    """The windows of each step, each cut by another rule; those of the isotropic model are of one length."""
    seeds = [[10 * step + row for row in range(NUM_WINDOWS)] for step in range(NUM_STEPS)]
    by_rules = [[window(RULES[seed % len(RULES)], seed) for seed in step] for step in seeds]
    bare = [[window(None, seed) for seed in step] for step in seeds]
    return {
        name: [collate(windows, repeat_weight=0.3) for windows in found]
        for name, found in (("hybrid", by_rules), ("isotropic", bare))
    }


def rows(batch: Batch, first: int, last: int) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return Batch(**{name: value[first:last] if isinstance(value, Tensor) else value for name, value in values.items()})


def share(ranks: Ranks, case: Case, batch: Batch) -> list[Batch]:
    """This rank's slices of its data rank's windows."""
    mesh, config = ranks.mesh, CONFIGS[case.model]
    num_own = NUM_WINDOWS // mesh.num_data
    firsts = range(mesh.data * num_own, (mesh.data + 1) * num_own, case.micro_batch)
    parts = [rows(batch, first, first + case.micro_batch) for first in firsts]
    if mesh.num_context == 1:
        return parts
    return [slice_batch(part, mesh.context, mesh.num_context, config.num_left_patches) for part in parts]


def build(name: str, context: ContextParallel = SINGLE_RANK) -> nn.Module:
    torch.manual_seed(0)
    model = CONFIGS[name].build(context)
    for weight in model.parameters():
        # Some start at zero, behind which no gradient would be seen.
        if weight.abs().max() == 0:
            nn.init.normal_(weight, std=0.2)
    return model


def plain_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss of the bases by its formula, and what is trained: with the model's own losses."""
    nats, weight = nats_of(model(batch.bases, batch.patch_lengths), model, batch), batch.loss_weights.sum()
    asked = {name: getattr(batch, name) for name in ("loss_weights", *getattr(model, "auxiliary_inputs", ()))}
    own_nats = model(batch.bases, batch.patch_lengths, **asked).auxiliary_nats
    return nats / weight, (nats if own_nats is None else nats + own_nats) / weight


def nats_of(logits: Tensor, model: nn.Module, batch: Batch) -> Tensor:
    classes = model.class_of_byte[batch.bases[:, 1:]]
    scores = logits[:, :-1].log_softmax(-1).gather(2, classes.clamp(min=0)[..., None])[..., 0]
    return -(scores * batch.loss_weights[:, 1:] * (classes >= 0)).sum()


@dataclass
class PlainRun:
    """What one device finds: the losses of all steps, the first step's gradients, and the weights behind the last."""

    losses: list[float]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]


def train_plainly(name: str, batches: list[Batch], adamw: bool) -> PlainRun:
    model = build(name)
    settings = OptimizerConfig(lr=1e-2)
    optimizer = settings.build(model) if adamw else torch.optim.SGD(model.parameters(), lr=LR)
    losses, gradients = [], {}
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss, trained = plain_loss(model, batch)
        trained.backward()
        losses.append(float(loss.detach()))
        if step == 0:
            gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        # Adam hides a wrong scale, and clipping doesn't.
        assert nn.utils.clip_grad_norm_(model.parameters(), CLIPPING) > CLIPPING
        optimizer.step()
    return PlainRun(losses, gradients, model.state_dict())


def check(what: str, found: Tensor, wanted: Tensor) -> None:
    error = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    assert error < 1e-5, f"{what}: {error:.1e} of the largest value"


def check_case(all_ranks: Ranks, case: Case, batches: list[Batch], plain: PlainRun, adamw: bool) -> None:
    from deepspeed.utils import safe_get_full_grad

    ranks = dataclasses.replace(all_ranks, num_context=case.num_context)
    model = build(case.model, ranks.mesh.build_context())
    zero = {**ZERO[case.zero], "stage3_param_persistence_threshold": 60 if case.zero.startswith("3") else 100_000}
    engine = TrainingEngine(
        model,
        ranks,
        OptimizerConfig(lr=1e-2),
        gradient_clipping=CLIPPING,
        deepspeed_block={"zero_optimization": zero, "zero_allow_untested_optimizer": True},
        torch_optimizer=None if adamw else torch.optim.SGD(model.parameters(), lr=LR),
        loss_chunk_bases=19,
    )
    for step, batch in enumerate(batches):
        totals = Totals(*ranks.sum(engine.accumulate(share(ranks, case, batch)).values()))
        assert math.isclose(totals.nats_per_base, plain.losses[step], rel_tol=1e-5 if adamw else 2e-6), f"step {step}"
        assert totals.bases == batch.num_bases
        assert totals.patches == int((batch.patch_lengths > 0).sum()) - NUM_WINDOWS
        if step == 0 and not adamw:
            for name, weight in model.named_parameters():
                check(f"gradient of {name}", safe_get_full_grad(weight), plain.gradients[name])
        engine.update(1e-2 if adamw else LR)
    weights = engine.consolidated_weights()
    if not adamw:
        for name, value in weights.items():
            check(name, value, plain.weights[name])
    engine.deepspeed.destroy()


def check_autoencoder(all_ranks: Ranks, batch: Batch) -> None:
    """What a validation of the autoencoder tells: its loss, and the patches that it reconstructs exactly, each once."""
    ranks = dataclasses.replace(all_ranks, num_context=2)
    plain, model = build("hybrid"), build("hybrid", ranks.mesh.build_context())
    freeze(model, UNREAD_WEIGHTS["autoencoder"])
    engine = TrainingEngine(model, ranks, deepspeed_block={"zero_optimization": {"stage": 3}}, objective="autoencoder")

    def slice_of(chosen: Sequence[int]) -> Batch:
        [row] = chosen
        return slice_batch(rows(batch, row, row + 1), ranks.mesh.context, 2, CONFIGS["hybrid"].num_left_patches)

    totals = validate(engine, range(NUM_WINDOWS), 1, slice_of)
    logits = plain.reconstruct(batch.bases, batch.patch_lengths)
    wrong, is_judged = wrong_bases(
        logits, batch.bases, batch.patch_lengths, plain.class_of_byte, counts=batch.loss_weights > 0
    )
    assert math.isclose(totals.nats, float(nats_of(logits, plain, batch).detach()), rel_tol=2e-6)
    assert totals.judged_patches == int(is_judged.sum())
    assert 3 < totals.exact_patches == int((is_judged & (wrong == 0)).sum()) < totals.judged_patches - 3
    engine.deepspeed.destroy()


Plan = list[tuple[Case, bool, list[Batch], PlainRun]]
"""Cases, whether AdamW takes their steps, their windows, and what one device makes of them."""


def plan() -> Plan:
    batches = steps()
    runs = {
        (model, adamw): train_plainly(model, batches[model], adamw)
        for model, adamw in (("hybrid", False), ("isotropic", False), ("hybrid", True))
    }
    cases = [*((case, False) for case in SGD_CASES), *((case, True) for case in ADAMW_CASES)]
    return [(case, adamw, batches[case.model], runs[case.model, adamw]) for case, adamw in cases]


def all_cases(plan: Plan) -> None:
    ranks = join_ranks()
    for case, adamw, batches, plain in plan:
        try:
            check_case(ranks, case, batches, plain, adamw)
        except Exception as error:
            raise AssertionError(f"{case}, {'AdamW' if adamw else 'SGD'}: {error}") from error
    check_autoencoder(ranks, plan[0][2][0])


@pytest.mark.slow
def test_every_mesh_trains_as_one_device_does() -> None:
    cases = plan()
    lengths = cases[0][2][0].patch_lengths
    assert len({int(num) for num in (lengths > 0).sum(1)}) == NUM_WINDOWS, "rows of different numbers of patches"
    run_ranks(all_cases, NUM_RANKS, cases, timeout_seconds=600)
