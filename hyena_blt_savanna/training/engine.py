"""The DeepSpeed engine behind two calls: accumulate the gradients of a step, then update the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hyena_blt_savanna.model import cpu_kernels
from hyena_blt_savanna.model.fp8 import Fp8Layers
from hyena_blt_savanna.model.hyena_blt import Objective
from hyena_blt_savanna.model.prediction import Prediction
from hyena_blt_savanna.training.loss import scored_weight
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.ranks import Ranks
from hyena_blt_savanna.training.stragglers import WorkClock

Precision = Literal["fp32", "bf16", "fp8"]


def faster_precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies matrices in it: GPUs, and CPUs with AMX. Others only emulate it."""
    if device.type == "cpu":
        return "bf16" if torch.cpu.get_capabilities().get("amx_bf16", False) else "fp32"
    return "bf16"


class TrainingBatch(Protocol):
    """What the engine reads of a batch; see `hyena_blt_savanna.data.batches.Batch`."""

    @property
    def bases(self) -> Tensor:
        """int64 [B, L]."""

    @property
    def patch_lengths(self) -> Tensor:
        """int32 [B, P]."""

    @property
    def loss_weights(self) -> Tensor:
        """float32 [B, L]."""

    @property
    def num_cut_patches(self) -> int:
        """Patches that were left out of the windows."""

    @property
    def entropies(self) -> Tensor | None:
        """float32 [B, L], nats: targets of a model that asks for them."""

    @property
    def left_patches(self) -> int:
        """Patches at the start of each row that belong to the slice on the left."""

    @property
    def first_positions(self) -> Tensor | None:
        """int64 [B], bases of its window that precede each row."""


class DivergedError(RuntimeError):
    """The gradients are no longer finite; the weights have not been touched by them."""


