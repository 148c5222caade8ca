"""How long a trial trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.quality.config import Benchmark
from hyena_blt_savanna.quality.plan import Trial
from hyena_blt_savanna.quality.recipe import Boundaries, EntropyCost, affordable_bases, plan_training
from hyena_blt_savanna.training.flops import training_flops_per_base

TRIAL = Trial("hybrid", "toy", 7, 1.0, 2e-3)


@pytest.mark.parametrize(
    ("cost", "bases"),
    [
        (EntropyCost(), 100.0),
        (EntropyCost(flops_per_base=1), 90.0),
        # 50 bases are read once: 850 are left for training.
        (EntropyCost(flops_per_base=1, num_bases=50), 850 / 9),
    ],
)
def test_bases_that_a_budget_pays_for(cost, bases):
    found = affordable_bases(900, 9, cost)
    assert found == pytest.approx(bases)
    assert 9 * found + cost.flops(found) == pytest.approx(900)


def plan(benchmark, boundaries, trial=TRIAL):
    return plan_training(benchmark, trial, Path("run"), Path("data"), boundaries, [3, 5])


def test_a_budget_is_spent_to_half_a_step(benchmark_of):
    benchmark = benchmark_of()
    boundaries = Boundaries("static4", 4.0, 0.0, EntropyCost(1000.0))
    planned = plan(benchmark, boundaries)
    per_base = training_flops_per_base(planned.config.model, 128, 4.0)
    step = 256 * (per_base + 1000)
    assert planned.flops_per_base == per_base
    assert planned.num_steps == round(benchmark.config.budget_flops / step)
    assert planned.total_flops == pytest.approx(planned.num_steps * step)
    assert planned.flops_at(3, boundaries.cost) == pytest.approx(3 * step)
    # Fewer patches cost less.
    assert plan(benchmark, Boundaries("static4", 6.0)).flops_per_base < per_base


def test_what_the_plan_decides_is_in_the_run(benchmark_of):
    config = plan(benchmark_of(), Boundaries("static4", 4.0)).config
    training = config.training
    assert (config.seed, config.data.annotation, training.optimizer.lr) == (7, "static4", 2e-3)
    assert training.validation.windows == [3, 5]
    steps = training.stages[0].steps
    assert training.schedule.warmup_steps == round(0.05 * steps)
    # Four points of a curve, the last one at the end.
    assert -(-steps // training.validation.every_steps) == 4
    assert training.checkpoints.every_steps == training.validation.every_steps


def test_a_budget_below_a_step_is_refused(benchmark_of):
    with pytest.raises(ConfigError, match=r"contender hybrid: a step costs .*raise budget_flops"):
        plan(benchmark_of(budget_flops=1e3), Boundaries("static4", 4.0))


def test_stages_are_refused(make_benchmark):
    path = make_benchmark()
    file = path.parent / "training.yaml"
    stage = "{steps: 1, window_bases: 128, batch_windows: 2}"
    file.write_text(f"training: {{stages: [{stage}, {stage}]}}\n")
    with pytest.raises(ConfigError, match=r"training\.stages has 2 stages; give one"):
        plan(Benchmark.load(path), Boundaries("static4", 4.0))
