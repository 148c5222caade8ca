"""Cutting rules, against a plain reference and the laws of patches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.patching.cutting import PatchCutter, cut
from hyena_blt_savanna.patching.marks import forced_starts
from hyena_blt_savanna.patching.rules import (
    BudgetRule,
    EntropyRule,
    PatchRule,
    PatchRuleConfig,
    PatchRuleError,
    StaticRule,
)

ALPHABET = list(b"ACGTACGTACGTacgtNn|@#B\0")


def reference_starts(bases: np.ndarray, entropies: np.ndarray, rule: PatchRuleConfig) -> list[int]:
    """The docstring of `rules`, word for word, without carrying anything from base to base."""
    forced = forced_starts(bases)
    starts: list[int] = []
    for i in range(len(bases)):
        if not starts or forced[i]:
            starts.append(i)
            continue
        length = i - starts[-1]
        if isinstance(rule, StaticRule):
            fires = length >= rule.patch_bases
        elif isinstance(rule, EntropyRule):
            assert rule.threshold_nats is not None
            fires = float(entropies[i]) > rule.threshold_nats
        else:
            assert isinstance(rule, BudgetRule)
            assert rule.budget_nats is not None
            fires = sum(float(value) for value in entropies[starts[-1] : i + 1]) > rule.budget_nats
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
                EntropyRule(threshold_nats=draw(st.floats(0.0, 1.5)), **bounds),
                BudgetRule(budget_nats=draw(st.floats(0.0, 20.0)), **bounds),
            ]
        )
    )


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    bases = np.array(draw(st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=120)), dtype=np.uint8)
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


@given(streams(), rules(), st.data())
def test_a_base_moves_no_boundary_at_or_before_it(
    stream: tuple[np.ndarray, np.ndarray], rule: PatchRuleConfig, data: st.DataObject
) -> None:
    bases, entropies = stream
    place = data.draw(st.integers(0, len(bases) - 1))
    changed = bases.copy()
    changed[place] = data.draw(st.sampled_from(ALPHABET))
    entropies_changed = entropies.copy()
    entropies_changed[place + 1 :] = data.draw(st.floats(0.0, 1.375, width=32))
    before = [start for start in starts_of(cut(bases, entropies, rule)) if start <= place]
    after = [start for start in starts_of(cut(changed, entropies_changed, rule)) if start <= place]
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
    "rule", [StaticRule(patch_bases=5), EntropyRule(threshold_nats=1.2), BudgetRule(budget_nats=7)]
)
def test_pieces_of_a_long_stream_are_cut_as_one(rule: PatchRuleConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    bases = generator.choice(np.array(ALPHABET, dtype=np.uint8), 1000)
    entropies = generator.uniform(0.5, 1.38, len(bases)).astype(np.float32)
    monkeypatch.setattr("hyena_blt_savanna.patching.cutting._PIECE_BASES", 7)
    assert starts_of(cut(bases, entropies, rule)) == reference_starts(bases, entropies, rule)


def test_the_budget_counts_the_base_that_would_exceed_it() -> None:
    bases = np.frombuffer(b"ACGTACGT", np.uint8)
    entropies = np.array([1, 1, 1, 1, 0.5, 0.5, 1, 1], dtype=np.float32)
    # 1+1+1 = 3 is not above 3; the fourth base is. The new sum starts with that base: 1+.5+.5+1 = 3.
    assert cut(bases, entropies, BudgetRule(budget_nats=3.0)).tolist() == [3, 4, 1]


def test_the_threshold_must_be_exceeded() -> None:
    bases = np.frombuffer(b"ACGTA", np.uint8)
    entropies = np.array([0, 0.5, 0.75, 0.5, 0.75], dtype=np.float32)
    assert cut(bases, entropies, EntropyRule(threshold_nats=0.5)).tolist() == [2, 2, 1]


def test_static_needs_no_entropies_and_starts_anew_after_a_forced_boundary() -> None:
    bases = np.frombuffer(b"ACGTACG\0ACGTA", np.uint8)
    assert cut(bases, None, StaticRule(patch_bases=3)).tolist() == [3, 3, 2, 3, 2]


def test_an_empty_stream_has_no_patches() -> None:
    assert cut(np.empty(0, np.uint8), None, StaticRule()).tolist() == []


@pytest.mark.parametrize("rule", [EntropyRule(), BudgetRule()])
def test_a_rule_without_a_limit_is_refused(rule: PatchRuleConfig) -> None:
    with pytest.raises(PatchRuleError, match=f"{rule.kind}.*calibrate"):
        PatchCutter(rule)


def test_a_limit_is_set_by_calibration() -> None:
    assert EntropyRule().with_limit(1.25) == EntropyRule(threshold_nats=1.25)
    assert BudgetRule(min_patch_bases=2).with_limit(9).limit_nats == 9.0
    with pytest.raises(PatchRuleError, match=r"static.*no limit"):
        StaticRule().with_limit(1.0)


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
        cut(np.frombuffer(b"ACGT", np.uint8), entropies, EntropyRule(threshold_nats=1.0))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"kind": "budget", "min_patch_bases": 9, "max_patch_bases": 8}, "min_patch_bases 9 is above"),
        ({"kind": "static", "patch_bases": 17}, r"patch_bases 17 is outside.*\[1, 16\]"),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(tree: dict[str, object], message: str) -> None:
    cls = StaticRule if tree["kind"] == "static" else BudgetRule
    with pytest.raises(ConfigError, match=message):
        cls.parse(tree)


def test_the_kind_chooses_the_rule() -> None:
    adapter: TypeAdapter[PatchRuleConfig] = TypeAdapter(PatchRule)
    assert adapter.validate_python({"kind": "budget", "budget_nats": 9.5}) == BudgetRule(budget_nats=9.5)
    assert adapter.validate_python({"kind": "static", "patch_bases": 4}) == StaticRule(patch_bases=4)
