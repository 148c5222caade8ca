"""What each of several context-parallel ranks does in tests; run by `run_ranks`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch import distributed as dist

from hyena_blt_savanna.data.batches import Batch
from hyena_blt_savanna.data.slices import slice_batch
from hyena_blt_savanna.model.blocks import Block
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig, Objective
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel
from hyena_blt_savanna.parallel.mesh import Mesh, ParallelConfig

LOSS_CHUNK_BASES = 23
"""Of models that are trained on slices."""


@dataclass(frozen=True)
class ModuleCase:
    """A module that is run on slices of its input.

    Attributes:
        kind: of BUILDERS.
        config: of the module, as plain values.
        state: its weights.
        x: the whole input, [B, L, ...].
        weight: the loss is the sum of the output times this.
    """

    kind: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    x: Tensor
    weight: Tensor


@dataclass(frozen=True)
class ModuleOutcome:
    """What a rank computed: of its slice, and its share of the weights' gradients.

    Attributes:
        output: of the slice.
        input_gradient: of the slice; None for integers.
        gradients: of the weights, this rank's summand.
    """

    output: Tensor
    input_gradient: Tensor | None
    gradients: dict[str, Tensor] = field(default_factory=dict)


def _block(config: dict[str, Any], context: ContextParallel) -> nn.Module:
    stack = StackConfig.parse(config)
    return Block(stack.blocks[0], stack.mlp.activations(stack.blocks)[0], stack, context)


BUILDERS: dict[str, Callable[[dict[str, Any], ContextParallel], nn.Module]] = {
    "block": _block,
    "stack": lambda config, context: StackConfig.parse(config).build(context),
    "isotropic": lambda config, context: IsotropicConfig.parse(config).build(context),
}
"""What a case's kind builds, given its configuration and the ranks."""


