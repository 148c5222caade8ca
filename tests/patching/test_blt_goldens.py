"""Patches as the Byte Latent Transformer cuts them, through an adapter for its conventions.

Upstream's `H[i]` is the entropy of token i + 1, so the tokens from 1 on are a stream of ours whose `entropies` are `H`,
unshifted. What differs beyond that is done here, with entropies that no model gives:

- token 0 is a patch of its own, and token 1 starts the next: our stream begins at token 1;
- `monotonicity`: token 2 always starts a patch: the entropy before it is made very low;
- `threshold_add`, our `jump`: token 2 always starts a patch and token 3 never does: the entropy of token 2 is made very
  high;
- `include_next_token`: one more token, whose entropy is known, is cut;
- thresholds are compared as float32.

Every recorded case is either equal or left out for one of the reasons below, and both are counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.rules import (
    ByteRule,
    EntropyRule,
    JumpRule,
    MonotonicRule,
    PatchRuleConfig,
    PatchRuleError,
    StaticRule,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "blt"
HIGHEST = np.finfo(np.float32).max

EQUAL = "equal"
TOP_K = "the k highest entropies of a whole sequence: not causal"
NOT_FINITE = "entropies that are not finite are refused"
FRACTION = "a length of 4.5 is refused"
TWO_LENGTHS = "a maximum below the static length is refused"
TEXT = "cuts at spaces, delimiters or pairs of bytes of text"
BOOKKEEPING = "turns masks, starts and lengths into each other: only lengths are kept here"
LOGITS = "entropy of logits: no part of cutting"

Case = dict[str, Any]


def read(name: str) -> tuple[list[Case], dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return json.loads((GOLDEN / f"{name}.json").read_text())["cases"], dict(arrays)


def float32(number: float) -> float:
    return float(np.float32(number))


def rule_of(case: Case, longest: int) -> PatchRuleConfig:
    threshold = float32(case["threshold"])
    if case.get("monotonicity"):
        return MonotonicRule(rise_nats=threshold, max_patch_bases=longest)
    if case.get("threshold_add") is not None:
        return JumpRule(threshold_nats=threshold, rise_nats=float32(case["threshold_add"]), max_patch_bases=longest)
    return EntropyRule(threshold_nats=threshold, max_patch_bases=longest)


def cut_row(nats: np.ndarray, case: Case, longest: int) -> list[int]:
    """Lengths of a row's patches, that of token 0 first; `nats` as upstream gives them."""
    num_tokens = len(nats) + case["include_next_token"]
    rule, entropies = rule_of(case, longest), nats[: num_tokens - 1].copy()
    if isinstance(rule, MonotonicRule):
        entropies[:1] = -HIGHEST
    elif isinstance(rule, JumpRule):
        entropies[1:2] = HIGHEST
    return [1, *cut_plain(entropies, rule)]


def cut_plain(entropies: np.ndarray, rule: PatchRuleConfig) -> list[int]:
    """Upstream knows no marks: nothing but bases."""
    return cut(np.full(len(entropies), ord("A"), dtype=np.uint8), entropies, rule).tolist()


def starts_of(lengths: list[int]) -> list[int]:
    return [0, *np.cumsum(lengths)[:-1].tolist()]


def assert_row(row: np.ndarray, values: list[int], filler: int) -> None:
    assert row[: len(values)].tolist() == values
    assert (row[len(values) :] == filler).all()


def judge_entropies(case: Case, arrays: dict[str, np.ndarray], entropies: np.ndarray) -> str:
    """Compares one case of a rule that reads entropies [B, L]."""
    if case["threshold"] is None:
        return TOP_K
    longest = case["max_patch_length"] or entropies.shape[1] + 1
    if not np.isfinite(entropies).all():
        for nats in entropies:
            with pytest.raises(PatchRuleError, match="must be finite"):
                cut_plain(nats, rule_of(case, longest))
        return NOT_FINITE
    num_tokens = entropies.shape[1] + case["include_next_token"]
    for row, nats in enumerate(entropies):
        assert_row(arrays[f"{case['case']}/patch_lengths"][row], cut_row(nats, case, longest), 0)
        starts = arrays.get(f"{case['case']}/patch_start_ids")
        if starts is not None:
            assert_row(starts[row], starts_of(cut_row(nats, case, num_tokens)), num_tokens)
    return EQUAL


