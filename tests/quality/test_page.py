"""Results on disk, and the page that is made of them."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from hyena_blt_savanna.quality.config import Benchmark, digest_of
from hyena_blt_savanna.quality.datasets import Datasets
from hyena_blt_savanna.quality.ngram_line import make_ngram_line, read_ngram_line
from hyena_blt_savanna.quality.page import write_page
from hyena_blt_savanna.quality.plan import Plan, Trial
from hyena_blt_savanna.quality.results import CurvePoint, HeldOutScores, ResultError, Results, TrialResult, write_json

FACTS = {
    "num_parameters": 2_000_000,
    "num_table_parameters": 500_000,
    "flops_per_base": 3000,
    "bases": 4_000_000,
    "entropy_flops": 2.4e8,
    "bases_per_second": 5000.0,
    "seconds": 800.0,
}


def result_of(plan: Plan, trial: Trial, bits: float, **changes: object) -> TrialResult:
    """A result whose four windows cost 0.01 bits more or less in turn."""
    num_bases = [100] * 4
    nats = [(bits + 0.01 * (-1) ** place) * 100 * math.log(2) for place in range(4)]
    flops = trial.multiple * 1e12
    tree = {
        "contender": trial.contender,
        "title": "-",
        "genome": trial.genome,
        "seed": trial.seed,
        "multiple": trial.multiple,
        "lr": trial.lr,
        "digest": plan.digest(trial),
        "outcome": "finished",
        "command": "command",
        "commit": "abc",
        "machine": {"device": "cpu", "num_cores": 2},
        "versions": {"torch": "2"},
        "facts": {**FACTS, "total_flops": flops},
        "curve": [
            CurvePoint(step=place, flops=flops * place / 4, seconds=place, bases=place, bits_per_base=2.1 - place / 50)
            for place in (1, 2, 3, 4)
        ],
        "test": HeldOutScores(bits_per_base=bits, windows=[0, 1, 2, 3], nats=nats, num_bases=num_bases),
        "recipe": {"a.b": [1, 2]},
    }
    return TrialResult.model_validate({**tree, **changes})


@pytest.fixture
def filled(make_benchmark, tmp_path):
    """A benchmark with results of all its trials: the hybrid is better by 0.04 bits."""
    groups = [{"title": "Both", "contenders": ["hybrid", "plain"], "seeds": [1, 2]}]
    genomes = {"toy": {"lines": {"another program": 1.95}}}
    path = make_benchmark(groups=groups, rates=[1e-3, 1e-2], genomes=genomes)
    file = path.parent / "contenders" / "plain.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "multiples": [1, 4]}))
    plan, results = Plan(Benchmark.load(path)), Results(tmp_path / "results")
    for name, bits in (("hybrid", {0.25: 1.94, 1: 1.90}), ("plain", {0.25: 1.96, 1: 1.94, 4: 1.92})):
        for lr in (1e-3, 1e-2):
            trial = Trial(name, "toy", 1, 0.25, lr)
            curve = [CurvePoint(step=1, flops=1, seconds=1, bases=1, bits_per_base=2.0 if lr == 1e-3 else 1.9)]
            results.write(result_of(plan, trial, bits[0.25] if lr == 1e-2 else 2.0, curve=curve))
        for multiple in [budget for budget in bits if budget >= 1]:
            for seed in (1, 2):
                trial = Trial(name, "toy", seed, float(multiple), 1e-2)
                results.write(result_of(plan, trial, bits[multiple] + (0.002 if seed == 2 else -0.002)))
    return plan, results


def rows(page: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells}


def test_the_table_says_what_the_results_say(filled):
    plan, results = filled
    config = plan.benchmark.config
    held_out = config.held_out.to_dict()
    digest = digest_of([config.genomes["toy"].split.to_dict(), config.ngram_orders, held_out, "toy", [128]])
    about = {"test": {"windows": 9, "taken": 4}}
    line = {"digest": digest, "order": 2, "held_out": about, "test": {"bits_per_base": 1.955}}
    write_json(results.folder / "ngram.toy.json", line)
    page = write_page(plan, results, "python bench/quality.py small.yaml").read_text()
    found = rows(page)
    header, hybrid, plain = found["contender"], found["the hybrid one (`hybrid`)"], found["the plain one (`plain`)"]
    assert len(hybrid) == len(header)
    by_name = dict(zip(header, hybrid, strict=True))
    assert by_name["parameters, M (tables)"] == "2.00 (0.50)"
    assert by_name["kFLOPs a base (more for patches)"] == "3 (+2.0%)"
    # Rates beyond are not tried in this benchmark.
    assert by_name["rate"] == "0.01 (the last tried)"
    assert by_name["bits at other budgets"] == "0.25 C: 1.9400"
    assert by_name["bits at C (range of seeds)"] == "1.9000 (1.8980 to 1.9020)"
    # No spread over windows; two seeds 0.004 apart on either side.
    assert by_name["less plain"] == "-0.0400 ± 0.0028"
    # Better than all of the baseline's trainings, of which the longest has four times the budget.
    assert by_name["plain's compute for it"] == "more than 4.00 x"
    by_name = dict(zip(header, plain, strict=True))
    assert by_name["bits at other budgets"] == "0.25 C: 1.9600, 4 C: 1.9180"
    assert by_name["less plain"] == ""
    assert "| the hybrid one, less the plain one | 0.25 C | 1 | -0.0200 | 0.0000 |" in page
    assert "| the hybrid one, less the plain one | 1 C | 2 | -0.0400 | 0.0028 |" in page
    assert found["another program"] == ["1.9500"]
    assert found["n-gram of order 2, the same bases"] == ["1.9550"]
    assert "Test windows: 9 windows, 4 taken." in page
    for name in ("flops", "seconds", "bases"):
        assert f"({name}.png)" in page
        assert (results.folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_a_row_that_was_trained_less_is_compared_where_both_are(filled):
    plan, results = filled
    for path in results.folder.rglob("toy.hybrid.c1.*"):
        path.unlink()
    found = rows(write_page(plan, results, "command").read_text())
    row = dict(zip(found["contender"], found["the hybrid one (`hybrid`)"], strict=True))
    assert row["bits at C (range of seeds)"] == ""
    assert row["bits at other budgets"] == "0.25 C: 1.9400"
    assert row["less plain"] == "-0.0200 ± 0.0000 at 0.25 C"
    # The baseline has these bits at C.
    assert row["plain's compute for it"] == "4.00 x at 0.25 C"


def test_a_page_is_the_same_when_it_is_made_again(filled):
    plan, results = filled
    write_page(plan, results, "command")
    before = {path.name: path.read_bytes() for path in results.folder.iterdir() if path.is_file()}
    write_page(plan, results, "command")
    assert {path.name: path.read_bytes() for path in results.folder.iterdir() if path.is_file()} == before


def test_a_page_tells_what_is_missing(benchmark_of, tmp_path):
    plan, results = Plan(benchmark_of()), Results(tmp_path)
    first, second, third, _ = plan.wanted({})
    results.write(result_of(plan, first, 1.9, outcome="diverged", test=None))
    results.write(result_of(plan, third, 1.9, digest="of another recipe"))
    page = write_page(plan, results, "command").read_text()
    assert "search 1 of 2" in rows(page)["the hybrid one (`hybrid`)"]
    assert "3 trainings are missing, 1 results are of an earlier recipe." in page
    results.write(result_of(plan, second, 1.9, outcome="diverged", test=None))
    assert "diverged at every rate" in write_page(plan, results, "command").read_text()


def test_results_come_back_as_they_were(benchmark_of, tmp_path):
    plan, results = Plan(benchmark_of()), Results(tmp_path)
    trial = plan.wanted({})[0]
    result = result_of(plan, trial, 1.9)
    results.write(result)
    assert results.read(trial) == result
    assert results.fresh(plan) == ({trial.name: result}, [])
    assert results.read(plan.wanted({})[1]) is None


def test_a_changed_recipe_makes_a_result_stale(make_benchmark, tmp_path):
    path, results = make_benchmark(), Results(tmp_path / "results")
    plan = Plan(Benchmark.load(path))
    trial = plan.wanted({})[0]
    results.write(result_of(plan, trial, 1.9))
    changed = Plan(Benchmark.load(path, ["warmup_share=0.2"]))
    assert results.fresh(changed) == ({}, [trial.name])


def test_a_broken_result_is_named(benchmark_of, tmp_path):
    plan, results = Plan(benchmark_of()), Results(tmp_path)
    trial = plan.wanted({})[0]
    results.write(result_of(plan, trial, 1.9))
    path = results.path(trial)
    path.write_text(path.read_text()[:-10])
    with pytest.raises(ResultError, match=r"seed1\.json: can't be read as a result: .*; remove it"):
        results.fresh(plan)


def test_results_are_plain_json_without_places(filled):
    _, results = filled
    for path in (results.folder / "trials").iterdir():
        text = path.read_text()
        assert "/" not in json.dumps(json.loads(text)["recipe"])
        assert len(text.splitlines()) < 80


def test_the_count_model_is_fitted_once_and_read_back(make_benchmark, tmp_path):
    benchmark, results = Benchmark.load(make_benchmark()), Results(tmp_path / "results")
    assert read_ngram_line(benchmark, results, "toy") is None
    make_ngram_line(benchmark, results, Datasets(benchmark, tmp_path / "work"), "toy")
    line = read_ngram_line(benchmark, results, "toy")
    assert line is not None
    assert line["order"] in (1, 2)
    assert 1.9 < line["test"]["bits_per_base"] < 2.1
    assert line["held_out"]["test"]["taken"] == len(line["test"]["windows"])
    path = results.folder / "ngram.toy.json"
    before = path.stat().st_mtime_ns
    make_ngram_line(benchmark, results, Datasets(benchmark, tmp_path / "work"), "toy")
    assert path.stat().st_mtime_ns == before
    path.write_text("{}")
    with pytest.raises(ResultError, match=r"ngram\.toy\.json: can't be read: KeyError"):
        read_ngram_line(benchmark, results, "toy")
