"""Cutting rules, against a plain reference and the laws of patches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyena_blt_savanna.config import Config, ConfigError, merge
from hyena_blt_savanna.patching.cutting import PatchCutter, cut
from hyena_blt_savanna.patching.marks import FORCED, IN_TAG, PLACE, forced_starts, state_after
from hyena_blt_savanna.patching.ngram import NgramConfig, NgramModel
from hyena_blt_savanna.patching.rules import (
    BudgetRule,
    ByteRule,
    EntropyRule,
    JumpRule,
    MonotonicRule,
    PatchRule,
    PatchRuleConfig,
    PatchRuleError,
    StaticRule,
)
from hyena_blt_savanna.testing.toy_streams import as_bytes, stream_with_marks

ALPHABET = list(b"ACGTACGTACGTacgtNn|@#B\0")
PATCHING_CONFIGS = Path(__file__).parents[2] / "configs" / "patching"


class OneRule(Config):
    rule: PatchRule


def reference_starts(bases: np.ndarray, entropies: np.ndarray, rule: PatchRuleConfig) -> list[int]:
    """The docstring of `rules`, word for word, without carrying anything from base to base."""
    forced = forced_starts(bases)
    starts: list[int] = []
    for i in range(len(bases)):
        if not starts or forced[i]:
            starts.append(i)
            continue
        length = i - starts[-1]
        rise = float(np.float32(entropies[i] - entropies[i - 1]))
        match rule:
            case StaticRule():
                fires = length >= rule.patch_bases
            case ByteRule():
                fires = True
            case EntropyRule(threshold_nats=float(threshold)):
                fires = float(entropies[i]) > threshold
            case MonotonicRule(rise_nats=float(limit)):
                fires = rise > limit
            case JumpRule(threshold_nats=float(threshold)):
                fires = rise > rule.rise_nats and float(entropies[i]) > threshold
            case BudgetRule(budget_nats=float(budget)):
                fires = sum(float(value) for value in entropies[starts[-1] : i + 1]) > budget
            case _:
                raise AssertionError(rule)
        if length >= rule.max_patch_bases or (length >= rule.min_patch_bases and fires):
            starts.append(i)
    return starts


def starts_of(lengths: Sequence[int] | np.ndarray) -> list[int]:
    return [0, *np.cumsum(lengths)[:-1].tolist()] if len(lengths) else []


@st.composite
def rules(draw: st.DrawFn) -> PatchRuleConfig:
    shortest = draw(st.integers(1, 5))
    longest = draw(st.integers(shortest, 20))
    bounds = {"min_patch_bases": shortest, "max_patch_bases": longest}
    return draw(
        st.sampled_from(
            [
                StaticRule(patch_bases=draw(st.integers(shortest, longest)), **bounds),
                ByteRule(**bounds),
                EntropyRule(threshold_nats=draw(st.floats(0.0, 1.5)), **bounds),
                MonotonicRule(rise_nats=draw(st.floats(-1.5, 1.5)), **bounds),
                JumpRule(threshold_nats=draw(st.floats(0.0, 1.5)), rise_nats=draw(st.floats(-1.0, 1.0)), **bounds),
                BudgetRule(budget_nats=draw(st.floats(0.0, 20.0)), **bounds),
            ]
        )
    )


letters = st.sampled_from(ALPHABET)
base_lists = st.lists(letters, min_size=1, max_size=120).map(lambda given: np.array(given, dtype=np.uint8))


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    bases = draw(base_lists)
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return bases, generator.uniform(0.0, np.log(4.0), len(bases)).astype(np.float32)


@given(streams(), rules())
@settings(max_examples=300)
def test_patches_equal_the_reference(stream: tuple[np.ndarray, np.ndarray], rule: PatchRuleConfig) -> None:
    bases, entropies = stream
    lengths = cut(bases, entropies, rule)
    assert lengths.dtype == np.int32
    assert starts_of(lengths) == reference_starts(bases, entropies, rule)
    assert lengths.sum() == len(bases)


@given(streams(), rules())
def test_lengths_keep_their_bounds_and_forced_boundaries(
    stream: tuple[np.ndarray, np.ndarray], rule: PatchRuleConfig
) -> None:
    bases, entropies = stream
    lengths = cut(bases, entropies, rule)
    starts = starts_of(lengths)
    forced = set(np.flatnonzero(forced_starts(bases)).tolist())
    assert forced <= set(starts)
    assert lengths.max() <= rule.max_patch_bases
    for length, following in zip(lengths[:-1], starts[1:], strict=True):
        assert length >= rule.min_patch_bases or following in forced


@pytest.fixture(scope="module")
def entropy_model() -> NgramModel:
    return NgramConfig(order=3).fit(stream_with_marks(0, 4000))


@given(bases=base_lists, rule=rules(), data=st.data())
def test_a_base_moves_no_boundary_at_or_before_it(
    entropy_model: NgramModel, bases: np.ndarray, rule: PatchRuleConfig, data: st.DataObject
) -> None:
    changed = bases.copy()
    place = data.draw(st.integers(0, len(bases) - 1))
    changed[place:] = data.draw(st.lists(letters, min_size=len(bases) - place, max_size=len(bases) - place))
    before, after = (
        [start for start in starts_of(cut(given, entropy_model.entropies(given), rule)) if start <= place]
        for given in (bases, changed)
    )
    assert before == after


@given(streams(), rules(), st.lists(st.integers(0, 120), max_size=5))
def test_chunks_and_single_bases_give_the_same_patches(
    stream: tuple[np.ndarray, np.ndarray], rule: PatchRuleConfig, edges: list[int]
) -> None:
    bases, entropies = stream
    whole = cut(bases, entropies, rule).tolist()

    cutter = PatchCutter(rule)
    bounds = [0, *sorted(min(edge, len(bases)) for edge in edges), len(bases)]
    parts = [cutter.cut(bases[a:b], entropies[a:b]) for a, b in itertools.pairwise(bounds)]
    assert np.concatenate([*parts, cutter.finish()]).tolist() == whole

    starts = []
    for i, (base, entropy) in enumerate(zip(bases.tolist(), entropies.tolist(), strict=True)):
        foreseen = cutter.next_starts_patch(entropy)
        assert cutter.push(base, entropy) == foreseen
        if foreseen:
            starts.append(i)
        assert cutter.num_unfinished_bases == i + 1 - starts[-1]
    assert starts == starts_of(whole)


@pytest.mark.parametrize(
    "rule",
    [
        StaticRule(patch_bases=5),
        EntropyRule(threshold_nats=1.2),
        MonotonicRule(rise_nats=0.3),
        JumpRule(threshold_nats=1.1, rise_nats=0.2),
        BudgetRule(budget_nats=7),
    ],
)
def test_pieces_of_a_long_stream_are_cut_as_one(rule: PatchRuleConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    bases = generator.choice(np.array(ALPHABET, dtype=np.uint8), 1000)
    entropies = generator.uniform(0.5, 1.38, len(bases)).astype(np.float32)
    monkeypatch.setattr("hyena_blt_savanna.patching.cutting._PIECE_BASES", 7)
    assert starts_of(cut(bases, entropies, rule)) == reference_starts(bases, entropies, rule)


def test_the_budget_counts_the_base_that_would_exceed_it() -> None:
    bases = as_bytes("ACGTACGT")
    entropies = np.array([1, 1, 1, 1, 0.5, 0.5, 1, 1], dtype=np.float32)
    # 1+1+1 = 3 is not above 3; the fourth base is. The new sum starts with that base: 1+.5+.5+1 = 3.
    assert cut(bases, entropies, BudgetRule(budget_nats=3.0)).tolist() == [3, 4, 1]


def test_the_threshold_must_be_exceeded() -> None:
    bases = as_bytes("ACGTA")
    entropies = np.array([0, 0.5, 0.75, 0.5, 0.75], dtype=np.float32)
    assert cut(bases, entropies, EntropyRule(threshold_nats=0.5)).tolist() == [2, 2, 1]


def test_static_needs_no_entropies_and_starts_anew_after_a_forced_boundary() -> None:
    bases = as_bytes("ACGTACG\0ACGTA")
    assert cut(bases, None, StaticRule(patch_bases=3)).tolist() == [3, 3, 2, 3, 2]


def test_a_rise_must_exceed_its_limit_in_float32() -> None:
    bases = as_bytes("ACGTA")
    entropies = np.array([0.5, 0.25, 0.75, 1.0, 1.5], dtype=np.float32)
    assert cut(bases, entropies, MonotonicRule(rise_nats=0.25)).tolist() == [2, 2, 1]
    assert cut(bases, entropies, JumpRule(threshold_nats=0.75, rise_nats=0.25)).tolist() == [4, 1]
    assert cut(bases, entropies, JumpRule(threshold_nats=0.5, rise_nats=0.0)).tolist() == [2, 1, 1, 1]
    third = np.array([0, 0.1, 0.3, 0.3, 0.3], dtype=np.float32)
    rise = third[2] - third[1]
    assert float(rise) != float(third[2]) - float(third[1])
    assert cut(bases, third, MonotonicRule(rise_nats=float(rise))).tolist() == [5]
    assert cut(bases, third, MonotonicRule(rise_nats=float(np.nextafter(rise, np.float32(0))))).tolist() == [2, 3]


def test_a_rise_is_seen_across_a_forced_boundary() -> None:
    bases, entropies = as_bytes("AC@GTA"), np.array([1, 1, 1, 0.5, 1, 1], dtype=np.float32)
    assert cut(bases, entropies, MonotonicRule(rise_nats=0.25)).tolist() == [3, 1, 2]


def test_every_base_is_a_patch_but_for_the_minimum_length() -> None:
    assert cut(as_bytes("ACG@A"), None, ByteRule()).tolist() == [1, 1, 1, 1, 1]
    assert cut(as_bytes("ACGT@A"), None, ByteRule(min_patch_bases=2)).tolist() == [2, 2, 1, 1]


@given(streams(), rules(), st.integers(0, 120))
def test_a_cutter_can_begin_within_a_document(
    stream: tuple[np.ndarray, np.ndarray], rule: PatchRuleConfig, place: int
) -> None:
    bases, entropies = stream
    starts = reference_starts(bases, entropies, rule)
    start = min(starts, key=lambda start: abs(start - place))
    cutter = PatchCutter(rule, state_after(bases[:start]) & PLACE)
    lengths = np.concatenate([cutter.cut(bases[start:], entropies[start:]), cutter.finish()])
    assert [start + begin for begin in starts_of(lengths)] == [begin for begin in starts if begin >= start]


def test_a_finished_cutter_begins_another_stream() -> None:
    cutter = PatchCutter(StaticRule(patch_bases=2), IN_TAG | FORCED)
    for expected in ([2, 2, 2], [2, 1, 2, 1]):
        found = [cutter.cut(as_bytes("AC@GTA"), None), cutter.finish()]
        assert np.concatenate(found).tolist() == expected


def test_an_empty_stream_has_no_patches() -> None:
    assert cut(np.empty(0, np.uint8), None, StaticRule()).tolist() == []


CALIBRATED = [EntropyRule(), MonotonicRule(), JumpRule(), BudgetRule()]


@pytest.mark.parametrize("rule", CALIBRATED)
def test_a_rule_without_a_limit_is_refused(rule: PatchRuleConfig) -> None:
    with pytest.raises(PatchRuleError, match=f"{rule.kind}.*calibrate"):
        PatchCutter(rule)
    with pytest.raises(PatchRuleError, match=f"{rule.kind}.*calibrate"):
        rule.scaled(2.0)


def test_a_limit_is_set_by_calibration() -> None:
    assert EntropyRule().with_limit(1.25) == EntropyRule(threshold_nats=1.25)
    assert BudgetRule(min_patch_bases=2).with_limit(9).limit_nats == 9.0
    assert MonotonicRule().with_limit(-0.5) == MonotonicRule(rise_nats=-0.5)
    assert JumpRule(rise_nats=0.1).with_limit(1) == JumpRule(rise_nats=0.1, threshold_nats=1.0)


@pytest.mark.parametrize("rule", [StaticRule(), ByteRule()])
def test_a_rule_without_entropies_has_no_limit(rule: PatchRuleConfig) -> None:
    assert not rule.needs_entropies
    assert rule.limit_nats is None
    with pytest.raises(PatchRuleError, match=rf"{rule.kind}.*no limit"):
        rule.with_limit(1.0)
    with pytest.raises(PatchRuleError, match=rf"{rule.kind}.*no limit"):
        rule.limit_range(np.ones(3, np.float32))


@pytest.mark.parametrize("rule", CALIBRATED)
@given(stream=streams())
def test_limits_range_from_every_base_to_none(rule: PatchRuleConfig, stream: tuple[np.ndarray, np.ndarray]) -> None:
    bases, entropies = stream
    low, high = rule.limit_range(entropies)
    never = reference_starts(bases, entropies, StaticRule(patch_bases=rule.max_patch_bases))
    assert starts_of(cut(bases, entropies, rule.with_limit(high))) == never
    always = cut(bases, entropies, rule.with_limit(low))
    if isinstance(rule, JumpRule):
        assert always.tolist() == cut(bases, entropies, MonotonicRule(rise_nats=rule.rise_nats)).tolist()
    else:
        assert always.tolist() == [1] * len(bases)


def test_a_rule_is_scaled_by_its_limit() -> None:
    assert EntropyRule(threshold_nats=1.0).scaled(1.25) == EntropyRule(threshold_nats=1.25)
    assert MonotonicRule(rise_nats=-0.5).scaled(0.5) == MonotonicRule(rise_nats=-0.25)
    scaled = JumpRule(threshold_nats=1.0, rise_nats=0.1, max_patch_bases=9).scaled(0.5)
    assert scaled == JumpRule(threshold_nats=0.5, rise_nats=0.1, max_patch_bases=9)
    assert BudgetRule(budget_nats=8.0).scaled(1.5) == BudgetRule(budget_nats=12.0)
    assert ByteRule().scaled(3) == ByteRule()


@pytest.mark.parametrize(("factor", "length"), [(1.0, 6), (0.5, 3), (0.6, 4), (0.1, 2), (1.4, 8), (5.0, 12)])
def test_a_static_rule_is_scaled_within_its_bounds(factor: float, length: int) -> None:
    rule = StaticRule(patch_bases=6, min_patch_bases=2, max_patch_bases=12)
    assert rule.scaled(factor) == rule.model_copy(update={"patch_bases": length})


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("rule", [StaticRule(), ByteRule(), BudgetRule(budget_nats=8.0)])
def test_a_factor_that_is_no_positive_number_is_refused(rule: PatchRuleConfig, factor: float) -> None:
    with pytest.raises(PatchRuleError, match=rf"scaled by {factor}"):
        rule.scaled(factor)


@pytest.mark.parametrize(
    ("entropies", "message"),
    [
        (None, "none were given"),
        (np.zeros(3, np.float32), r"4 bases.*\[3\]"),
        (np.array([0, 1, np.nan, 1], np.float32), r"entropies\[2\] is nan"),
        (np.array([0, np.inf, 1, 1], np.float32), r"entropies\[1\] is inf"),
    ],
)
def test_entropies_that_do_not_fit_are_refused(entropies: np.ndarray | None, message: str) -> None:
    with pytest.raises(PatchRuleError, match=message):
        cut(as_bytes("ACGT"), entropies, EntropyRule(threshold_nats=1.0))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "budget", "min_patch_bases": 9, "max_patch_bases": 8}, "min_patch_bases 9 is above"),
        ({"kind": "static", "patch_bases": 17}, r"patch_bases 17 is outside.*\[1, 16\]"),
        ({"kind": "monotonic", "rise_nats": "inf"}, "rise_nats.*finite"),
        ({"kind": "jump", "rise_nats": "nan"}, "rise_nats.*finite"),
        ({"kind": "jump", "threshold_nats": -0.1}, "threshold_nats.*greater than or equal to 0"),
        ({"kind": "sharp"}, "rule.*'static', 'byte', 'entropy', 'monotonic', 'jump', 'budget'"),
    ],
)
def test_settings_that_make_no_rule_are_refused(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OneRule.parse({"rule": tree})


@pytest.mark.parametrize(
    "rule",
    [
        BudgetRule(budget_nats=9.5),
        StaticRule(patch_bases=4),
        ByteRule(min_patch_bases=2),
        EntropyRule(threshold_nats=1.25),
        MonotonicRule(rise_nats=-0.125),
        JumpRule(threshold_nats=1.25, rise_nats=0.0),
    ],
)
def test_the_kind_chooses_the_rule(rule: PatchRuleConfig) -> None:
    assert OneRule.parse({"rule": rule.to_dict()}).rule == rule


@pytest.mark.parametrize("path", sorted(PATCHING_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_file_of_settings_is_named_for_its_rule(path: Path) -> None:
    tree = merge([path])
    rule = OneRule.parse({"rule": tree["rule"]}).rule
    assert rule.kind == path.stem.split("_")[0]
    assert rule.needs_entropies == (tree["entropy_model"] is not None) == ("calibrate_to" in tree)


def test_every_rule_has_a_file_of_settings() -> None:
    kinds = {rule.model_fields["kind"].default for rule in get_args(get_args(PatchRule)[0])}
    assert kinds == {path.stem.split("_")[0] for path in PATCHING_CONFIGS.glob("*.yaml")}
