"""What one rank's forward and backward pass keeps in memory, from the pass itself: rehearsed without any memory.

The model is built and the training engine's own code runs, with tensors that have no values; see `live_memory`. So the
count follows the code: activation checkpointing, what each operation saves, what it makes and drops, the exchange among
context ranks. DeepSpeed's own share is counted by `state_memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.batches import Batch
from hyena_blt_savanna.evaluation.native_checkpoint import patch_places
from hyena_blt_savanna.model.fp8 import Fp8Recipe, use_fp8
from hyena_blt_savanna.model.fused import without_kernels
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.model.hyena_blt import UNREAD_WEIGHTS, HyenaBLTConfig, Objective
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import global_stack
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel
from hyena_blt_savanna.parallel.rehearsed_context import RehearsedContext
from hyena_blt_savanna.training.engine import Precision, TrainingEngine
from hyena_blt_savanna.training.first_weights import freeze
from hyena_blt_savanna.training.live_memory import LiveMemory
from hyena_blt_savanna.training.model_config import ModelConfig, build_model
from hyena_blt_savanna.training.ranks import Ranks
from hyena_blt_savanna.training.stragglers import WorkClock

PARAMETERS, GRADIENTS, ACTIVATIONS, LOGITS = "parameters", "gradients", "activations", "logits"
WORKSPACE = "workspace"
"""What a backward pass makes on its way: gradients of activations, and blocks that are computed again."""
_FOR_SCALES = "A"


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass of one rank.

    Attributes:
        model: with activation checkpointing as it is to be.
        window_bases: of the windows.
        micro_batch_windows: B, windows of the pass.
        num_context: C, ranks that share them.
        mean_patch_bases: of the data; not read for a model of single bases.
        precision: of the matrix products.
        objective: what is trained.
        frozen: patterns of the names of weights that are not trained.
        loss_chunk_bases: bases whose logits exist at a time; None: all.
        fp8: how precision fp8 computes; torch's FP8 is rehearsed for all of them.
    """

    model: ModelConfig
    window_bases: int
    micro_batch_windows: int
    num_context: int = 1
    mean_patch_bases: float = 8.0
    precision: Precision = "fp32"
    objective: Objective = "next_base"
    frozen: tuple[str, ...] = ()
    loss_chunk_bases: int | None = 16_384
    fp8: Fp8Recipe | None = None


@dataclass(frozen=True)
class Rehearsal:
    """What a pass needs.

    Attributes:
        sizes: weights of each parameter.
        num_trained: weights with gradients; the others are frozen.
        buffer_bytes: of the model's tensors that are no weights.
        with_gradients: bytes by part when most was alive in a pass at whose start there were no gradients, and that
            keeps them: activations, logits, workspace, gradients.
        without_gradients: likewise of a pass whose gradients of weights are taken away as soon as they are there.
    """

    sizes: tuple[int, ...]
    num_trained: int
    buffer_bytes: int
    with_gradients: Mapping[str, int]
    without_gradients: Mapping[str, int]


def rehearse(wanted: Pass) -> Rehearsal:
    """Goes through a pass of the last context rank, which has the neighbours' patches to read besides its own.

    Raises:
        ConfigError: the model finds its own patches, so that only real data can tell.
    """
    if isinstance(wanted.model, HNetConfig):
        raise ConfigError(
            "model.kind hnet finds its own patches as it computes: what it needs can't be told without data; "
            "plan hyena_blt, isotropic or kmer_tokens"
        )
    last = wanted.num_context - 1
    context = RehearsedContext(wanted.num_context, last) if last else SINGLE_RANK
    batch = batch_of(wanted, last)
    return count_pass(wanted, batch, context, LiveMemory(rehearsal=True, apart=(PARAMETERS, GRADIENTS)))


