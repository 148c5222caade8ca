"""Which trials there are, in which order, and when two of them are the same."""

from __future__ import annotations

import math

import pytest
import yaml

from hyena_blt_savanna.quality.config import Benchmark
from hyena_blt_savanna.quality.plan import Plan, Trial

SEARCH = [Trial("hybrid", "toy", 1, 0.25, lr) for lr in (1e-3, 1e-2)]


def outcomes_of(*pairs):
    return {trial.name: bits for trial, bits in pairs}


def test_a_search_comes_first_and_chooses_the_best_rate(benchmark_of):
    plan = Plan(benchmark_of())
    assert plan.search("hybrid", "toy") == SEARCH
    assert {trial.multiple for trial in plan.wanted({})} == {0.25}
    half = outcomes_of((SEARCH[0], 1.9))
    assert plan.chosen_rate("hybrid", "toy", half) is None
    whole = half | outcomes_of((SEARCH[1], 1.8))
    assert plan.chosen_rate("hybrid", "toy", whole) == 1e-2
    wanted = plan.wanted(whole)
    assert wanted[:4] == SEARCH + plan.search("plain", "toy")
    # The point at the search's budget is the search's own.
    assert wanted[4:] == [Trial("hybrid", "toy", 1, 1.0, 1e-2)]


def test_rates_beyond_are_tried_while_the_best_is_at_an_end(benchmark_of):
    plan = Plan(benchmark_of(rates=[4e-3, 2e-3], rates_beyond=2))

    def rates(**bits):
        outcomes = {f"toy.hybrid.c0.25.lr{lr}.seed1": value for lr, value in bits.items()}
        return [trial.lr for trial in plan.search("hybrid", "toy", outcomes)], plan.chosen_rate(
            "hybrid", "toy", outcomes
        )

    assert rates() == ([2e-3, 4e-3], None)
    assert rates(**{"0.002": 1.9}) == ([2e-3, 4e-3], None)
    assert rates(**{"0.002": 1.9, "0.004": 1.8}) == ([2e-3, 4e-3, 8e-3], None)
    assert rates(**{"0.002": 1.9, "0.004": 1.8, "0.008": 1.85}) == ([2e-3, 4e-3, 8e-3], 4e-3)
    assert rates(**{"0.002": 1.8, "0.004": 1.9, "0.001": math.inf}) == ([1e-3, 2e-3, 4e-3], 2e-3)
    four = {"0.002": 1.9, "0.004": 1.8, "0.008": 1.7, "0.016": 1.6}
    assert rates(**four) == ([2e-3, 4e-3, 8e-3, 1.6e-2], 1.6e-2)


def test_a_rate_that_diverged_is_not_chosen(benchmark_of):
    plan = Plan(benchmark_of())
    diverged = outcomes_of((SEARCH[0], 1.9), (SEARCH[1], math.inf))
    assert plan.chosen_rate("hybrid", "toy", diverged) == 1e-3
    everything = dict.fromkeys(diverged, math.inf)
    assert plan.chosen_rate("hybrid", "toy", everything) is None
    assert all(trial.multiple == 0.25 for trial in plan.wanted(everything))


def test_seeds_come_one_after_the_other_over_contenders(benchmark_of):
    group = {"title": "All", "contenders": ["hybrid", "plain"], "seeds": [5, 6]}
    plan = Plan(benchmark_of(groups=[group], multiples=[1, 2], rates=[1e-3]))
    outcomes = {trial.name: 1.9 for trial in plan.wanted({})}
    order = [(trial.contender, trial.seed, trial.multiple) for trial in plan.wanted(outcomes)]
    assert order == [
        ("hybrid", 5, 0.25),
        ("plain", 5, 0.25),
        *(("hybrid", 5, budget) for budget in (1, 2)),
        *(("plain", 5, budget) for budget in (1, 2)),
        ("hybrid", 6, 1),
        ("plain", 6, 1),
    ]


def test_a_group_has_budgets_of_its_own(benchmark_of):
    screening = {"title": "Screening", "contenders": ["hybrid"], "seeds": [5], "multiples": [0.5]}
    finals = {"title": "Finals", "contenders": ["hybrid", "plain"], "seeds": [5, 6]}
    plan = Plan(benchmark_of(groups=[screening, finals], rates=[1e-3], multiples=[1, 2]))
    budgets = {
        name: [(trial.seed, trial.multiple) for trial in plan.finals(name, "toy", 1e-3)] for name in ("hybrid", "plain")
    }
    assert budgets["plain"] == [(5, 0.25), (5, 1), (5, 2), (6, 1)]
    assert budgets["hybrid"] == [(5, 0.25), (5, 0.5), (5, 1), (5, 2), (6, 1)]


def test_a_rate_can_be_another_contenders(make_benchmark):
    path = make_benchmark(rates=[1e-3])
    file = path.parent / "contenders" / "plain.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"rate_from": "hybrid", "multiples": [4]}))
    plan = Plan(Benchmark.load(path), only=["plain"])
    [searched] = plan.wanted({})
    assert searched == Trial("hybrid", "toy", 1, 0.25, 1e-3)
    assert plan.wanted({searched.name: 1.9})[1:] == [Trial("plain", "toy", 1, 4.0, 1e-3)]


def test_rates_can_be_chosen_on_one_genome_for_all(benchmark_of):
    genomes = {"toy": {}, "other": {}}
    plan = Plan(benchmark_of(genomes=genomes, search_genome="toy", rates=[1e-3]), only=["hybrid"])
    [searched] = plan.wanted({})
    assert searched.genome == "toy"
    # The other genome's point at a small budget is not the search's.
    assert [(trial.genome, trial.multiple) for trial in plan.wanted({searched.name: 1.9})] == [
        ("toy", 0.25),
        ("other", 0.25),
        ("other", 1.0),
        ("toy", 1.0),
    ]


@pytest.mark.parametrize(
    ("only", "names"),
    [(["pl*"], {"plain"}), (["toy.hybrid.*"], {"hybrid"}), (["none"], set()), (["pl*", "hybrid"], {"plain", "hybrid"})],
)
def test_only_takes_contenders_and_trials(benchmark_of, only, names):
    plan = Plan(benchmark_of(), only)
    assert {trial.contender for trial in plan.wanted({})} == names


def test_a_digest_follows_all_that_decides_a_figure(make_benchmark):
    path = make_benchmark()
    trial = SEARCH[0]

    def digest(trial=trial, **overrides):
        given = [f"{key}={value}" for key, value in overrides.items()]
        return Plan(Benchmark.load(path, given)).digest(trial)

    before = digest()
    same = {"rates": "[1e-3]", "name": "other", "drawn": "[plain]", "ngram_orders": "[]"}
    assert digest(**same) == before
    for changes in ({"budget_flops": 1}, {"warmup_share": 0.1}, {"held_out.test_bases": 500}):
        assert digest(**changes) != before
    for other in (Trial("hybrid", "toy", 2, 0.25, 1e-3), Trial("hybrid", "toy", 1, 0.5, 1e-3)):
        assert digest(other) != before
    for name in ("hybrid.yaml", "training.yaml", "static.yaml"):
        file = path.parent / name
        text = file.read_text()
        file.write_text(text.replace("16", "12").replace("128", "64").replace("4", "5"))
        assert digest() != before, name
        file.write_text(text)
    title = path.parent / "contenders" / "hybrid.yaml"
    title.write_text(title.read_text().replace("the hybrid one", "another name"))
    assert digest() == before
