"""Weights and optimizer state of a whole model, and how an engine of any mesh takes them over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, missing_and_extra
from hyena_blt_savanna.training.engine import TrainingEngine
from hyena_blt_savanna.training.ranks import Ranks, on_first_rank

_LISTED_NAMES = 8


class CheckpointError(ValueError):
    """A checkpoint that can't be used, or can't be written; the message names the folder."""


@dataclass(frozen=True)
class TrainingState:
    """What a model has learned, with nothing of the ranks and the ZeRO stage that it was trained on.

    Attributes:
        weights: the state dictionary of the torch module, all of it.
        optimizer: state of the optimizer, by its names (AdamW's are exp_avg and exp_avg_sq), then by the parameter's;
            each tensor has the parameter's shape.
        optimizer_steps: how often the optimizer has updated a parameter, by the parameter's name.
        num_steps: finished steps, as DeepSpeed counts them.
        num_samples: windows that were read, as DeepSpeed's monitors count them.
    """

    weights: dict[str, LazyTensor]
    optimizer: dict[str, dict[str, LazyTensor]]
    optimizer_steps: dict[str, int]
    num_steps: int
    num_samples: int


def restore(engine: TrainingEngine, state: TrainingState | None, where: str) -> None:
    """Puts a state into an engine, of any number of ranks and any ZeRO stage. Every rank calls.

    The first rank reads, one tensor at a time, and sends it to the others, which keep their part of it. What the
    optimizer is set to (its rates and its groups) stays that of the run. A parameter without a state, such as one that
    was frozen, begins with zeros.

    Args:
        engine: of the same model.
        state: on the first rank; the others are not asked.
        where: what the state was read from, for messages.

    Raises:
        CheckpointError: it is of another model.
    """
    ranks = engine.ranks
    weights = _named(engine.module)
    shapes = {name: _shape(weight) for name, weight in weights.items()}
    on_first_rank(ranks, lambda: _check_names(state, shapes, where))
    counts = _Counts.of(state) if state is not None else None
    counts = ranks.gather(counts)[0]
    assert counts is not None
    zero = engine.deepspeed.optimizer
    if engine.zero_stage == 3:
        zero.checkpoint_event_prologue()
    for name, full in _from_first(ranks, state.weights if state else {}, weights):
        _set_weight(weights[name], full)
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    _make_optimizer_state(engine, trained, counts)
    for key, names in counts.optimizer.items():
        of_key = {name: trained[name] for name in names if name in trained}
        for name, full in _from_first(ranks, state.optimizer[key] if state else {}, of_key):
            _set_optimizer_state(engine, trained[name], key, full)
    if engine.zero_stage == 3:
        zero.checkpoint_event_epilogue()
    elif engine.zero_stage:
        # At its first step it finds the state of groups that have none yet.
        zero._hp_optimizer_states_linked = False
    engine.deepspeed.global_steps = counts.num_steps
    engine.deepspeed.global_samples = counts.num_samples


@dataclass(frozen=True)
class _Counts:
    """What every rank must know of a state before its tensors come."""

    optimizer: dict[str, list[str]]
    optimizer_steps: dict[str, int]
    num_steps: int
    num_samples: int

    @classmethod
    def of(cls, state: TrainingState) -> _Counts:
        names = {key: list(tensors) for key, tensors in state.optimizer.items()}
        return cls(names, state.optimizer_steps, state.num_steps, state.num_samples)


def _named(module: nn.Module) -> dict[str, Tensor]:
    """The tensors behind the state dictionary, in an order that is the same on all ranks."""
    return dict(module.state_dict(keep_vars=True))


def _shape(weight: Tensor) -> tuple[int, ...]:
    return tuple(getattr(weight, "ds_shape", weight.shape))


def _check_names(state: TrainingState | None, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    assert state is not None, "the first rank has read the state"
    given = {name: tensor.shape for name, tensor in state.weights.items()}
    problems = missing_and_extra(set(shapes), set(given)) + [
        f"{name} has shape {list(given[name])} instead of {list(shapes[name])}"
        for name in sorted(shapes.keys() & given.keys())
        if given[name] != shapes[name]
    ]
    if problems:
        left_out = len(problems) - _LISTED_NAMES
        lines = problems[:_LISTED_NAMES] + ([f"and {left_out} more"] if left_out > 0 else [])
        raise CheckpointError(
            f"{where} holds the weights of another model than the run's:\n" + "\n".join(f"  {line}" for line in lines)
        )


def _from_first(
    ranks: Ranks, tensors: Mapping[str, LazyTensor], wanted: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the first rank on all of them, one after the other; where the model computes."""
    for name, target in wanted.items():
        if ranks.is_first:
            full = tensors[name].load().to(device=ranks.device, dtype=target.dtype)
        else:
            full = torch.empty(_shape(target), dtype=target.dtype, device=ranks.device)
        if ranks.num_ranks > 1:
            dist.broadcast(full, 0)
        yield name, full


def _set_weight(weight: Any, full: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if hasattr(weight, "ds_id"):
        own = _own_part(weight, full)
        weight.ds_tensor.data.copy_(own)
        if weight.requires_grad:
            safe_set_local_fp32_param(weight, own)
        return
    weight.data.copy_(full)
    safe_set_full_fp32_param(weight, full)


def _own_part(weight: Any, full: Tensor) -> Tensor:
    """This rank's part of a tensor that ZeRO 3 cuts up; the last parts are filled up with zeros."""
    num_values = weight.ds_tensor.numel()
    start = dist.get_rank(weight.ds_process_group) * num_values
    found = full.reshape(-1)[start : start + num_values]
    return torch.nn.functional.pad(found, (0, num_values - found.numel()))


def _make_optimizer_state(engine: TrainingEngine, trained: Mapping[str, Tensor], counts: _Counts) -> None:
    """Makes the optimizer's state, which it would make at its first step: steps, and zeros for the rest."""
    optimizer, zero = engine.deepspeed.optimizer, engine.deepspeed.optimizer
    # ZeRO keeps a group's state, or a part of a group's, in one flat tensor.
    held: list[tuple[Tensor, list[Tensor]]] = [(weight, [weight]) for weight in trained.values()]
    if engine.zero_stage:
        optimizer = zero.optimizer
        flat, groups = (
            (zero.fp32_partitioned_groups_flat, zero.fp16_groups)
            if engine.zero_stage == 3
            else (zero.single_partition_of_fp32_groups, zero.bit16_groups)
        )
        held = list(zip(flat, groups, strict=True))
    name_of = {id(weight): name for name, weight in reversed(list(trained.items()))}
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    known = counts.optimizer_steps.keys() | {name for names in counts.optimizer.values() for name in names}
    for values, members in held:
        names = [name_of[id(member)] for member in members]
        if known.isdisjoint(names):
            continue
        steps = [counts.optimizer_steps.get(name, 0) for name in names]
        step = torch.tensor(float(max(steps)), device=values.device if on_device else "cpu")
        zeros = {key: torch.zeros_like(values, memory_format=torch.preserve_format) for key in counts.optimizer}
        optimizer.state[values] = ({"step": step} if counts.optimizer_steps else {}) | zeros
    if engine.zero_stage in (1, 2):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _set_optimizer_state(engine: TrainingEngine, weight: Tensor, key: str, full: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if engine.zero_stage == 0:
        engine.deepspeed.optimizer.state[weight][key].copy_(full)
    elif engine.zero_stage == 3:
        # Not by the call for a full tensor: it reads beyond the end where a tensor can't be shared evenly.
        safe_set_local_optimizer_state(weight, _own_part(weight, full), key)
    else:
        safe_set_full_optimizer_state(weight, full, key)
