"""What trials read: made once, and priced."""

from __future__ import annotations

import pytest
import yaml

from hyena_blt_savanna.data.manifest import read_annotation_manifest
from hyena_blt_savanna.patching.annotation_flops import annotation_flops
from hyena_blt_savanna.quality.config import Benchmark
from hyena_blt_savanna.quality.datasets import Datasets

NGRAM = ["entropy_model.order=2", "entropy_model.smoothing_folds=2", "folds=2"]


@pytest.fixture
def datasets(make_benchmark, tmp_path):
    """Of a benchmark with a contender that is cut by entropies, and its control."""
    path = make_benchmark()
    names = ["hybrid", "plain", "entropies", "control"]
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, "groups": [{"title": "All", "contenders": names, "seeds": [1]}]}))
    folder = path.parent / "contenders"
    hybrid = yaml.safe_load((folder / "hybrid.yaml").read_text())
    rule = "rule={kind: budget, max_patch_bases: 8}"
    recipe = [rule, "calibrate_to.mean_patch_bases=4", "entropy_model.kind=ngram", *NGRAM]
    for name, choice in (("entropies", {"recipe": recipe}), ("control", {"permute": "entropies"})):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**hybrid, "annotation": {"name": name, **choice}}))
    return Datasets(Benchmark.load(path), tmp_path / "work")


def test_the_control_has_the_lengths_and_the_price_of_its_source(datasets):
    found, control = (datasets.boundaries(name, "toy") for name in ("entropies", "control"))
    assert (control.mean_bases, control.sd_bases, control.cost) == (found.mean_bases, found.sd_bases, found.cost)
    data = datasets.folder("toy")
    price = annotation_flops(data, "entropies")
    assert found.cost.flops(1e12) == pytest.approx(price.total)
    assert price.total > 0
    lengths, permuted = (read_annotation_manifest(data / "train", name).statistics for name in ("entropies", "control"))
    assert lengths["forward"].histogram == permuted["forward"].histogram
    # The mean and standard deviation of all lengths, one by one.
    histogram = lengths["forward"].histogram
    each = [length for length, count in histogram.items() for _ in range(count)]
    mean = sum(each) / len(each)
    assert found.mean_bases == pytest.approx(mean)
    assert found.sd_bases == pytest.approx((sum((length - mean) ** 2 for length in each) / len(each)) ** 0.5)


def test_single_bases_have_no_boundaries_and_cost_nothing(datasets):
    found = datasets.boundaries("plain", "toy")
    assert (found.annotation, found.mean_bases, found.cost.flops(1e9)) == (None, None, 0.0)
    assert datasets.boundaries("hybrid", "toy").cost.flops(1e9) == 0.0


def test_data_are_made_once(datasets, tmp_path):
    folder = datasets.folder("toy")
    before = (folder / "train.bin").stat().st_mtime_ns
    assert datasets.folder("toy") == folder
    again = Datasets(datasets._benchmark, tmp_path / "work")
    assert again.folder("toy") == folder
    assert (folder / "train.bin").stat().st_mtime_ns == before
    assert datasets.window_bases("hybrid") == datasets.window_bases("plain") == 128
    assert again.held_out("toy", 128) == datasets.held_out("toy", 128)
