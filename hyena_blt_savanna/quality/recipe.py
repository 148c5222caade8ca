"""The training run of a trial: as long as its budget allows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.quality.config import Benchmark
from hyena_blt_savanna.quality.plan import Trial
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.schedule import StageConfig


@dataclass(frozen=True)
class EntropyCost:
    """What finding patch boundaries costs: spread over the first epoch, later ones read them for nothing.

    Attributes:
        flops_per_base: to make the entropy model and to read with it, divided by the bases that are read.
        num_bases: of an epoch, on all strands.
    """

    flops_per_base: float = 0.0
    num_bases: float = float("inf")

    def flops(self, num_trained_bases: float) -> float:
        """Operations charged to a training on so many bases."""
        return self.flops_per_base * min(num_trained_bases, self.num_bases)


@dataclass(frozen=True)
class Boundaries:
    """What is known of a contender's patches on a genome.

    Attributes:
        annotation: its name; None where each base is a patch.
        mean_bases: mean length of the training data's patches; None likewise.
        sd_bases: standard deviation of the lengths; None likewise.
        cost: of finding them.
    """

    annotation: str | None = None
    mean_bases: float | None = None
    sd_bases: float | None = None
    cost: EntropyCost = EntropyCost()


@dataclass(frozen=True)
class TrainingPlan:
    """A trial's training run and what it costs.

    Attributes:
        config: what tools/train.py is given.
        tree: the same without defaults, as the files and the plan say.
        num_steps: of the run.
        bases_per_step: windows of a step times their bases.
        flops_per_base: forward and backward pass of the model.
        entropy_flops: of finding the patches, for the whole run.
    """

    config: RunConfig
    tree: dict[str, Any]
    num_steps: int
    bases_per_step: int
    flops_per_base: float
    entropy_flops: float

    @property
    def total_flops(self) -> float:
        """Of the whole run, the entropy model's included."""
        return self.num_steps * self.bases_per_step * self.flops_per_base + self.entropy_flops

    def flops_at(self, step: int, cost: EntropyCost) -> float:
        """Operations behind a step."""
        bases = step * self.bases_per_step
        return bases * self.flops_per_base + cost.flops(bases)


def affordable_bases(budget_flops: float, flops_per_base: float, cost: EntropyCost) -> float:
    """Bases that can be trained on with a budget, each new one read by the entropy model first.

    Args:
        budget_flops: of the whole training.
        flops_per_base: of the model.
        cost: of finding the patches.
    """
    bases = budget_flops / (flops_per_base + cost.flops_per_base)
    if bases > cost.num_bases:
        bases = (budget_flops - cost.num_bases * cost.flops_per_base) / flops_per_base
    return bases


def plan_training(
    benchmark: Benchmark, trial: Trial, run: Path, data: Path, boundaries: Boundaries, validation_windows: list[int]
) -> TrainingPlan:
    """The run that spends a trial's budget.

    Args:
        benchmark: what is compared.
        trial: one of its trainings.
        run: folder of the run.
        data: folder of the dataset.
        boundaries: the contender's patches there.
        validation_windows: the held-out windows of its curve.

    Raises:
        ConfigError: the recipe has mistakes, has several stages, or the budget is less than a step.
    """
    settings = benchmark.config
    where = f"contender {trial.contender}"
    tree = _with(
        benchmark.tree(trial.contender),
        {
            "run": str(run),
            "seed": trial.seed,
            "data": {"folder": str(data), "annotation": boundaries.annotation},
            "training": {"optimizer": {"lr": trial.lr}, "validation": {"windows": validation_windows}},
        },
    )
    draft = RunConfig.parse(tree, where)
    if len(draft.training.stages) != 1:
        raise ConfigError(f"{where}: training.stages has {len(draft.training.stages)} stages; give one")
    stage: StageConfig = draft.training.stages[0]
    bases_per_step = stage.window_bases * stage.batch_windows
    per_base = training_flops_per_base(draft.model, stage.window_bases, boundaries.mean_bases, draft.training.objective)
    budget = settings.budget_flops * trial.multiple
    num_steps = round(affordable_bases(budget, per_base, boundaries.cost) / bases_per_step)
    if num_steps < 1:
        raise ConfigError(
            f"{where}: a step costs {per_base * bases_per_step:.3g} operations, more than the budget of {budget:.3g}: "
            "raise budget_flops, or search_share for a trial of the search"
        )
    tree = _with(
        tree,
        {
            "training": {
                "stages": [{**stage.to_dict(), "steps": num_steps}],
                "schedule": {"warmup_steps": round(settings.warmup_share * num_steps)},
                "validation": {"every_steps": -(-num_steps // settings.validations)},
                "checkpoints": {"every_steps": -(-num_steps // settings.checkpoints), "keep_last": 1},
            }
        },
    )
    return TrainingPlan(
        config=RunConfig.parse(tree, where),
        tree=tree,
        num_steps=num_steps,
        bases_per_step=bases_per_step,
        flops_per_base=per_base,
        entropy_flops=boundaries.cost.flops(num_steps * bases_per_step),
    )


def _with(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    changed = dict(tree)
    for key, value in changes.items():
        below = changed.get(key)
        changed[key] = _with(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return changed
