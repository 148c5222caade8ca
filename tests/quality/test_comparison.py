"""Differences and ratios, against hand values and a plain resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hyena_blt_savanna.quality.comparison import Ratio, compute_ratio, difference
from hyena_blt_savanna.quality.results import HeldOutScores

CURVE = [(1e12, 1.96), (4e12, 1.92), (16e12, 1.90)]


def scores(bits, num_bases, windows=None):
    nats = np.asarray(bits) * num_bases * math.log(2)
    total = float(np.sum(nats) / np.sum(num_bases) / math.log(2))
    windows = list(range(len(bits))) if windows is None else windows
    return HeldOutScores(
        bits_per_base=total, windows=windows, nats=nats.tolist(), num_bases=np.asarray(num_bases).tolist()
    )


@pytest.mark.parametrize(
    ("bits", "ratio"),
    [
        (1.92, Ratio(4.0)),
        # Half of the way in bits is half of the way in logarithms: the geometric mean of 1 and 4.
        (1.94, Ratio(2.0)),
        (1.91, Ratio(8.0)),
        (1.90, Ratio(16.0)),
        (1.89, Ratio(16.0, ">")),
        (1.97, Ratio(1.0, "<")),
    ],
)
def test_a_ratio_lies_between_the_trainings_of_the_other(bits, ratio):
    found = compute_ratio(1e12, bits, CURVE)
    assert found is not None
    assert found.times == pytest.approx(ratio.times)
    assert found.bound == ratio.bound


def test_a_longer_training_that_is_worse_is_no_part_of_the_curve():
    assert compute_ratio(1e12, 1.94, [*CURVE, (8e12, 1.95)]) == compute_ratio(1e12, 1.94, CURVE)


def test_a_single_training_gives_a_bound_or_itself():
    assert compute_ratio(1e12, 1.9, []) is None
    assert compute_ratio(2e12, 1.9, [(4e12, 1.9)]) == Ratio(2.0)
    assert compute_ratio(2e12, 1.8, [(4e12, 1.9)]) == Ratio(2.0, ">")


def test_the_error_of_a_difference_is_that_of_resampled_windows():
    random = np.random.default_rng(1)
    num_bases = random.integers(500, 1000, 60)
    common = random.normal(1.9, 0.1, 60)
    first, second = common - 0.02 + random.normal(0, 0.01, 60), common
    found = difference([scores(first, num_bases)], [scores(second, num_bases)])
    assert found is not None
    assert found.bits == pytest.approx(np.average(first - second, weights=num_bases))
    drawn = random.integers(0, 60, (4000, 60))
    resampled = [np.average((first - second)[rows], weights=num_bases[rows]) for rows in drawn]
    assert found.standard_error == pytest.approx(np.std(resampled), rel=0.1)
    # Pairs: what windows have in common costs nothing.
    assert found.standard_error < 0.2 * np.std(common) / math.sqrt(60)


def test_seeds_add_their_own_spread():
    num_bases = np.full(10, 100)
    first = [scores(np.full(10, bits), num_bases) for bits in (1.90, 1.92, 1.94)]
    second = [scores(np.full(10, 2.0), num_bases)]
    found = difference(first, second)
    assert found is not None
    assert found.bits == pytest.approx(-0.08)
    # No spread over windows; seeds with a standard deviation of 0.02, three on one side and one on the other.
    assert found.standard_error == pytest.approx(0.02 * math.sqrt(1 / 3 + 1))
    # Four degrees of freedom where both sides have three seeds.
    third = [scores(np.full(10, bits), num_bases) for bits in (1.99, 2.00, 2.01)]
    found = difference(first, third)
    assert found is not None
    assert found.standard_error == pytest.approx(math.sqrt((0.0008 + 0.0002) / 4 * (1 / 3 + 1 / 3)))


def test_only_windows_of_both_are_compared():
    num_bases = np.full(3, 100)
    first = scores([1.0, 2.0, 3.0], num_bases, windows=[4, 5, 6])
    second = scores([9.0, 1.5, 2.5], num_bases, windows=[1, 5, 6])
    found = difference([first], [second])
    assert found is not None
    assert found.bits == pytest.approx(0.5)
    assert difference([first], [scores([1.0, 2.0], num_bases[:2], windows=[0, 4])]) is None
    assert difference([first], []) is None