def run_module(case: ModuleCase, context: ContextParallel = SINGLE_RANK) -> ModuleOutcome:
    """A case on a slice, or on the whole."""
    module = BUILDERS[case.kind](case.config, context).to(case.weight.dtype)
    module.load_state_dict(case.state)
    x = case.x.chunk(context.num_ranks, 1)[context.rank].clone()
    if x.is_floating_point():
        x.requires_grad_()
    output = module(x)
    (output * case.weight.chunk(context.num_ranks, 1)[context.rank]).sum().backward()
    gradients = {name: weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    return ModuleOutcome(output.detach(), x.grad, gradients)


@dataclass(frozen=True)
class ModelCase:
    """A model that is trained on slices of windows.

    Attributes:
        config: of the model, as plain values, `kind` included.
        state: its weights.
        batch: whole windows.
        objective: what the model is asked for.
    """

    config: dict[str, Any]
    state: dict[str, Tensor]
    batch: Batch
    objective: Objective = "next_base"


@dataclass(frozen=True)
class ModelOutcome:
    """What a rank computed of its slices.

    Attributes:
        logits: those that score the slice's own bases, row by row.
        nats: this rank's summand of the loss, the model's own losses included.
        num_bases: of the slices' own.
        gradients: of the weights, this rank's summand.
    """

    logits: list[Tensor]
    nats: float
    num_bases: int
    gradients: dict[str, Tensor]


def run_model(case: ModelCase, context: ContextParallel = SINGLE_RANK) -> ModelOutcome:
    """A case on slices, or on whole windows; in fp64, the loss by chunks of bases."""
    config = TypeAdapter(HyenaBLTConfig | IsotropicConfig).validate_python(case.config)
    model = config.build(context).double()
    model.load_state_dict(case.state)
    batch = case.batch
    if context.num_ranks > 1:
        batch = slice_batch(batch, context.rank, context.num_ranks, config.num_left_patches)
    asked = {name: getattr(batch, name) for name in ("left_patches", "first_positions")}
    if case.objective != "next_base":
        asked["objective"] = case.objective
    with torch.no_grad():
        logits = _drawn(model, batch, asked)
    asked |= {name: getattr(batch, name) for name in getattr(model, "auxiliary_inputs", ())}
    asked |= {"loss_weights": batch.loss_weights, "loss_chunk_bases": LOSS_CHUNK_BASES}
    nats, auxiliary_nats, _ = _drawn(model, batch, asked)
    if auxiliary_nats is not None:
        nats = nats + auxiliary_nats
    nats.backward()
    num_left = batch.patch_lengths[:, : batch.left_patches].sum(1)
    num_here = batch.patch_lengths.sum(1)
    rows = zip(logits, num_left, num_here, strict=True)
    # Logits at t score base t + 1; nothing scores the byte in front of a window.
    scoring = [row[max(int(left) - 1, 0) : max(int(here) - 1, 0)] for row, left, here in rows]
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return ModelOutcome(scoring, float(nats.detach()), batch.num_bases, gradients)


def check_slices(whole: ModelOutcome, parts: Sequence[ModelOutcome], tolerance: float) -> None:
    """Compares what ranks computed of their slices with what one computed of the whole windows.

    Args:
        whole: of one rank.
        parts: of all ranks, in their order.
        tolerance: of the loss, relative; gradients may differ by 100 times as much of the tensor's largest value.

    Raises:
        AssertionError: they differ.
    """
    for row, logits in enumerate(whole.logits):
        torch.testing.assert_close(torch.cat([part.logits[row] for part in parts]), logits)
    assert math.isclose(sum(part.nats for part in parts), whole.nats, rel_tol=tolerance), "nats"
    assert sum(part.num_bases for part in parts) == whole.num_bases, "number of bases"
    for part in parts:
        # ZeRO waits for the gradients of all ranks, whether there is anything in them or not.
        assert set(part.gradients) == set(whole.gradients), "weights with gradients"
    for name, gradient in whole.gradients.items():
        found = torch.stack([part.gradients[name] for part in parts]).sum(0)
        error = float((found - gradient).abs().max() / gradient.abs().max().clamp_min(1e-3))
        assert error <= 100 * tolerance, f"gradient of {name}: {error:.1e} of the largest value"


def _drawn(model: nn.Module, batch: Batch, asked: dict[str, Any]) -> Any:
    """A forward pass; ranks that share windows draw the same numbers."""
    torch.manual_seed(0)
    return model(batch.bases, batch.patch_lengths, **asked)


@dataclass(frozen=True)
class HaloCase:
    """A halo of slices.

    Attributes:
        slices: of each rank.
        length: of the halo.
        sequence_dim: of a slice.
        weights: the loss is the sum of each rank's halo times this.
    """

    slices: list[Tensor]
    length: int
    sequence_dim: int
    weights: list[Tensor]


@dataclass(frozen=True)
class RankOutcome:
    """What one rank found.

    Attributes:
        modules: by case.
        models: by case.
        halos: the halo, and the gradient of this rank's slice, by case.
        swaps: this rank's part of a tensor with its sequence gathered, that swapped back, and its own channels.
    """

    modules: dict[str, ModuleOutcome]
    models: dict[str, ModelOutcome]
    halos: dict[str, tuple[Tensor, Tensor | None]]
    swaps: tuple[Tensor, Tensor, Tensor] | None


def run_cases(
    num_context: int,
    modules: Mapping[str, ModuleCase] | None = None,
    models: Mapping[str, ModelCase] | None = None,
    halos: Mapping[str, HaloCase] | None = None,
    swapped: Tensor | None = None,
) -> RankOutcome:
    """All cases on this rank of a mesh.

    Args:
        num_context: C of the mesh.
        modules: by name.
        models: by name.
        halos: by name.
        swapped: [2, D, B, L]; its channels are swapped for the sequence.
    """
    mesh = Mesh.of(ParallelConfig(context=num_context), dist.get_rank(), dist.get_world_size())
    context = mesh.build_context()
    return RankOutcome(
        {name: run_module(case, context) for name, case in (modules or {}).items()},
        {name: run_model(case, context) for name, case in (models or {}).items()},
        {name: _run_halo(case, context) for name, case in (halos or {}).items()},
        None if swapped is None else _run_swaps(swapped, context),
    )


def _run_halo(case: HaloCase, context: ContextParallel) -> tuple[Tensor, Tensor | None]:
    x = case.slices[context.rank].clone()
    if x.is_floating_point():
        x.requires_grad_()
    halo = context.halo(x, case.length, case.sequence_dim)
    assert halo is not None
    if x.requires_grad:
        (halo * case.weights[context.rank]).sum().backward()
    return halo.detach(), x.grad


def _run_swaps(x: Tensor, context: ContextParallel) -> tuple[Tensor, Tensor, Tensor]:
    own = x.chunk(context.num_ranks, 3)[context.rank]
    gathered = context.gather_sequence(own, channel_dim=1, sequence_dim=3)
    back = context.scatter_sequence(gathered, channel_dim=1, sequence_dim=3)
    return gathered, back, context.own_channels(x, channel_dim=1)
