"""What a run needs before it is started: memory of a rank by part, operations, time, and the smallest mesh that fits.

Activations and what is made on the way are counted by going through the pass without memory (`rehearsal`); weights,
gradients, optimizer and DeepSpeed's buffers by formula (`state_memory`). Nothing is allocated, and no GPU is needed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.model.flops import BACKWARD_RATIO
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.parallel.mesh import Mesh, ParallelConfig
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.model_config import with_activation_checkpointing
from hyena_blt_savanna.training.rank_memory import RankMemory, rank_memory
from hyena_blt_savanna.training.rehearsal import Pass, Rehearsal, rehearse
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_sources import find_sources
from hyena_blt_savanna.training.state_memory import ZeroSettings

USABLE_SHARE = 0.9
"""Of a GPU's memory: the rest is left to its driver, to the libraries' own buffers and to gaps between tensors."""
DEFAULT_PATCH_BASES = 8.0


class PlanError(ValueError):
    """Nothing fits on the machine that was given."""


@dataclass(frozen=True)
class Machine:
    """What there is to train on.

    Attributes:
        num_ranks: GPUs, one a rank.
        memory_bytes: of each.
        peak_flops: of each, FLOP/s.
        utilisation: share of the peak that all operations reach together, what is computed a second time included;
            products in FP8 are counted as those in bf16.
        is_gpu: False for ranks on a CPU: matrix products in fp32 unless asked for, and buffers count as far as they are
            written to; all of the memory is counted on.
    """

    num_ranks: int
    memory_bytes: float
    peak_flops: float = 989e12
    utilisation: float = 0.4
    is_gpu: bool = True

    @property
    def usable_bytes(self) -> float:
        """What a plan may fill."""
        return self.memory_bytes * (USABLE_SHARE if self.is_gpu else 1.0)


@dataclass(frozen=True)
class Shape:
    """How the work of a stage is cut.

    Attributes:
        context: ranks that share a window.
        zero_stage: of DeepSpeed.
        micro_batch_windows: of a pass of one rank.
        activation_checkpointing: whether blocks are computed again.
    """

    context: int
    zero_stage: int
    micro_batch_windows: int
    activation_checkpointing: bool

    def __str__(self) -> str:
        checkpointing = "with" if self.activation_checkpointing else "without"
        return (
            f"context {self.context}, ZeRO {self.zero_stage}, micro batches of {self.micro_batch_windows}, "
            f"{checkpointing} activation checkpointing"
        )


@dataclass(frozen=True)
class StagePlan:
    """A stage under one shape.

    Attributes:
        shape: of the stage.
        memory: of a rank at its fullest.
        flops_per_base: of a forward and a backward pass.
        step_seconds: expected.
    """

    shape: Shape
    memory: RankMemory
    flops_per_base: float
    step_seconds: float


class Planner:
    """Plans the stages of a run for one machine.

    Args:
        config: of the run.
        machine: to train on.
        mean_patch_bases: of the data; None reads it from the annotation that `config.data` names if it is there, and
            takes 8 otherwise.

    Attributes:
        mean_patch_bases: that is counted with.
    """

    def __init__(self, config: RunConfig, machine: Machine, mean_patch_bases: float | None = None) -> None:
        self.config = config
        self.machine = machine
        self.mean_patch_bases = mean_patch_bases or _stored_mean(config) or DEFAULT_PATCH_BASES
        self._rehearsals: dict[str, Rehearsal] = {}

    def configured_shape(self, stage: int) -> Shape:
        """How the run's configuration cuts a stage.

        Raises:
            ConfigError: the ranks are no multiple of the context ranks.
            ScheduleError: the stage's windows can't be shared out.
        """
        config, settings = self.config, self.config.training.stages[stage]
        context = config.num_context(stage)
        mesh = Mesh.of(ParallelConfig(context=context), 0, self.machine.num_ranks, config.context_key(stage))
        return Shape(
            context,
            ZeroSettings.of(config.deepspeed).stage,
            settings.micro_batch(mesh.num_data),
            config.training.activation_checkpointing,
        )

    def plan(self, stage: int, shape: Shape) -> StagePlan:
        """A stage under a shape that `shapes` allows, or the configured one."""
        wanted, settings = self._pass_of(stage, shape), self.config.training.stages[stage]
        found = self._rehearse(wanted)
        zero = replace(ZeroSettings.of(self.config.deepspeed), stage=shape.zero_stage)
        num_ranks = self.machine.num_ranks
        accumulates = settings.batch_windows > num_ranks // shape.context * shape.micro_batch_windows
        memory = rank_memory(found, zero, num_ranks, accumulates, self.machine.is_gpu)
        flops_per_base = training_flops_per_base(
            wanted.model, wanted.window_bases, self.mean_patch_bases, wanted.objective
        )
        computed = 1 + 1 / (1 + BACKWARD_RATIO) if shape.activation_checkpointing else 1
        per_second = num_ranks * self.machine.peak_flops * self.machine.utilisation
        seconds = computed * flops_per_base * settings.batch_windows * settings.window_bases / per_second
        return StagePlan(shape, memory, flops_per_base, seconds)

    def smallest(self, stage: int) -> StagePlan:
        """The fewest context ranks that fit; then what costs least time: ZeRO 1, 2, 3, then activation checkpointing.

        The micro batch is the largest that fits so.

        Raises:
            PlanError: nothing fits, or no number of context ranks suits model and batch.
        """
        contexts = list(self._allowed_contexts(stage))

        def choices(context: int, checkpointing: bool) -> Iterator[StagePlan]:
            for zero_stage in (1, 2, 3) if self.machine.num_ranks > 1 else (0,):
                yield self.plan(stage, Shape(context, zero_stage, 1, checkpointing))

        def fits(context: int) -> bool:
            return any(map(self._fits, choices(context, True)))

        index = bisect_left(contexts, True, key=fits)
        if index == len(contexts):
            best = min(choices(contexts[-1], True), key=lambda plan: plan.memory.total_bytes)
            given, usable, needed = self.machine.memory_bytes, self.machine.usable_bytes, best.memory.total_bytes
            raise PlanError(
                f"stage {stage}: nothing fits on {self.machine.num_ranks} rank(s) of {given / 1e9:.1f} GB, of which "
                f"{usable / 1e9:.1f} GB are counted on: the best, {best.shape}, needs {needed / 1e9:.1f} GB a rank "
                f"({best.memory.moment}); take more or larger GPUs, a shorter window, or offload "
                "(deepspeed.zero_optimization.offload_optimizer)"
            )
        context = contexts[index]
        first = next(plan for way in (False, True) for plan in choices(context, way) if self._fits(plan))
        return self._with_more_windows(stage, first)

    def _with_more_windows(self, stage: int, plan: StagePlan) -> StagePlan:
        """The same shape with the largest micro batch that fits."""
        share = self.config.training.stages[stage].batch_windows * plan.shape.context // self.machine.num_ranks
        if share == 1:
            return plan
        # What a pass makes grows evenly with its windows, so that two points tell where to look.
        growth = (
            self.plan(stage, replace(plan.shape, micro_batch_windows=2)).memory.total_bytes - plan.memory.total_bytes
        )
        most = 1 + (self.machine.usable_bytes - plan.memory.total_bytes) / max(growth, 1.0)
        for windows in range(min(share, int(most)), 1, -1):
            if share % windows == 0:
                larger = self.plan(stage, replace(plan.shape, micro_batch_windows=windows))
                if self._fits(larger):
                    return larger
        return plan

    def _allowed_contexts(self, stage: int) -> list[int]:
        """Numbers of context ranks, rising, that divide the ranks, and that model and batch allow."""
        num_ranks = self.machine.num_ranks
        of_ones = self.config.training.stages[stage].model_copy(update={"micro_batch_windows": 1})
        allowed, reasons = [], []
        for context in range(1, num_ranks + 1):
            if num_ranks % context:
                continue
            try:
                self._check_context(context)
                of_ones.micro_batch(num_ranks // context)
                allowed.append(context)
            except ValueError as error:
                reasons.append(str(error))
        if not allowed:
            raise PlanError(f"stage {stage} can't be shared among {num_ranks} rank(s): {reasons[-1]}")
        return allowed

    def _check_context(self, context: int) -> None:
        config = self.config
        if isinstance(config.model, IsotropicConfig):
            # Boundaries that such a model doesn't read are no reason.
            config = config.model_copy(update={"data": config.data.model_copy(update={"annotation": None})})
        config.check_context(context, "context")

    def _pass_of(self, stage: int, shape: Shape) -> Pass:
        """What a rank computes."""
        training = self.config.training
        model, precision = self.config.model_of(stage), training.precision
        if precision == "auto":
            precision = "bf16" if self.machine.is_gpu else "fp32"
        return Pass(
            with_activation_checkpointing(model) if shape.activation_checkpointing else model,
            training.stages[stage].window_bases,
            shape.micro_batch_windows,
            shape.context,
            self.mean_patch_bases,
            precision,
            training.objective,
            tuple(training.frozen),
            training.loss_chunk_bases,
            training.fp8,
        )

    def _rehearse(self, wanted: Pass) -> Rehearsal:
        # A configuration holds lists, so it has no hash; what it says of itself tells it apart as well.
        key = repr(wanted)
        if key not in self._rehearsals:
            self._rehearsals[key] = rehearse(wanted)
        return self._rehearsals[key]

    def _fits(self, plan: StagePlan) -> bool:
        return plan.memory.total_bytes <= self.machine.usable_bytes


def _stored_mean(config: RunConfig) -> float | None:
    if config.data.annotation is None:
        return None
    try:
        return find_sources(config.data).mean_patch_bases
    except DataError:
        # A run may be planned before its data are there.
        return None
