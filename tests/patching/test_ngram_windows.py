"""Contexts that have no row of their own, against dictionaries of strings and against the dense table."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyena_blt_savanna.patching import ngram_windows
from hyena_blt_savanna.patching.entropy_models import EntropyModelError, load_entropy_model, save_entropy_model
from hyena_blt_savanna.patching.ngram import NgramConfig, NgramModel
from hyena_blt_savanna.patching.ngram_counts import WindowCounts, windows
from hyena_blt_savanna.patching.ngram_smoothing import fit_weights
from hyena_blt_savanna.patching.ngram_windows import COUNT_BITS, NgramError, WindowList
from hyena_blt_savanna.testing.toy_streams import (
    as_bytes,
    markov_bases,
    plain_counts,
    random_bases,
    stream_with_marks,
    window_number,
)

SMALL = {"smoothing_folds": 3, "smoothing_samples": 100_000}
ORDER = 6


def of_order_6(stream: np.ndarray, dense_order: int, both_strands: bool = True) -> NgramModel:
    """One and the same model, whatever part of it is dense."""
    return of_order(ORDER, stream, dense_order, both_strands)


def of_order(order: int, stream: np.ndarray, dense_order: int, both_strands: bool = True) -> NgramModel:
    """A model that has a row for each context of up to `dense_order` bases."""
    config = NgramConfig(order=order, both_strands=both_strands, **SMALL)
    counts = WindowCounts.of_stream(stream, order, both_strands, dense_order=dense_order)
    return NgramModel(config, counts, fit_weights(stream, counts, both_strands, 3, 100_000))


def repetitive_stream(seed: int, num_bases: int = 6000) -> np.ndarray:
    """Marks, tags and unknown letters, and contexts that come again."""
    stream = stream_with_marks(seed, num_bases)
    return np.concatenate([stream, stream[100:900], as_bytes("\0" + "A" * 300 + "CA" * 50 + "N"), stream[500:700]])


def plain_entry(window: str, dense_order: int) -> str:
    """The letters of a window in the order of the list: the newest of the context, then back, then the next base."""
    context, base = window[:-1], window[-1]
    older = context[: len(context) - dense_order]
    return context[len(context) - dense_order :] + older[::-1] + base


@pytest.mark.parametrize(("order", "dense_order"), [(3, 1), (5, 3), (6, 2), (16, 11), (13, 11)])
@pytest.mark.parametrize("both_strands", [True, False])
def test_the_list_holds_the_windows_that_strings_hold(order: int, dense_order: int, both_strands: bool) -> None:
    stream = repetitive_stream(order, 1000)
    counts = WindowCounts.of_stream(stream, order, both_strands, dense_order=dense_order)
    expected = plain_counts(stream, order, both_strands)
    sorted_entries = sorted((window_number(plain_entry(window, dense_order)), n) for window, n in expected.items())
    entries = counts.longer.entries
    assert list(zip((entries >> COUNT_BITS).tolist(), (entries & (2**COUNT_BITS - 1)).tolist(), strict=True)) == (
        sorted_entries
    )
    shorter: Counter[str] = Counter()
    for window, n in expected.items():
        shorter[window[order - dense_order :]] += n
    flat = counts.dense.reshape(-1)
    assert {window_number(window): n for window, n in shorter.items()} == {
        int(i): int(flat[i]) for i in np.flatnonzero(flat)
    }


@pytest.mark.parametrize("dense_order", [2, 5, 6])
def test_counts_of_contexts_are_those_of_strings(dense_order: int) -> None:
    stream = repetitive_stream(1, 2000)
    counts = WindowCounts.of_stream(stream, ORDER, dense_order=dense_order)
    plain = plain_counts(stream, ORDER, both_strands=True)
    asked = [*itertools.islice(plain, 0, None, 397), "ACGTACG", "CCCCCCC"]
    found = counts.of_contexts(np.array([window_number(window) for window in asked]))
    assert found.shape == (ORDER + 1, len(asked), 4)
    for i, window in enumerate(asked):
        for k in range(ORDER + 1):
            context = window[ORDER - k : ORDER]
            expected = [sum(n for seen, n in plain.items() if seen[ORDER - k :] == context + base) for base in "ACGT"]
            assert found[k, i].tolist() == expected, (context, k)


@given(st.integers(0, 40), st.sampled_from([2, 3, 4, 5]), st.booleans())
@settings(max_examples=15)
def test_which_contexts_have_a_row_changes_nothing(seed: int, dense_order: int, both_strands: bool) -> None:
    train, new = repetitive_stream(seed), repetitive_stream(seed + 1, 2000)
    dense, sparse = of_order_6(train, ORDER, both_strands), of_order_6(train, dense_order, both_strands)
    np.testing.assert_array_equal(sparse.weights, dense.weights)
    for bases in (train, new, as_bytes("ACG"), as_bytes("")):
        np.testing.assert_array_equal(sparse.entropies(bases), dense.entropies(bases))
        np.testing.assert_array_equal(sparse.log_probabilities(bases), dense.log_probabilities(bases))
    start, stop = 700, 2500
    np.testing.assert_array_equal(
        sparse.without(train, start, stop).entropies(new), dense.without(train, start, stop).entropies(new)
    )


@given(st.integers(0, 50), st.integers(0, 700))
@settings(max_examples=40)
def test_chunks_and_single_bases_give_the_same_entropies(seed: int, edge: int) -> None:
    stream = repetitive_stream(seed, 300)
    whole = SPARSE.entropies(stream)
    stepper = SPARSE.stepper()
    np.testing.assert_array_equal(np.concatenate([stepper.read(stream[:edge]), stepper.read(stream[edge:])]), whole)
    stepper, foreseen = SPARSE.stepper(), []
    for base in stream[:400].tolist():
        foreseen.append(stepper.next_entropy_nats)
        stepper.push(base)
    assert foreseen == whole[:400].tolist()


@given(st.integers(0, 50), st.data())
@settings(max_examples=40)
def test_entropies_know_only_the_bases_before(seed: int, data: st.DataObject) -> None:
    stream = repetitive_stream(seed, 200)
    place = data.draw(st.integers(0, len(stream) - 1))
    changed = stream.copy()
    changed[place] = data.draw(st.sampled_from(list(b"ACGTN|@\0")))
    np.testing.assert_array_equal(SPARSE.entropies(stream)[: place + 1], SPARSE.entropies(changed)[: place + 1])


@pytest.mark.parametrize("order", [13, 16])
def test_what_was_left_out_might_never_have_been_there(order: int) -> None:
    """The model of all but a stretch has the counts, and so the entropies, of one fitted on the rest."""
    stream, config = repetitive_stream(3, 30_000), NgramConfig(order=order, smoothing_folds=2)
    start, stop = 9000, 15_000
    model, tables = config.fit_out_of_fold(stream, [start, stop])
    rest = stream.copy()
    rest[start:stop][np.isin(stream[start:stop], list(b"ACGTacgt"))] = ord("N")
    fitted_on_rest = NgramModel(config, WindowCounts.of_stream(rest, order), model.weights)
    assert tables[0].digest == fitted_on_rest.table.digest
    np.testing.assert_array_equal(tables[0].entropies(stream[start:stop]), fitted_on_rest.entropies(stream[start:stop]))
    assert model.digest != fitted_on_rest.digest == model.without(stream, start, stop).digest


def test_a_long_context_is_learned() -> None:
    """Twelve bases that are followed by G or by T, which only the two bases before them tell."""
    twelve, others = as_bytes("ACGTTGCAATCG"), random_bases(30_000, 2)
    pieces: list[np.ndarray] = []
    for i in range(1000):
        pieces += [as_bytes("CC" if i % 2 else "GG"), twelve, as_bytes("G" if i % 2 else "T"), others[25 * i :][:25]]
    stream = np.concatenate(pieces)
    after = 40 * 500 + 14
    shorter, longer = (of_order(order, stream, min(order, 9)).entropies(stream)[after] for order in (12, 14))
    assert shorter > 0.6
    assert longer < 0.2


def test_a_chain_of_short_memory_is_not_hurt_by_a_long_one() -> None:
    bases, true_bits = markov_bases(60_000, seed=11)
    model = of_order(12, bases[:50_000], 8, both_strands=False)
    assert model.bits_per_base(bases[50_000:]) < true_bits[50_000:].mean() + 0.02


def test_a_model_is_stored_whole(tmp_path: Path) -> None:
    stream = repetitive_stream(5, 2000)
    model = NgramConfig(order=14, **SMALL).fit(stream)
    save_entropy_model(model, tmp_path / "model.safetensors")
    loaded = load_entropy_model(tmp_path / "model.safetensors")
    assert loaded.digest == model.digest
    np.testing.assert_array_equal(loaded.entropies(stream), model.entropies(stream))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (np.array([5 << COUNT_BITS | 1, 3 << COUNT_BITS | 1]), "not a sorted list of windows of 14 bases"),
        (np.array([5 << COUNT_BITS]), "not a sorted list"),
        (np.array([4**14 << COUNT_BITS | 1]), "not a sorted list"),
        (np.array([-1]), "not a sorted list"),
        (np.array([1.0]), "not those of an ngram model of order 13"),
    ],
)
def test_a_list_that_is_none_is_refused(entries: np.ndarray, message: str) -> None:
    with pytest.raises(NgramError, match=message):
        NgramModel.from_tensors(NgramConfig(order=13), {"windows": entries, "weights": np.zeros((14, 1))})


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    model = NgramConfig(order=13, **SMALL).fit(repetitive_stream(5, 2000))
    entries = model.counts.longer.entries.copy()
    entries[7] += 1
    changed = NgramModel(model.config, WindowCounts.of_list(WindowList(entries, 13, 11)), model.weights)
    changed.digest = model.digest
    save_entropy_model(changed, tmp_path / "model.safetensors")
    with pytest.raises(EntropyModelError, match="not those of its digest"):
        load_entropy_model(tmp_path / "model.safetensors")


def test_more_windows_than_can_be_sorted_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram_windows, "MOST_WINDOWS", 1000)
    stream = random_bases(501, 1)
    with pytest.raises(NgramError, match=r"order 13 on both strands of 501 bases.*at most 1,000; set order to 12"):
        NgramConfig(order=13).fit(stream)
    WindowCounts.of_stream(stream[:500], 13)
    WindowCounts.of_stream(stream, 13, both_strands=False)


def test_another_stream_can_not_be_left_out() -> None:
    counts = WindowCounts.of_stream(random_bases(500, 1), 5, dense_order=2)
    with pytest.raises(AssertionError, match="another stream"):
        counts.without(WindowCounts.of_stream(random_bases(500, 2), 5, dense_order=2))


@pytest.mark.parametrize("text", ["", "ACGTACGTACGTA", "ACGTACGTACGTAN"])
def test_a_sequence_without_a_whole_window_is_refused(text: str) -> None:
    with pytest.raises(NgramError, match="no stretch of 14 bases"):
        NgramConfig(order=13).fit(as_bytes(text))


def test_the_longest_order_reads_windows_of_all_letters() -> None:
    """17 bases are 34 bits: the number of the last window of all must not overflow."""
    stream = as_bytes("T" * 40)
    assert windows(stream, 0, 40, 16).tolist() == [4**17 - 1] * 24
    counts = WindowCounts.of_stream(stream, 16, both_strands=True)
    assert counts.longer.entries.tolist() == [24, (4**17 - 1) << COUNT_BITS | 24]


SPARSE = of_order_6(repetitive_stream(0), 3)
