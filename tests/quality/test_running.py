"""Trials that really train: what they leave, and that a benchmark goes on where it was stopped."""

from __future__ import annotations

import json
import threading
import time

import pytest
import yaml

from hyena_blt_savanna.quality import running
from hyena_blt_savanna.quality.config import Benchmark
from hyena_blt_savanna.quality.datasets import Datasets
from hyena_blt_savanna.quality.plan import Plan
from hyena_blt_savanna.quality.results import Results
from hyena_blt_savanna.quality.running import TrialRunner, run_trials
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.run_config import RunConfig

HYBRID = {"title": "All", "contenders": ["hybrid"], "seeds": [1]}
ONE_TRIAL = {"groups": [HYBRID], "baseline": "hybrid", "pairs": [], "search_share": 1.0, "rates": [1e-2]}


def build(path, folder, keep=False):
    """What `run_trials` needs, with all files below a folder."""
    plan, results = Plan(Benchmark.load(path)), Results(folder / "results")
    datasets = Datasets(plan.benchmark, folder / "work")
    return TrialRunner(plan, datasets, results, folder / "work", "bench", 1, keep), plan, results


@pytest.mark.slow
def test_a_stopped_benchmark_goes_on_to_the_same_figures(make_benchmark, tmp_path):
    path = make_benchmark(**ONE_TRIAL, budget_flops=4e9)
    runner, plan, results = build(path, tmp_path / "whole")
    progress = run_trials(runner, plan, results, num_workers=1)
    [name] = progress.finished
    assert progress.is_complete
    assert not list((tmp_path / "whole").rglob("step_*"))
    whole = results.fresh(plan)[0][name]
    assert whole.facts["num_steps"] == whole.curve[-1].step
    assert whole.curve[-1].flops == pytest.approx(whole.facts["total_flops"])
    assert len(whole.curve) == 4

    # Nothing is done twice.
    assert run_trials(*build(path, tmp_path / "whole"), num_workers=1) == running.Progress([], {}, is_complete=True)

    runner, plan, results = build(path, tmp_path / "stopped", keep=True)

    def stop_at_a_checkpoint():
        while not list((tmp_path / "stopped").rglob("step_*/manifest.json")):
            time.sleep(0.02)
        runner.stop()

    thread = threading.Thread(target=stop_at_a_checkpoint)
    thread.start()
    stopped = run_trials(runner, plan, results, num_workers=1)
    thread.join()
    assert stopped == running.Progress([], {}, is_complete=False)
    runner, plan, results = build(path, tmp_path / "stopped", keep=True)
    assert run_trials(runner, plan, results, num_workers=1).finished == [name]
    resumed = results.fresh(plan)[0][name]
    assert [point.bits_per_base for point in resumed.curve] == [point.bits_per_base for point in whole.curve]
    assert resumed.test == whole.test
    assert list((tmp_path / "stopped").rglob("step_*/manifest.json"))


@pytest.mark.slow
def test_a_model_that_finds_its_own_chunks_is_charged_for_those(make_benchmark, tmp_path):
    path = make_benchmark(**ONE_TRIAL)
    stack = {"width": 8, "num_heads": 2, "blocks": ["hyena_se"]}
    model = {"kind": "hnet", "chunk_bases": 6, "encoder": stack, "decoder": stack, "main_network": stack}
    (path.parent / "hybrid.yaml").write_text(yaml.safe_dump({"model": model}))
    contender = {"title": "learned chunks", "recipe": [str(path.parent / "hybrid.yaml")]}
    (path.parent / "contenders" / "hybrid.yaml").write_text(yaml.safe_dump(contender))
    runner, plan, results = build(path, tmp_path)
    [name] = run_trials(runner, plan, results, num_workers=1).finished
    facts = results.fresh(plan)[0][name].facts
    [metrics] = tmp_path.rglob("metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    spent = [line["flops_per_base"] for line in lines if line["kind"] == "training"]
    assert facts["flops_per_base"] == round(sum(spent) / len(spent))
    planned = training_flops_per_base(RunConfig.load([metrics.parents[1] / "run.yaml"]).model, 128, None)
    assert facts["flops_per_base"] != round(planned)
    assert facts["total_flops"] == pytest.approx(facts["flops_per_base"] * facts["bases"], rel=1e-4)


@pytest.mark.slow
def test_a_rate_at_which_training_diverges_is_a_result(make_benchmark, tmp_path):
    runner, plan, results = build(make_benchmark(**{**ONE_TRIAL, "rates": [1e30]}), tmp_path)
    progress = run_trials(runner, plan, results, num_workers=1)
    assert progress.failed == {}
    assert progress.is_complete
    [result] = results.fresh(plan)[0].values()
    assert (result.outcome, result.test, result.validation_bits) == ("diverged", None, float("inf"))


def test_a_crash_is_told_and_does_not_stop_the_others(make_benchmark, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(running, "_LAUNCH", "echo out of luck; exit 7")
    runner, plan, results = build(make_benchmark(), tmp_path)
    progress = run_trials(runner, plan, results, num_workers=2)
    assert set(progress.failed) == {trial.name for trial in plan.wanted({})}
    assert not progress.is_complete
    message = next(iter(progress.failed.values()))
    assert "ended with code 7, see " in message
    assert message.endswith("train.log: out of luck")
    assert message in caplog.text


def test_a_genome_that_is_not_there_is_told(make_benchmark, tmp_path):
    path = make_benchmark(genomes={"toy": {"fasta": str(tmp_path / "nowhere.fa")}})
    runner, plan, results = build(path, tmp_path)
    failed = run_trials(runner, plan, results, num_workers=1).failed
    assert all("nowhere.fa: no such file; set genomes.toy.fasta" in message for message in failed.values())
    path = make_benchmark(genomes={"toy": {"fasta": None}})
    runner, plan, results = build(path, tmp_path)
    failed = run_trials(runner, plan, results, num_workers=1).failed
    assert all("configs/data/genomes.yaml does not know it" in message for message in failed.values())


def test_no_training_is_begun_when_the_time_is_over(make_benchmark, tmp_path):
    runner, plan, results = build(make_benchmark(), tmp_path)
    assert run_trials(runner, plan, results, num_workers=1, seconds=0) == running.Progress([], {}, is_complete=False)
    assert not (tmp_path / "work").exists()