def count_pass(wanted: Pass, batch: Batch, context: ContextParallel, memory: LiveMemory) -> Rehearsal:
    """Counts what a pass keeps alive, operation by operation; computed or rehearsed.

    Args:
        wanted: what is passed through.
        batch: this rank's slice.
        context: of the rank.
        memory: a fresh count, with parameters and gradients apart.
    """
    # Kernels need numbers, which a rehearsal has none of; they take no more memory.
    with memory, without_kernels():
        with memory.making(PARAMETERS):
            model = build_model(wanted.model, context)
        if wanted.fp8 is not None:
            _use_fp8(model, wanted.model, wanted.fp8)
        freeze(model, (*UNREAD_WEIGHTS[wanted.objective], *wanted.frozen))
        _watch_head(model, memory)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda weight: _keep_gradient(weight, memory))
        memory.begin(ACTIVATIONS)
        _Engine(model, wanted).accumulate([batch])
    parameters = list(model.parameters())
    return Rehearsal(
        sizes=tuple(parameter.numel() for parameter in parameters),
        num_trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        with_gradients={name: count for name, count in memory.peak.items() if name != PARAMETERS},
        without_gradients=memory.peak_without,
    )


def batch_of(wanted: Pass, context_rank: int) -> Batch:
    """A batch like a context rank's: patches of the mean length, or one base longer or shorter."""
    model, num_context = wanted.model, wanted.num_context
    is_cut = patch_places(model) is not None
    mean = wanted.mean_patch_bases if is_cut else 1.0
    own = -(-(1 + round(wanted.window_bases / mean)) // num_context)
    left = 0
    if num_context > 1:
        assert isinstance(model, HyenaBLTConfig | IsotropicConfig)
        left = min(model.num_left_patches, context_rank * own)
    ends = (torch.arange(1, left + own + 1, dtype=torch.float64) * mean).round().int()
    lengths = ends.diff(prepend=torch.zeros(1, dtype=torch.int32)).expand(wanted.micro_batch_windows, -1).contiguous()
    shape = (wanted.micro_batch_windows, int(ends[-1]))
    return Batch(
        bases=torch.full(shape, ord(_FOR_SCALES)),
        patch_lengths=lengths,
        loss_weights=torch.ones(shape),
        entropies=torch.ones(shape),
        left_patches=left,
        first_positions=torch.zeros(len(lengths), dtype=torch.int64) if num_context > 1 else None,
    )


class _Engine(TrainingEngine):
    """The training engine where DeepSpeed does nothing."""

    def __init__(self, model: nn.Module, wanted: Pass) -> None:
        # One rank of its own: what the loss is divided by is of no matter.
        self.ranks = Ranks(0, 1, torch.device("cpu"), wanted.num_context)
        self.module = model
        self.precision = wanted.precision
        self.objective = wanted.objective
        self.loss_chunk_bases = wanted.loss_chunk_bases
        self.fp8 = None
        self.zero_stage = 0
        self.clock = WorkClock(self.ranks.device)
        self.deepspeed = _Undivided(model, wanted.precision)


class _Undivided:
    """What the engine asks of DeepSpeed in a pass."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        self._model = model
        self._precision = precision

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._precision != "fp32"):
            return self._model(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Nothing is exchanged at the end of a step."""

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()


def _use_fp8(model: nn.Module, config: ModelConfig, recipe: Fp8Recipe) -> None:
    found = global_stack(config)
    assert found is not None, "the run's configuration allows no other"
    plain = recipe.model_copy(update={"backend": "torch", "recipe": "current"})
    use_fp8(getattr(model, found[0]), plain, torch.device("cpu"))


def _keep_gradient(weight: Tensor, memory: LiveMemory) -> None:
    assert weight.grad is not None
    memory.turn_into(weight.grad, GRADIENTS)


def _watch_head(model: nn.Module, memory: LiveMemory) -> None:
    """From the head on, forward and back, tensors are logits; behind it, on the way back, they are workspace."""

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        states = inputs[0]
        # A tied head is the embedding too, and then it is given integers.
        if states.is_floating_point():
            memory.begin(LOGITS)
            if states.requires_grad:
                states.register_hook(lambda _: memory.begin(WORKSPACE))

    for name, module in model.named_modules():
        if name in ("head", "decoder.head", "embedding"):
            module.register_forward_pre_hook(enter)
