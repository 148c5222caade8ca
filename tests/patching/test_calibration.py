"""Calibration reaches what is wanted, on arrays small enough to try every limit, and says so where it can't."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.entropy_grid import on_grid
from hyena_blt_savanna.patching.calibration import Calibration, CalibrationTarget, calibrate, drift
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.rules import (
    BudgetRule,
    ByteRule,
    EntropyRule,
    JumpRule,
    MonotonicRule,
    PatchRuleConfig,
    PatchRuleError,
    StaticRule,
)
from hyena_blt_savanna.testing.toy_streams import as_bytes, random_bases

BASES = random_bases(50_000, 1)
ENTROPIES = np.random.default_rng(2).uniform(0.2, 1.38, len(BASES)).astype(np.float32)
RULES = [EntropyRule(), MonotonicRule(), JumpRule(rise_nats=-0.5), BudgetRule()]

letters = st.sampled_from(list(b"ACGTACGTACGTACGTNn|@#\0"))
rules = st.builds(
    lambda rule, shortest, longest, rise: rule.model_copy(
        update={"min_patch_bases": shortest, "max_patch_bases": max(shortest, longest)}
        | ({"rise_nats": rise} if rule.kind == "jump" else {})
    ),
    st.sampled_from(RULES),
    st.integers(1, 4),
    st.integers(1, 20),
    st.floats(-1.0, 1.0),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    bases = np.array(draw(st.lists(letters, min_size=1, max_size=150)), dtype=np.uint8)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return bases, on_grid(generator.uniform(0.0, np.log(4.0), len(bases)))


@given(streams(), rules, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_higher_limit_never_gives_more_patches(
    stream: tuple[np.ndarray, np.ndarray], rule: PatchRuleConfig, one: float, other: float
) -> None:
    bases, entropies = stream
    low, high = rule.limit_range(entropies)
    limits = sorted(low + part * (high - low) for part in (one, other))
    fewer_starts, more_starts = (np.cumsum(cut(bases, entropies, rule.with_limit(limit))) for limit in limits[::-1])
    assert len(fewer_starts) <= len(more_starts)
    # Not only in all: each patch ends no earlier under the higher limit.
    assert (fewer_starts >= more_starts[: len(fewer_starts)]).all()


@pytest.mark.parametrize("wanted", [2.0, 4.5, 8.0, 11.0])
@pytest.mark.parametrize("rule", [*RULES, EntropyRule(threshold_nats=0.3), BudgetRule(min_patch_bases=2)])
def test_the_wanted_mean_is_reached(rule: PatchRuleConfig, wanted: float) -> None:
    if wanted <= rule.min_patch_bases:
        wanted += 1
    calibrated, found = calibrate(rule, BASES, ENTROPIES, wanted)
    mean = len(BASES) / len(cut(BASES, ENTROPIES, calibrated))
    assert mean == pytest.approx(wanted, rel=0.01)
    assert (found.mean_bases, found.limit_nats, found.num_bases) == (mean, calibrated.limit_nats, len(BASES))
    assert (found.target, found.reached) == (CalibrationTarget(mean_patch_bases=wanted), mean)


@pytest.mark.parametrize("wanted", [0.2, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("rule", RULES)
def test_the_wanted_share_in_longer_patches_is_reached(rule: PatchRuleConfig, wanted: float) -> None:
    if rule.kind == "jump":
        wanted = max(0.5, wanted)
    calibrated, found = calibrate(rule, BASES, ENTROPIES, CalibrationTarget(share_in_longer_patches=wanted))
    lengths = cut(BASES, ENTROPIES, calibrated)
    share = lengths[lengths > 1].sum() / len(BASES)
    assert share == pytest.approx(wanted, abs=0.02 * min(wanted, 1 - wanted))
    assert found.reached == found.share_in_longer_patches == pytest.approx(share)


@pytest.mark.parametrize("rule", RULES)
def test_a_number_of_patches_is_that_of_the_whole_stream(rule: PatchRuleConfig) -> None:
    target = CalibrationTarget(num_patches=10_000)
    calibrated, found = calibrate(rule, BASES, ENTROPIES, target)
    assert len(cut(BASES, ENTROPIES, calibrated)) == found.reached == pytest.approx(10_000, rel=0.01)
    # A sample of a fifth of the bases holds a fifth of the patches.
    calibrated, found = calibrate(rule, BASES[:10_000], ENTROPIES[:10_000], target, total_bases=len(BASES))
    assert len(cut(BASES[:10_000], ENTROPIES[:10_000], calibrated)) == pytest.approx(2000, rel=0.01)
    assert found.reached == pytest.approx(10_000, rel=0.01)
    assert found.mean_bases == pytest.approx(5, rel=0.01)


@given(streams(), rules, st.sampled_from(["mean_patch_bases", "num_patches"]), st.data())
def test_no_limit_comes_nearer(
    stream: tuple[np.ndarray, np.ndarray], rule: PatchRuleConfig, name: str, data: st.DataObject
) -> None:
    bases, entropies = stream
    low, high = rule.limit_range(entropies)
    every = [entropies, np.diff(entropies), *(np.convolve(entropies, np.ones(n)) for n in range(2, len(bases) + 1))]
    limits = [limit for limit in np.concatenate([[low, high], *every]).tolist() if low <= limit <= high]
    numbers = [len(cut(bases, entropies, rule.with_limit(limit))) for limit in limits]
    if name == "num_patches":
        wanted: float = data.draw(st.integers(1, len(bases)))
        nearest = min(abs(number - wanted) for number in numbers)
        within = nearest <= 0.02 * wanted
    else:
        wanted = data.draw(st.floats(1.01, 20.0))
        nearest = min(abs(len(bases) / number - wanted) for number in numbers)
        within = nearest <= 0.02 * wanted
    target = CalibrationTarget.parse({name: wanted})
    if within:
        _, found = calibrate(rule, bases, entropies, target)
        assert abs(found.reached - wanted) == pytest.approx(nearest)
    else:
        with pytest.raises(PatchRuleError, match="nearest"):
            calibrate(rule, bases, entropies, target)


def test_a_share_that_falls_again_is_found_all_the_same() -> None:
    # High entropies every 17 bases, lower ones in between: with the maximum of 16 the share is 0, 1, 16/17, then 1.
    pattern = np.array([1.2] + [0.1] * 9 + [0.8] + [0.1] * 6, dtype=np.float32)
    entropies, bases = np.tile(pattern, 300), random_bases(17 * 300, 3)
    shares = []
    for limit in (0.05, 0.5, 1.0, 1.3):
        lengths = cut(bases, entropies, EntropyRule(threshold_nats=limit))
        shares.append(round(float((lengths > 1) @ lengths / len(bases)), 3))
    assert shares == [0.0, 1.0, 0.941, 1.0]
    target = CalibrationTarget(share_in_longer_patches=16 / 17)
    rule, found = calibrate(EntropyRule(), bases, entropies, target)
    assert rule.limit_nats == pytest.approx(1.0, abs=0.2001)
    assert found.reached == pytest.approx(16 / 17)


def test_the_threshold_is_a_quantile_where_lengths_are_free() -> None:
    rule, _ = calibrate(EntropyRule(max_patch_bases=1000), BASES, ENTROPIES, 5.0)
    assert rule.limit_nats == pytest.approx(np.quantile(ENTROPIES, 0.8), abs=1e-3)


def test_a_short_mean_takes_a_negative_rise() -> None:
    rule, _ = calibrate(MonotonicRule(max_patch_bases=1000), BASES, ENTROPIES, 1.25)
    assert rule.limit_nats == pytest.approx(np.quantile(np.diff(ENTROPIES), 0.2), abs=1e-2)


def test_the_entropies_are_described() -> None:
    _, found = calibrate(BudgetRule(), BASES, ENTROPIES, 8.0)
    assert found.entropies.mean_nats == pytest.approx(ENTROPIES.astype(np.float64).mean())
    expected = [sorted(ENTROPIES.tolist())[int(share * len(BASES))] for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert found.entropies.quantiles_nats == pytest.approx(expected, abs=1e-3)


def test_a_calibration_can_be_stored() -> None:
    _, found = calibrate(BudgetRule(), BASES, ENTROPIES, CalibrationTarget(share_in_longer_patches=0.9))
    assert Calibration.parse(found.to_dict()) == found


def test_drift_is_measured_against_the_calibration() -> None:
    rule, calibration = calibrate(EntropyRule(), BASES, ENTROPIES, 4.0)
    same = drift(calibration, BASES, ENTROPIES, rule)
    assert same.mean_bases_ratio == 1.0
    assert same.entropies == calibration.entropies
    assert same.share_in_longer_patches == calibration.share_in_longer_patches

    bases, entropies = BASES[:20_000], ENTROPIES[:20_000] * np.float32(0.5)
    found = drift(calibration, bases, entropies, rule)
    lengths = cut(bases, entropies, rule)
    assert (found.num_bases, found.mean_bases) == (20_000, 20_000 / len(lengths))
    assert found.mean_bases_ratio == pytest.approx(found.mean_bases / 4.0, rel=0.01)
    assert found.mean_bases_ratio > 3
    assert found.entropies.mean_nats == pytest.approx(float(entropies.mean()), rel=1e-5)
    with pytest.raises(PatchRuleError, match="no bases"):
        drift(calibration, BASES[:0], ENTROPIES[:0], rule)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.kind != "jump"])
def test_a_mean_beyond_the_bounds_is_refused(rule: PatchRuleConfig) -> None:
    with pytest.raises(
        PatchRuleError, match=r"mean patch of 40 bases.*nearest is 16.0.*1.00 to 16.00; change mean_patch_bases"
    ):
        calibrate(rule, BASES, ENTROPIES, 40)


def test_what_the_rise_bars_is_refused() -> None:
    with pytest.raises(PatchRuleError, match=r"jump.*share of 0.3 .*range 0\.[6-9].*rise_nats \(0\.3\)"):
        calibrate(JumpRule(rise_nats=0.3), BASES, ENTROPIES, CalibrationTarget(share_in_longer_patches=0.3))
    with pytest.raises(PatchRuleError, match=r"can't give 50000 patches.*range \d+ to \d+; change num_patches"):
        calibrate(JumpRule(rise_nats=0.3), BASES, ENTROPIES, CalibrationTarget(num_patches=50_000))


def test_equal_entropies_can_not_be_cut_by_a_threshold() -> None:
    with pytest.raises(PatchRuleError, match=r"range 1\.00 to 16\.00"):
        calibrate(EntropyRule(), BASES, np.full(len(BASES), 1.0, np.float32), 8.0)


def test_there_must_be_something_to_calibrate() -> None:
    with pytest.raises(PatchRuleError, match="no bases"):
        calibrate(BudgetRule(), BASES[:0], ENTROPIES[:0], 8.0)
    with pytest.raises(PatchRuleError, match=r"3 bases, but entropies of shape \[0\]"):
        calibrate(BudgetRule(), BASES[:3], ENTROPIES[:0], 8.0)
    for rule in (StaticRule(), ByteRule()):
        with pytest.raises(PatchRuleError, match=rf"{rule.kind}.*no limit"):
            calibrate(rule, BASES, ENTROPIES, 8.0)


def test_a_sample_is_no_longer_than_the_stream() -> None:
    with pytest.raises(PatchRuleError, match="total_bases 4, but 5 bases"):
        calibrate(BudgetRule(), as_bytes("ACGTA"), ENTROPIES[:5], CalibrationTarget(num_patches=2), total_bases=4)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "exactly one of mean_patch_bases, share_in_longer_patches, num_patches, not none"),
        ({"mean_patch_bases": 4, "num_patches": 10}, "not mean_patch_bases and num_patches"),
        ({"share_in_longer_patches": 1.0}, "less than 1"),
        ({"mean_patch_bases": 1.0}, "greater than 1"),
        ({"num_patches": 0}, "greater than or equal to 1"),
    ],
)
def test_a_target_is_one_possible_number(tree: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CalibrationTarget.parse(tree)


def test_a_number_that_is_no_mean_length_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"calibration target.*\n.*mean_patch_bases.*greater than 1"):
        calibrate(BudgetRule(), BASES, ENTROPIES, 0.5)