def judged(name: str) -> Iterator[str]:
    cases, arrays = read(name)
    for case in cases:
        where = f"{case['input']}/entropies" if "input" in case else "entropies"
        entropies = arrays[where]
        if case.get("float16_entropies"):
            entropies = entropies.astype(np.float16).astype(np.float32)
        try:
            yield judge_entropies(case, arrays, entropies)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patch_entropy_hand", {EQUAL: 240, TOP_K: 96, NOT_FINITE: 16}),
        ("patch_entropy_random", {EQUAL: 290, TOP_K: 58}),
        ("patch_ecoli", {EQUAL: 48}),
    ],
)
def test_rules_that_read_entropies(name: str, expected: dict[str, int]) -> None:
    assert Counter(judged(name)) == expected


def test_each_kind_of_rule_is_among_the_cases() -> None:
    kinds: Counter[tuple[str, bool]] = Counter()
    for name in ("patch_entropy_hand", "patch_entropy_random", "patch_ecoli"):
        for case in read(name)[0]:
            if case["threshold"] is not None:
                kinds[rule_of(case, 1).kind, case["max_patch_length"] is not None] += 1
    assert kinds == {
        ("entropy", False): 127,
        ("entropy", True): 191,
        ("monotonic", False): 162,
        ("monotonic", True): 8,
        ("jump", False): 98,
        ("jump", True): 8,
    }


def judge_mode(case: Case, arrays: dict[str, np.ndarray]) -> str:
    """Compares one case of a mode that reads no entropies."""
    mode, longest = case["patching_mode"], case.get("max_patch_length")
    if mode not in ("static", "byte"):
        return TEXT
    tokens = arrays[f"{case['input']}/tokens"]
    num_tokens = tokens.shape[1] + case["include_next_token"]
    tree = {"max_patch_bases": longest or max(num_tokens, 6)}
    if mode == "byte":
        rule: PatchRuleConfig = ByteRule.parse(tree)
    else:
        tree["patch_bases"] = case["patch_size"]
        refused = (
            FRACTION if case["patch_size"] % 1 else TWO_LENGTHS if longest and longest < case["patch_size"] else ""
        )
        if refused:
            with pytest.raises(ConfigError, match="patch_bases"):
                StaticRule.parse(tree)
            return refused
        rule = StaticRule.parse(tree)
    for row in arrays[f"{case['case']}/patch_lengths"]:
        assert_row(row, cut(np.full(num_tokens, ord("A"), dtype=np.uint8), None, rule).tolist(), 0)
    assert len(arrays[f"{case['case']}/patch_lengths"]) == len(tokens)
    return EQUAL


def test_modes_that_read_no_entropies() -> None:
    cases, arrays = read("patch_other_modes")
    found = Counter((case["patching_mode"], judge_mode(case, arrays)) for case in cases)
    assert found == {
        ("static", EQUAL): 48,
        ("static", FRACTION): 32,
        ("static", TWO_LENGTHS): 16,
        ("byte", EQUAL): 32,
        ("space", TEXT): 32,
        ("bpe", TEXT): 32,
        ("bpe_patcher", TEXT): 32,
        ("(lookup table function)", TEXT): 10,
    }


def judge_function(case: Case, arrays: dict[str, np.ndarray]) -> str:
    """Compares one case of a single function."""
    name = case["case"]
    kind = name.partition("_")[0]
    if kind == "entropy":
        return LOGITS
    if kind in ("start", "lengths", "ids", "decoder"):
        return BOOKKEEPING
    if kind == "split":
        # Lengths of 0 are padding.
        given, out = (lengths[lengths > 0] for lengths in (arrays[f"{name}/in/lengths"], arrays[f"{name}/out"]))
        entropies = np.zeros(given.sum(), dtype=np.float32)
        entropies[starts_of(given.tolist())] = 1
        rule = EntropyRule(threshold_nats=0.5, max_patch_bases=case["max_patch_length"])
        assert cut_plain(entropies, rule) == out.tolist()
        return EQUAL
    for nats, mask in zip(arrays[f"{name}/in/entropies"], arrays[f"{name}/out"], strict=True):
        settings = {"threshold": case["t"], "threshold_add": case.get("t_add"), "monotonicity": kind == "mono"}
        rule, entropies = rule_of(settings, len(nats)), nats.copy()
        if kind == "globmono":
            # The mask's second element is never set.
            entropies[0] = HIGHEST
        assert starts_of(cut_plain(entropies, rule)) == np.flatnonzero(mask).tolist()
    return EQUAL


def test_single_functions() -> None:
    cases, arrays = read("primitives")
    found = Counter((case["case"].partition("_")[0], judge_function(case, arrays)) for case in cases)
    assert found == {
        ("mono", EQUAL): 3,
        ("globmono", EQUAL): 4,
        ("split", EQUAL): 5,
        ("start", BOOKKEEPING): 4,
        ("lengths", BOOKKEEPING): 6,
        ("ids", BOOKKEEPING): 5,
        ("decoder", BOOKKEEPING): 5,
        ("entropy", LOGITS): 2,
    }
