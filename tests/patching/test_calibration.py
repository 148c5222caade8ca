"""Calibration reaches the wanted mean length, and says so where it can't."""

from __future__ import annotations

import numpy as np
import pytest

from hyena_blt_savanna.patching.calibration import calibrate
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.rules import BudgetRule, EntropyRule, PatchRuleConfig, PatchRuleError, StaticRule
from hyena_blt_savanna.testing.toy_streams import random_bases

BASES = random_bases(50_000, 1)
ENTROPIES = np.random.default_rng(2).uniform(0.2, 1.38, len(BASES)).astype(np.float32)


@pytest.mark.parametrize("wanted", [2.0, 4.5, 8.0, 11.0])
@pytest.mark.parametrize("rule", [EntropyRule(), BudgetRule(min_patch_bases=2), EntropyRule(threshold_nats=0.3)])
def test_the_wanted_mean_is_reached(rule: PatchRuleConfig, wanted: float) -> None:
    if wanted <= rule.min_patch_bases:
        wanted += 1
    calibrated, found = calibrate(rule, BASES, ENTROPIES, wanted)
    mean = len(BASES) / len(cut(BASES, ENTROPIES, calibrated))
    assert mean == pytest.approx(wanted, rel=0.01)
    assert (found.mean_bases, found.limit_nats, found.num_bases) == (mean, calibrated.limit_nats, len(BASES))


def test_the_threshold_is_a_quantile_where_lengths_are_free() -> None:
    rule, _ = calibrate(EntropyRule(max_patch_bases=1000), BASES, ENTROPIES, 5.0)
    assert rule.limit_nats == pytest.approx(np.quantile(ENTROPIES, 0.8), abs=1e-3)


@pytest.mark.parametrize("rule", [EntropyRule(max_patch_bases=16), BudgetRule(max_patch_bases=16)])
def test_a_mean_beyond_the_bounds_is_refused(rule: PatchRuleConfig) -> None:
    with pytest.raises(PatchRuleError, match=r"mean patch of 40 bases.*nearest is 16.0.*1.00 to 16.00"):
        calibrate(rule, BASES, ENTROPIES, 40)


def test_equal_entropies_can_not_be_cut_by_a_threshold() -> None:
    with pytest.raises(PatchRuleError, match=r"range 1\.00 to 16\.00"):
        calibrate(EntropyRule(), BASES, np.full(len(BASES), 1.0, np.float32), 8.0)


def test_there_must_be_something_to_calibrate() -> None:
    with pytest.raises(PatchRuleError, match="no bases"):
        calibrate(BudgetRule(), BASES[:0], ENTROPIES[:0], 8.0)
    with pytest.raises(PatchRuleError, match="static"):
        calibrate(StaticRule(), BASES, ENTROPIES, 8.0)
