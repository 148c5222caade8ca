"""Windows cut anew: what the patcher would cut at that limit, by schedule and by chance, and never by what is ahead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.entropy_grid import on_grid
from hyena_blt_savanna.data.order import order_key
from hyena_blt_savanna.nucleotides import TAG_MARK
from hyena_blt_savanna.patching.augmentation import AugmentedCutter, CutsConfig
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.marks import FORCED, IN_TAG, forced_starts
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.rules import BudgetRule
from hyena_blt_savanna.testing.toy_genomes import random_genome

RULE = BudgetRule(budget_nats=8.0)
GENOME = random_genome(4000, 1, num_unknown_runs=2)
MODEL = NgramConfig(order=3, smoothing_folds=2).fit(GENOME)
NATS = MODEL.entropies(GENOME)


def cutter_with(**settings: Any) -> AugmentedCutter:
    return AugmentedCutter(CutsConfig.parse(settings), RULE)


def lengths_of(cutter: AugmentedCutter, index: int = 0, progress: float = 1.0, bases: Any = GENOME) -> np.ndarray:
    nats = MODEL.entropies(bases) if cutter.needs_entropies else None
    return cutter.cut(bases, nats, 0, order_key(index), progress)


def test_without_settings_a_window_is_cut_as_the_patcher_would() -> None:
    assert lengths_of(cutter_with()).tolist() == cut(GENOME, NATS, RULE).tolist()


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.5), (0.1, 0.75), (0.2, 1.0), (0.9, 1.0)])
def test_the_limit_rises_as_scheduled(progress: float, factor: float) -> None:
    cutter = cutter_with(first_factor=0.5, last_factor=1.0, settled_at=0.2)
    expected = cut(GENOME, NATS, BudgetRule(budget_nats=8.0 * factor))
    assert lengths_of(cutter, progress=progress).tolist() == expected.tolist()


def test_the_limits_of_windows_spread_evenly_in_their_logarithm() -> None:
    cutter = cutter_with(spread=2.0)
    nats = on_grid(np.random.default_rng(0).uniform(0.5, 1.5, len(GENOME)))
    # Sums of uneven entropies go smoothly with the limit; a patch holds half a base's nats less than the budget.
    means = np.array([len(GENOME) / len(cutter.cut(GENOME, nats, 0, order_key(index), 1.0)) for index in range(400)])
    factors = (means + 0.5) / 8.0
    assert 0.45 < factors.min() < 0.55
    assert 1.6 < factors.max() < 2.05
    shares = [np.mean(factors < border) for border in (2**-0.5, 1.0, 2**0.5)]
    assert np.abs(np.array(shares) - [0.25, 0.5, 0.75]).max() < 0.08


def test_blind_windows_have_their_share_and_their_lengths() -> None:
    cutter = cutter_with(static_share=0.3, random_share=0.2, blind_patch_bases=[5, 9])
    forced = np.flatnonzero(forced_starts(GENOME))
    by_rule = cut(GENOME, NATS, RULE).tolist()
    kinds = {"rule": 0, "static": 0, "random": 0}
    seen = set()
    for index in range(400):
        lengths = lengths_of(cutter, index)
        starts = np.cumsum(lengths) - lengths
        assert lengths.sum() == len(GENOME)
        assert np.isin(forced, starts).all()
        if lengths.tolist() == by_rule:
            kinds["rule"] += 1
            continue
        # The last patch before a forced boundary, or of the window, may be shorter.
        free = np.delete(lengths, np.r_[np.searchsorted(starts, forced[1:]) - 1, len(lengths) - 1])
        assert 5 <= free.min() <= free.max() <= 9
        kinds["static" if free.min() == free.max() else "random"] += 1
        seen |= set(free.tolist())
    assert seen == {5, 6, 7, 8, 9}
    assert abs(kinds["static"] - 120) < 35
    assert abs(kinds["random"] - 80) < 30


def test_chance_follows_from_the_key_alone() -> None:
    cutter = cutter_with(spread=1.5, static_share=0.2, random_share=0.3)
    first = [lengths_of(cutter, index).tolist() for index in range(20)]
    assert [lengths_of(cutter, index).tolist() for index in range(20)] == first
    assert len({tuple(lengths) for lengths in first}) > 10


@given(position=st.integers(0, 299), index=st.integers(0, 50))
def test_no_boundary_knows_what_is_ahead(position: int, index: int) -> None:
    cutter = cutter_with(spread=2.0, static_share=0.3, random_share=0.3)
    bases = GENOME[:300]
    other = bases.copy()
    other[position:] = random_genome(300 - position, index)
    one, two = (np.cumsum(lengths_of(cutter, index, 0.5, window)) for window in (bases, other))
    assert one[one <= position].tolist() == two[two <= position].tolist()


def test_a_window_that_starts_inside_a_tag() -> None:
    bases = np.frombuffer(b"ACGT_S" + bytes([TAG_MARK]) + b"ACGTACGTACGT", dtype=np.uint8)
    nats = np.full(len(bases), 1.0, dtype=np.float32)
    for settings in ({}, {"static_share": 1.0}):
        lengths = cutter_with(**settings).cut(bases, nats, 7, order_key(1), 1.0)
        ends = np.cumsum(lengths)
        assert 7 in ends
        assert np.isin(np.flatnonzero(forced_starts(bases, IN_TAG | FORCED))[1:], ends).all()


@pytest.mark.parametrize("settings", [{}, {"static_share": 1.0, "blind_patch_bases": [16, 16]}])
def test_a_window_that_starts_with_a_tag(settings: dict[str, Any]) -> None:
    tag = b"|D__X|"
    bases = np.frombuffer(tag + b"ACNNGTACGTACGTACGT", dtype=np.uint8)
    nats = np.full(len(bases), 0.1, dtype=np.float32)
    expected = np.diff([*np.flatnonzero(forced_starts(bases)), len(bases)]).tolist()
    for num_read in range(len(tag) + 1):
        lengths = cutter_with(**settings).cut(bases[num_read:], nats[num_read:], len(tag) - num_read, order_key(1), 1.0)
        first, *rest = expected
        assert lengths.tolist() == [first - num_read, *rest][num_read == len(tag) :]


def test_what_it_needs_and_how_long_its_patches_are() -> None:
    assert cutter_with(static_share=0.5).needs_entropies
    assert not cutter_with(static_share=0.5, random_share=0.5).needs_entropies
    assert cutter_with().longest_patch_bases == 16
    assert cutter_with(static_share=0.1, blind_patch_bases=[4, 20]).longest_patch_bases == 20
    assert cutter_with(blind_patch_bases=[4, 20]).longest_patch_bases == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"static_share": 0.7, "random_share": 0.4}, "more than all windows"),
        ({"blind_patch_bases": [9, 4]}, "give the shorter one first"),
        ({"spread": 0.5}, "spread"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CutsConfig.parse(settings)