@dataclass
class Totals:
    """Sums over bases; over one rank's micro batches, a step's ranks, or the steps of a logging interval.

    Attributes:
        nats: weighted negative log-likelihood.
        weight: of all scored bases.
        bases: bases read, whether scored or not.
        patches: patches read, or found by the model itself.
        cut_patches: patches that were left out because their window had too many.
        exact_patches: patches that were reconstructed exactly; looked at in validation only.
        judged_patches: patches that could be.
        auxiliary_nats: of the model's own losses, each times its coefficient.
        places_of_bases: of the batches as they are laid out, padding and what belongs to slices on the left included.
        places_of_patches: likewise.
        padding_bases: those of them that are padding.
        padding_patches: likewise.
    """

    nats: float = 0.0
    weight: float = 0.0
    bases: float = 0.0
    patches: float = 0.0
    cut_patches: float = 0.0
    exact_patches: float = 0.0
    judged_patches: float = 0.0
    auxiliary_nats: float = 0.0
    places_of_bases: float = 0.0
    places_of_patches: float = 0.0
    padding_bases: float = 0.0
    padding_patches: float = 0.0

    def __add__(self, other: Totals) -> Totals:
        return Totals(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> list[float]:
        """The sums in the order of the attributes."""
        return list(astuple(self))

    @property
    def nats_per_base(self) -> float:
        """The loss of the bases."""
        return self.nats / self.weight if self.weight else math.nan

    @property
    def auxiliary_nats_per_base(self) -> float | None:
        """What the model's own losses add to it; None where they add nothing, as without any."""
        return self.auxiliary_nats / self.weight if self.weight and self.auxiliary_nats else None

    @property
    def padding_share_of_bases(self) -> float:
        """Share of the bases that went through the model for nothing."""
        return self.padding_bases / self.places_of_bases if self.places_of_bases else 0.0

    @property
    def padding_share_of_patches(self) -> float:
        """Likewise of the patches that were given to it."""
        return self.padding_patches / self.places_of_patches if self.places_of_patches else 0.0


class TrainingEngine:
    """A model under DeepSpeed.

    The loss of a step is the weighted sum over the micro batches of all ranks, divided by their scored weight, so
    that neither the number of ranks nor accumulation changes a gradient.

    Args:
        model: maps bases and patch lengths to logits or, given `loss_weights` and `loss_chunk_bases`, to a Prediction,
            and has the buffer `class_of_byte`. A model with losses of its own may have `auxiliary_inputs`: names of
            fields of a batch that it is given in training, too.
        ranks: from `join_ranks`.
        optimizer: AdamW's settings.
        gradient_clipping: largest norm of all gradients; None does not clip.
        precision: bf16 computes matrix products in bfloat16 and keeps fp32 weights (torch.autocast, by DeepSpeed); fp8
            likewise, but for the products of `fp8`.
        deepspeed_block: DeepSpeed's own settings, such as `zero_optimization`.
        torch_optimizer: takes the place of AdamW.
        objective: what the model is asked for; anything but next_base is for a HyenaBLT.
        loss_chunk_bases: bases whose logits exist at a time; None: all of a micro batch.
        fp8: the layers of the model that multiply in FP8.

    Attributes:
        optimizer_names: of the parameters that are trained, in the order of the optimizer.
        tied_names: further names of parameters that have several, and the one that stands for all of them.
        clock: of this rank's own work.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks,
        optimizer: OptimizerConfig | None = None,
        gradient_clipping: float | None = None,
        precision: Precision = "fp32",
        deepspeed_block: Mapping[str, Any] | None = None,
        torch_optimizer: torch.optim.Optimizer | None = None,
        objective: Objective = "next_base",
        loss_chunk_bases: int | None = None,
        fp8: Fp8Layers | None = None,
    ) -> None:
        import deepspeed

        block = dict(deepspeed_block or {})
        self.ranks = ranks
        self.gradient_clipping = gradient_clipping
        self.precision = precision
        self.objective = objective
        self.loss_chunk_bases = loss_chunk_bases
        self.fp8 = fp8
        self.zero_stage = int(block.get("zero_optimization", {}).get("stage", 0))
        self.module = model
        built = torch_optimizer or (optimizer or OptimizerConfig()).build(model.to(ranks.device))
        name_of = {id(parameter): name for name, parameter in model.named_parameters()}
        every_name = model.named_parameters(remove_duplicate=False)
        self.tied_names = {name: name_of[id(each)] for name, each in every_name if name != name_of[id(each)]}
        self.optimizer_names = [name_of[id(each)] for group in built.param_groups for each in group["params"]]
        self.clock = WorkClock(ranks.device)
        if ranks.device.type == "cpu":
            cpu_kernels.use()
        # The engine copies a buffer of the model to the device with the rest.
        self.deepspeed, *_ = deepspeed.initialize(
            model=model,
            optimizer=built,
            config=deepspeed_config(block, ranks.num_ranks, self._clipped_by_deepspeed, precision),
            dist_init_required=False,
        )
        if self.zero_stage == 0 and ranks.num_ranks == 1:
            # One rank would still flatten and copy all gradients for an all-reduce with itself.
            self.deepspeed.enable_backward_allreduce = False

    @property
    def _clipped_by_deepspeed(self) -> float:
        # Without ZeRO, DeepSpeed clips but does not tell the norm, and takes twice as long for it.
        return (self.gradient_clipping or 0.0) if self.zero_stage else 0.0

    @property
    def num_parameters(self) -> int:
        """Weights of the whole model, whether they are trained or not."""
        return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in self.module.parameters())

    @property
    def gradient_divisor(self) -> float:
        """What DeepSpeed divides the sum of all ranks' gradients by."""
        engine = self.deepspeed
        return engine.dp_world_size / engine.sequence_parallel_size if self.ranks.num_ranks > 1 else 1.0

    def set_batch(self, batch_windows: int, micro_batch_windows: int) -> None:
        """Tells DeepSpeed the batch of a stage, which its monitors count samples by.

        It knows nothing of context ranks, and counts their slices as samples.
        """
        self.deepspeed.set_train_micro_batch_size(micro_batch_windows)
        self.deepspeed.set_train_batch_size(batch_windows * self.ranks.num_context)

    def to_device(self, batch: TrainingBatch) -> TrainingBatch:
        """A copy of a batch's tensors where the model computes."""
        device = self.ranks.device
        return _DeviceBatch(
            batch.bases.to(device, non_blocking=True),
            batch.patch_lengths.to(device, non_blocking=True),
            batch.loss_weights.to(device, non_blocking=True),
            batch.num_cut_patches,
            None if batch.entropies is None else batch.entropies.to(device, non_blocking=True),
            batch.left_patches,
            None if batch.first_positions is None else batch.first_positions.to(device, non_blocking=True),
        )

    def logits(self, batch: TrainingBatch) -> Tensor:
        """Logits [B, L, C] of a batch that is on the device."""
        logits: Tensor = self._forward(batch)
        return logits

    def score(self, batch: TrainingBatch, loss_weights: Tensor) -> Prediction:
        """Nats of a batch that is on the device; in training, with the model's own losses if it has any.

        Args:
            batch: its own weights are not read.
            loss_weights: float32 [B, L], on the device.
        """
        asked = {"loss_weights": loss_weights, "loss_chunk_bases": self.loss_chunk_bases}
        if self.module.training:
            asked |= {name: getattr(batch, name) for name in getattr(self.module, "auxiliary_inputs", ())}
        # ZeRO 3 rebuilds a named tuple as a plain one.
        return Prediction(*self._forward(batch, **asked))

    def _forward(self, batch: TrainingBatch, **asked: Any) -> Any:
        # Through the engine whatever the objective is: ZeRO 3 gathers weights around the calls of modules.
        if self.objective != "next_base":
            asked["objective"] = self.objective
        if self.ranks.num_context > 1:
            asked |= {"left_patches": batch.left_patches, "first_positions": batch.first_positions}
        with self.fp8.passing() if self.fp8 else nullcontext():
            return self.deepspeed(batch.bases, batch.patch_lengths, **asked)

    def accumulate(
        self,
        micro_batches: Sequence[TrainingBatch],
        total_weight: float | None = None,
        is_good: Callable[[float], bool] | None = None,
    ) -> Totals:
        """Computes the gradients of one step.

        Args:
            micro_batches: this rank's share of the step, at least one; every rank has the same number.
            total_weight: scored weight of the whole step, over all ranks; None asks them.
            is_good: whether the step is to be learned from, given this rank's nats; called once, on every rank, which
                all answer the same. If not, `update` raises a DivergedError and leaves everything as it is.

        Returns:
            This rank's sums; the weight's sum over all ranks is not in them.
        """
        weight = weight_of(micro_batches)
        if total_weight is None:
            [total_weight] = self.ranks.sum([weight])
        scale = self.gradient_divisor / total_weight if total_weight else 0.0
        nats, auxiliary, patches = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)
        totals = Totals(weight=weight)
        for index, batch in enumerate(micro_batches):
            totals.bases += int(_own_lengths(batch).sum()) - _num_front(batch)
            totals.cut_patches += batch.num_cut_patches
            totals.places_of_bases += batch.bases.numel()
            totals.places_of_patches += batch.patch_lengths.numel()
            # All bases of a batch belong to patches.
            totals.padding_bases += batch.bases.numel() - int(batch.patch_lengths.sum())
            totals.padding_patches += int((batch.patch_lengths == 0).sum())
            batch = self.to_device(batch)
            self.deepspeed.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            with self.clock.computing():
                loss, auxiliary_nats, num_patches = self.score(batch, batch.loss_weights)
            patches += _num_given(batch) if num_patches is None else num_patches
            nats += loss.detach()
            if auxiliary_nats is not None:
                auxiliary += auxiliary_nats.detach()
                loss = loss + auxiliary_nats
            if is_good is not None and index == len(micro_batches) - 1 and not is_good(float(nats)):
                # Under each stage of ZeRO, this is how DeepSpeed learns that a step must be forgotten.
                loss = loss * math.nan
            self.deepspeed.backward(loss * scale, scale_wrt_gas=False)
        totals.nats, totals.auxiliary_nats, totals.patches = float(nats), float(auxiliary), float(patches)
        return totals

    def update(self, lr: float) -> float:
        """Updates the weights from the gradients of `accumulate`.

        Args:
            lr: learning rate of this step.

        Returns:
            Norm of all gradients before clipping.

        Raises:
            DivergedError: the norm is not finite.
        """
        try:
            norm = self._update(lr)
        except DivergedError:
            if self.fp8:
                self.fp8.forget_step()
            raise
        if self.fp8:
            self.fp8.end_step(self.ranks.largest)
        return norm

    def _update(self, lr: float) -> float:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if self.zero_stage == 0:
            norm = self._clip_gradients()
            if not math.isfinite(norm):
                # As ZeRO does by itself.
                self.module.zero_grad()
                self.deepspeed.global_steps += 1
            _check_finite(norm)
        self.deepspeed.step()
        if norm is None:
            norm = float(self.deepspeed.get_global_grad_norm())
            # ZeRO leaves the weights alone when the norm is not finite.
            _check_finite(norm)
        return norm

    def consolidated_weights(self) -> dict[str, Tensor]:
        """All weights and persistent buffers, gathered from all ranks: every rank calls, the first one gets them.

        Returns:
            Names to tensors on the CPU; empty on the other ranks.
        """
        import deepspeed

        weights = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            partitioned = [value] if hasattr(value, "ds_id") else []
            with deepspeed.zero.GatheredParameters(partitioned):
                if self.ranks.is_first:
                    weights[name] = value.detach().to("cpu", copy=True)
        return weights

    def close(self) -> None:
        """Makes DeepSpeed let go of the model: its memory is free when nobody names this engine any more."""
        from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

        self.deepspeed.destroy()
        # ZeRO 3 leaves the model there for good, and behind its hooks the engine with all that it holds.
        FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module is not self.module]

    @property
    def class_of_byte(self) -> Tensor:
        """int64 [512], column of each byte's logits."""
        table = self.module.class_of_byte
        assert isinstance(table, Tensor)
        return table

    def _clip_gradients(self) -> float:
        gradients = [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # Most steps need no clipping, and then the gradients need not be read and written once more.
        if self.gradient_clipping and float(norm) > self.gradient_clipping:
            torch.nn.utils.clip_grads_with_norm_(self.module.parameters(), self.gradient_clipping, norm)
        return float(norm)


def weight_of(micro_batches: Sequence[TrainingBatch]) -> float:
    """Scored weight of one rank's share of a step."""
    return sum(float(scored_weight(batch.loss_weights)) for batch in micro_batches)


@dataclass(frozen=True)
class _DeviceBatch:
    bases: Tensor
    patch_lengths: Tensor
    loss_weights: Tensor
    num_cut_patches: int
    entropies: Tensor | None
    left_patches: int
    first_positions: Tensor | None


def _own_lengths(batch: TrainingBatch) -> Tensor:
    """Lengths of a batch's patches, without those of the slice on the left."""
    return batch.patch_lengths[:, batch.left_patches :]


def _num_front(batch: TrainingBatch) -> int:
    """Bytes in front of windows, which are patches of their own, and no bases."""
    return 0 if batch.left_patches else len(batch.patch_lengths)


def _num_given(batch: TrainingBatch) -> Tensor:
    """Patches of a batch, without the bytes in front; where it is, so that nobody waits for the device."""
    return (_own_lengths(batch) > 0).sum() - _num_front(batch)


def _check_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise DivergedError(
            f"the norm of the gradients is {norm}: training has diverged; the weights are those before this step. "
            "Lower training.optimizer.lr, lengthen training.schedule.warmup_steps or set training.gradient_clipping"
        )


def deepspeed_config(
    block: Mapping[str, Any], num_ranks: int, gradient_clipping: float, precision: Precision
) -> dict[str, Any]:
    """DeepSpeed's whole configuration: the user's block and the keys that are ours.

    Args:
        block: passed through.
        num_ranks: of the run.
        gradient_clipping: 0 leaves gradients as they are.
        precision: of the matrix products.
    """
    config: dict[str, Any] = {
        # The boundary of accumulation is set by hand at each micro batch, so that it may change between stages.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": num_ranks,
        "gradient_clipping": gradient_clipping,
        # torch's AdamW, on a CPU too: DeepSpeed's own is compiled at the first start, for minutes.
        "zero_force_ds_cpu_optimizer": False,
        # It waits for the device at every forward pass.
        "timers": {"throughput": {"enabled": False}},
    }
    if precision != "fp32":
        # An empty list of modules keeps gradients and gathered weights in fp32 on the wire.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {**config, **block}
