"""The plan of a run as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.model.parameters import count_parameters
from hyena_blt_savanna.training.planning import USABLE_SHARE, Planner, StagePlan
from hyena_blt_savanna.training.rank_memory import OFFLOADED
from hyena_blt_savanna.training.rehearsal import ACTIVATIONS, GRADIENTS, LOGITS, PARAMETERS, WORKSPACE
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.schedule import ScheduleError
from hyena_blt_savanna.training.state_memory import COLLECTIVES, OPTIMIZER

_PARTS = (PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, WORKSPACE, COLLECTIVES, OFFLOADED)
_LABEL_WIDTH, _COLUMN_WIDTH = 34, 24


def load_run(sources: Sequence[str]) -> RunConfig:
    """The configuration of a run that may lack `run` and `data.folder`: nothing is read or written there.

    Raises:
        ConfigError: a file is missing, or the merged configuration has mistakes.
    """
    tree = merge(sources)
    tree.setdefault("run", "run")
    data = tree.setdefault("data", {})
    if isinstance(data, dict):
        data.setdefault("folder", "data")
    return RunConfig.parse(tree, " ".join(sources))


def plan_lines(planner: Planner) -> Iterator[str]:
    """The plan, line by line, as soon as each stage is found.

    Raises:
        ConfigError: the ranks are no multiple of the context ranks, or the model can't be planned.
        PlanError: nothing fits.
    """
    config, machine = planner.config, planner.machine
    num_parameters = sum(count_parameters(config.model).values())
    yield (
        f"{config.model.kind}, {num_parameters:,} parameters, {config.training.precision}, patches of "
        f"{planner.mean_patch_bases:.1f} bases; {machine.num_ranks} GPU(s) of {machine.memory_bytes / 1e9:.0f} GB, "
        f"{USABLE_SHARE:.0%} of it counted on"
    )
    chosen = []
    for index, stage in enumerate(config.training.stages):
        yield ""
        yield f"stage {index}: {stage.steps:,} steps of {stage.batch_windows} windows of {stage.window_bases:,} bases"
        columns = {}
        try:
            columns["as configured"] = planner.plan(index, planner.configured_shape(index))
        except ScheduleError as error:
            yield f"as configured it can't be run: {error}"
        columns["smallest that fits"] = planner.smallest(index)
        chosen.append(columns["smallest that fits"])
        yield from _table(columns)
    yield ""
    yield "the smallest, as settings:"
    yield from _settings(chosen)


def _table(columns: dict[str, StagePlan]) -> Iterator[str]:
    def row(label: str, cells: Sequence[str]) -> str:
        return f"{label:{_LABEL_WIDTH}}" + "".join(f"{cell:>{_COLUMN_WIDTH}}" for cell in cells)

    plans = list(columns.values())
    yield row("", list(columns))
    yield row("context ranks", [str(plan.shape.context) for plan in plans])
    yield row("ZeRO stage", [str(plan.shape.zero_stage) for plan in plans])
    yield row("micro batch, windows", [str(plan.shape.micro_batch_windows) for plan in plans])
    yield row("activation checkpointing", ["yes" if plan.shape.activation_checkpointing else "no" for plan in plans])
    for part in _PARTS:
        if any(plan.memory.parts.get(part) for plan in plans):
            yield row(f"  {part}, GB", [f"{plan.memory.parts.get(part, 0) / 1e9:.2f}" for plan in plans])
    yield row("memory of a rank, GB", [f"{plan.memory.total_bytes / 1e9:.2f}" for plan in plans])
    yield row("fullest while", [plan.memory.moment for plan in plans])
    if any(plan.memory.host_bytes for plan in plans):
        yield row("host memory of a rank, GB", [f"{plan.memory.host_bytes / 1e9:.2f}" for plan in plans])
    yield row("thousand operations a base", [f"{plan.flops_per_base / 1e3:,.0f}" for plan in plans])
    yield row("seconds a step", [f"{plan.step_seconds:.3g}" for plan in plans])


def _settings(plans: Sequence[StagePlan]) -> Iterator[str]:
    for index, plan in enumerate(plans):
        yield f"  training.stages.{index}.context={plan.shape.context}"
        yield f"  training.stages.{index}.micro_batch_windows={plan.shape.micro_batch_windows}"
    yield f"  deepspeed.zero_optimization.stage={max(plan.shape.zero_stage for plan in plans)}"
    if any(plan.shape.activation_checkpointing for plan in plans):
        yield "  training.activation_checkpointing=true"
