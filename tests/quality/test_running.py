"""Trials that really train: what they leave, and that a benchmark goes on where it was stopped."""

from __future__ import annotations

from hyena_blt_savanna.quality.config import Benchmark
from hyena_blt_savanna.quality.datasets import Datasets
from hyena_blt_savanna.quality.plan import Plan
from hyena_blt_savanna.quality.results import Results
from hyena_blt_savanna.quality.running import TrialRunner, run_trials


def test_smoke(make_benchmark, tmp_path):
    path = make_benchmark()
    benchmark = Benchmark.load(path)
    plan, results = Plan(benchmark), Results(tmp_path / "results")
    work = tmp_path / "work"
    runner = TrialRunner(plan, Datasets(benchmark, work), results, work, "command", 1)
    progress = run_trials(runner, plan, results, 2)
    assert progress.failed == {}
    assert progress.is_complete
