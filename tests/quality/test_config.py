"""What a benchmark's files may say."""

from __future__ import annotations

import pytest
import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.quality.config import AnnotationChoice, Benchmark, digest_of, flatten


def edit(path, **changes):
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def add_contender(benchmark, name, like, **changes):
    """A copy of a contender with other settings, in a group of its own."""
    folder = benchmark.parent / "contenders"
    (folder / f"{name}.yaml").write_text((folder / f"{like}.yaml").read_text())
    edit(folder / f"{name}.yaml", **changes)
    groups = yaml.safe_load(benchmark.read_text())["groups"]
    edit(benchmark, groups=[*groups, {"title": name, "contenders": [name], "seeds": [1]}])
    return benchmark


def test_a_contender_without_a_file_is_named_with_the_nearest(make_benchmark):
    group = {"title": "All", "contenders": ["hybrd", "plain"], "seeds": [1]}
    with pytest.raises(ConfigError, match=r"names contender hybrd, .*hybrd\.yaml is missing; did you mean hybrid\?"):
        Benchmark.load(make_benchmark(groups=[group], pairs=[]))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budgetflops": 1}, "budgetflops: unknown key; did you mean 'budget_flops'"),
        ({"rates": [1e-3, 1e-3]}, "rates: the same number comes twice"),
        ({"baseline": "nobody"}, "name nobody, which no group has"),
        ({"drawn": ["nobody"]}, "name nobody, which no group has"),
        ({"search_genome": "moon"}, "no genome named moon in genomes: there are toy"),
        (
            {"groups": [{"title": "x", "contenders": ["hybrid", "plain"], "seeds": [1], "genomes": ["moon"]}]},
            "no genome named moon",
        ),
    ],
)
def test_mistakes_are_named(make_benchmark, changes, says):
    with pytest.raises(ConfigError) as raised:
        Benchmark.load(make_benchmark(**changes))
    assert says in str(raised.value)


def test_a_rate_is_taken_from_a_contender_that_searches(make_benchmark):
    path = add_contender(make_benchmark(), "other", "hybrid", rate_from="hybrid")
    assert Benchmark.load(path).contenders["other"].rate_from == "hybrid"
    with pytest.raises(ConfigError, match="third: rate_from is 'other', and must name a contender"):
        Benchmark.load(add_contender(path, "third", "hybrid", rate_from="other"))


def test_one_name_is_one_annotation(make_benchmark):
    choice = {"name": "static4", "recipe": ["other.yaml"]}
    with pytest.raises(ConfigError, match="other: annotation 'static4' is made in another way"):
        Benchmark.load(add_contender(make_benchmark(), "other", "hybrid", annotation=choice))


def test_a_permutation_needs_its_source(make_benchmark):
    choice = {"name": "shuffled", "permute": "static5"}
    with pytest.raises(ConfigError, match="permutes 'static5', which is the annotation of no contender"):
        Benchmark.load(add_contender(make_benchmark(), "other", "hybrid", annotation=choice))


@pytest.mark.parametrize("choice", [{"name": "x"}, {"name": "x", "recipe": ["a.yaml"], "permute": "y"}])
def test_an_annotation_has_one_source(choice):
    with pytest.raises(ConfigError, match="give one of recipe, permute and neural"):
        AnnotationChoice.parse(choice)


def test_trees_are_flattened_and_digested_by_value():
    tree = {"a": {"b": [1, {"c": 2}], "d": None}, "e": {}}
    assert flatten(tree) == {"a.b": [1, {"c": 2}], "a.d": None}
    assert digest_of({"x": 1, "y": 2}) == digest_of({"y": 2, "x": 1}) != digest_of({"x": 1, "y": 3})
