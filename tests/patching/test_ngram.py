"""The `ngram` model, against dictionaries of strings, the formula word for word, and the laws it must keep."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyena_blt_savanna.data.entropy_grid import ENTROPY_STEP_NATS
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.patching.marks import states_before
from hyena_blt_savanna.patching.ngram import NgramConfig, NgramModel
from hyena_blt_savanna.patching.ngram_counts import (
    WindowCounts,
    first_row,
    num_contexts,
    windows,
)
from hyena_blt_savanna.patching.ngram_smoothing import NUM_BUCKETS, NgramError, _fit_level, total_and_bucket
from hyena_blt_savanna.testing.toy_streams import (
    as_bytes,
    markov_bases,
    plain_counts,
    plain_windows,
    random_bases,
    stream_with_marks,
    window_number,
)

SMALL = {"smoothing_folds": 3, "smoothing_samples": 100_000}


def fitted(order: int = 3, seed: int = 0, both_strands: bool = True) -> NgramModel:
    return NgramConfig(order=order, both_strands=both_strands, **SMALL).fit(stream_with_marks(seed, 3000))


def plain_bucket(counts: list[int]) -> int:
    """Quarter octaves of the total, eighths of the largest share, from their definition."""
    total = sum(counts)
    if total == 0:
        return 0
    if total < 8:
        total_class = total
    else:
        octave = math.floor(math.log2(total))
        total_class = 8 + 4 * (octave - 3) + math.floor(4 * (total / 2**octave - 1))
    return total_class * 8 + math.ceil(8 * max(counts) / total) - 1


def plain_distribution(context: str, counts: list[Counter[str]], weights: np.ndarray) -> list[float]:
    """The formula of `ngram_smoothing`, from the shortest context to the longest."""
    distribution = [0.25] * 4
    for k in range(len(context) + 1):
        suffix = context[len(context) - k :]
        found = [counts[k][suffix + base] for base in "ACGT"]
        weight = weights[k, plain_bucket(found)]
        if sum(found):
            distribution = [
                weight * n / sum(found) + (1 - weight) * p for n, p in zip(found, distribution, strict=True)
            ]
    return distribution


@pytest.mark.parametrize("order", [0, 1, 4])
@pytest.mark.parametrize("both_strands", [True, False])
def test_windows_are_counted_as_strings_are(order: int, both_strands: bool) -> None:
    stream = stream_with_marks(order)
    counts = WindowCounts.of_stream(stream, order, both_strands).dense
    assert counts.shape == (4**order, 4)
    expected = plain_counts(stream, order, both_strands)
    flat = counts.reshape(-1)
    assert {window_number(window): n for window, n in expected.items()} == {
        int(i): int(flat[i]) for i in np.flatnonzero(flat)
    }


def test_windows_of_a_stretch_are_those_that_lie_inside_it() -> None:
    stream = stream_with_marks(5)
    assert windows(stream, 0, len(stream), 3).tolist() == [window_number(window) for window in plain_windows(stream, 3)]
    whole = windows(stream, 100, 400, 3)
    assert windows(stream, 100, 400, 3, every=7).tolist() == whole[::7].tolist()


def test_counts_of_shorter_contexts_are_sums_over_the_oldest_base() -> None:
    counts = WindowCounts.of_stream(random_bases(5000, 1), 3)
    levels = counts.dense_levels()
    assert [len(level) for level in levels] == [1, 4, 16, 64]
    for k, level in enumerate(levels):
        for row in range(4**k):
            np.testing.assert_array_equal(level[row], counts.dense[row :: 4**k].sum(axis=0))


@given(st.integers(0, 30), st.integers(0, 600), st.integers(0, 600))
@settings(max_examples=60)
def test_a_stretch_that_is_left_out_counts_as_if_it_were_unknown(seed: int, start: int, stop: int) -> None:
    stream = stream_with_marks(seed)
    start, stop = sorted((min(start, len(stream)), min(stop, len(stream))))
    masked = stream.copy()
    # Marks are kept, so that the rest means the same.
    hidden = masked[start:stop]
    hidden[np.isin(hidden, list(b"ACGTacgt"))] = ord("N")
    inside_tag = states_before(stream) == 1
    masked[inside_tag] = stream[inside_tag]
    for dense_order in (2, 4):
        inside = WindowCounts.of_stretch(stream, start, stop, 4, dense_order=dense_order)
        left = WindowCounts.of_stream(stream, 4, dense_order=dense_order).without(inside)
        expected = WindowCounts.of_stream(masked, 4, dense_order=dense_order)
        np.testing.assert_array_equal(left.dense, expected.dense)
        assert (left.longer is None) == (dense_order == 4)
        if left.longer:
            np.testing.assert_array_equal(left.longer.entries, expected.longer.entries)


def test_a_tag_is_seen_however_far_back_it_opened() -> None:
    stream = as_bytes("A\0|" + "ACGT" * 50_000 + "|CCC")
    assert WindowCounts.of_stretch(stream, 150_000, len(stream), 1, both_strands=False).dense.sum() == 2
    unclosed = as_bytes("|" + "ACGT" * 20_000)
    assert WindowCounts.of_stretch(unclosed, 70_000, 75_000, 1).dense.sum() == 0


@given(
    st.lists(st.integers(0, 4_000_000_000), min_size=4, max_size=4)
    | st.lists(st.integers(0, 9), min_size=4, max_size=4)
)
def test_buckets_follow_their_definition(counts: list[int]) -> None:
    total, bucket = total_and_bucket(np.array([counts]), 0)
    assert (total, bucket) == (sum(counts), plain_bucket(counts))
    assert 0 <= bucket < NUM_BUCKETS


def test_the_weight_of_a_bucket_is_the_likeliest() -> None:
    generator = np.random.default_rng(3)
    share, predicted = generator.random(400), generator.uniform(0.05, 0.6, 400)
    bucket = np.full(400, 5 * 8 + 3, dtype=np.int32)
    weight = _fit_level(share, predicted, bucket)[bucket[0]]
    grid = np.linspace(0.001, 0.999, 999)
    likelihood = np.log(predicted[:, None] + grid * (share - predicted)[:, None]).sum(axis=0)
    # The prior, 10 bases against 400, moves the optimum a little.
    assert abs(weight - grid[likelihood.argmax()]) < 0.05


def test_probabilities_and_entropies_follow_the_formula() -> None:
    train, order = stream_with_marks(7, 3000), 3
    model = NgramConfig(order=order, **SMALL).fit(train)
    top = plain_counts(train, order, True)
    counts = [Counter() for _ in range(order + 1)]
    for window, n in top.items():
        for k in range(order + 1):
            counts[k][window[order - k :]] += n

    text = "ACGTTGCANACGGGTT@ACGATCC|AC|GATT\0CCA"
    nats, log_probabilities = model.entropies(as_bytes(text)), model.log_probabilities(as_bytes(text))
    contexts = {0: "", 1: "A", 2: "AC", 3: "ACG", 4: "CGT", 8: "GCA", 10: "A", 12: "ACG", 16: "GTT", 17: "", 19: "AC"}
    contexts |= {24: "TCC", 28: "", 29: "G", 32: "ATT", 33: "", 34: "C"}
    for i, context in contexts.items():
        distribution = plain_distribution(context, counts, model.weights)
        assert nats[i] == pytest.approx(
            -sum(p * math.log(p) for p in distribution), abs=ENTROPY_STEP_NATS / 2 + 2e-6
        ), i
        if text[i] in "ACGT":
            assert log_probabilities[i] == pytest.approx(math.log(distribution["ACGT".index(text[i])]), abs=2e-6), i
    # After a letter that is no base, and inside the tag, nothing is at stake.
    assert np.flatnonzero(nats == 0).tolist() == [9, 25, 26, 27]
    scored = [i for i, letter in enumerate(text) if letter in "ACGT" and i not in (25, 26)]
    assert np.flatnonzero(~np.isnan(log_probabilities)).tolist() == scored


@pytest.mark.parametrize("order", [0, 3, 6])
def test_entropies_lie_on_the_grid(order: int) -> None:
    steps = fitted(order).entropies(stream_with_marks(8, 2000)) / ENTROPY_STEP_NATS
    assert (steps == np.rint(steps)).all()
    assert 0 <= steps.min() <= steps.max() <= math.log(4) / ENTROPY_STEP_NATS


def test_the_four_probabilities_after_a_context_sum_to_one() -> None:
    model = fitted(4)
    context = "ACGTTGACC"
    logs = [model.log_probabilities(as_bytes(context + base))[-1] for base in "ACGT"]
    assert np.exp(logs).sum() == pytest.approx(1.0, abs=1e-6)


@given(st.integers(0, 50), st.data())
@settings(max_examples=40)
def test_entropies_know_only_the_bases_before(seed: int, data: st.DataObject) -> None:
    model, stream = MODEL, stream_with_marks(seed, 200)
    place = data.draw(st.integers(0, len(stream) - 1))
    changed = stream.copy()
    changed[place] = data.draw(st.sampled_from(list(b"ACGTN|@\0")))
    np.testing.assert_array_equal(model.entropies(stream)[: place + 1], model.entropies(changed)[: place + 1])


@given(st.integers(0, 50), st.integers(0, 200))
@settings(max_examples=40)
def test_chunks_and_single_bases_give_the_same_entropies(seed: int, edge: int) -> None:
    model, stream = MODEL, stream_with_marks(seed, 200)
    whole = model.entropies(stream)
    stepper = model.stepper()
    np.testing.assert_array_equal(np.concatenate([stepper.read(stream[:edge]), stepper.read(stream[edge:])]), whole)
    stepper, foreseen = model.stepper(), []
    for base in stream.tolist():
        foreseen.append(stepper.next_entropy_nats)
        stepper.push(base)
    assert foreseen == whole.tolist()


def test_a_stretch_does_not_move_the_entropies_of_the_model_that_left_it_out() -> None:
    stream, config = random_bases(4000, 2), NgramConfig(order=4, **SMALL)
    changed = stream.copy()
    changed[1000:2000] = random_bases(1000, 3)
    edges = [0, 1000, 2000, 4000]
    tables = config.fit_out_of_fold(stream, edges)[1]
    weights = config.fit(stream).weights
    fitted_on_changed = NgramModel(config, WindowCounts.of_stream(changed, 4), weights)
    others = [fitted_on_changed.without(changed, a, b).table for a, b in itertools.pairwise(edges)]
    same = [table.digest == other.digest for table, other in zip(tables, others, strict=True)]
    assert same == [False, True, False]


def test_a_markov_chain_is_learned() -> None:
    bases, true_bits = markov_bases(60_000, seed=11)
    true_bits = true_bits[50_000:].mean()
    model = NgramConfig(order=5, both_strands=False, **SMALL).fit(bases[:50_000])
    bits = model.bits_per_base(bases[50_000:])
    assert true_bits < bits < true_bits + 0.02
    entropies = model.entropies(bases[50_000:])
    assert entropies.mean() / np.log(2) == pytest.approx(bits, abs=0.03)


def test_contexts_that_memorise_do_not_hurt() -> None:
    """On random bases a long context knows nothing: smoothing chosen out of fold must find that out."""
    bases = random_bases(30_000, 12)
    model = NgramConfig(order=9, **SMALL).fit(bases[:20_000])
    assert model.bits_per_base(bases[20_000:]) < 2.002
    assert model.bits_per_base(bases[:20_000]) < 2.0


def test_rows_of_all_orders_lie_one_after_the_other() -> None:
    assert [first_row(k) for k in range(5)] == [0, 1, 5, 21, 85]
    assert [num_contexts(k) for k in range(4)] == [1, 5, 21, 85]


def test_folds_cover_the_stream() -> None:
    assert fold_edges(10, 4) == [0, 2, 5, 7, 10]


@pytest.mark.parametrize("text", ["", "ACG", "ACGNACG\0ACG"])
def test_a_sequence_without_a_whole_window_is_refused(text: str) -> None:
    with pytest.raises(NgramError, match=r"no stretch of 4 bases.*lower the entropy model's order"):
        NgramConfig(order=3).fit(as_bytes(text))


def test_there_must_be_something_to_score() -> None:
    with pytest.raises(NgramError, match="nothing to score"):
        MODEL.bits_per_base(as_bytes("NNN"))


def test_the_digest_names_settings_counts_and_smoothing() -> None:
    model = fitted(2)
    assert model.digest == fitted(2).digest
    changed_weights, changed_counts = model.weights.copy(), model.counts.dense.copy()
    changed_weights[1, 30] += 1e-9
    changed_counts[3, 2] += 1
    others = [
        NgramModel(model.config, model.counts, changed_weights),
        NgramModel(model.config, WindowCounts(changed_counts), model.weights),
        NgramModel(model.config.model_copy(update={"both_strands": False}), model.counts, model.weights),
    ]
    assert len({model.digest, *(other.digest for other in others)}) == 4


MODEL = fitted()
