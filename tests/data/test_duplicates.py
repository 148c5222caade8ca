"""Shared stretches against a search of every window of text, on toys with planted duplicates."""

from __future__ import annotations

import numpy as np
import pytest

from hyena_blt_savanna.data.duplicates import longest_run, shared_stretches
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.nucleotides import Bytes, reverse_complement
from hyena_blt_savanna.testing.toy_genomes import random_genome


def unique_genome(num_bases: int, seed: int) -> Bytes:
    return random_genome(num_bases, seed, repeat_fraction=0.0)


def found_by_text(train: Bytes, held_out: Bytes, num_bases: int) -> np.ndarray:
    """Bases in a window of `num_bases` known ones that the text of a strand holds."""
    strands = [bytes(strand).upper() for strand in (train, reverse_complement(train))]
    text = bytes(held_out).upper()
    shared = np.zeros(len(text), dtype=bool)
    for start in range(len(text) - num_bases + 1):
        window = text[start : start + num_bases]
        if set(window) <= set(b"ACGT") and any(window in strand for strand in strands):
            shared[start : start + num_bases] = True
    return shared


def planted(seed: int) -> tuple[Bytes, Bytes]:
    """Training and held-out sequence with stretches of either strand in common, of many lengths."""
    rng = np.random.default_rng(seed)
    train, held_out = unique_genome(5000, seed), unique_genome(3000, seed + 1000)
    for place in range(0, 2800, 350):
        length = int(rng.integers(60, 300))
        source = int(rng.integers(0, 4700))
        piece = train[source : source + length].copy()
        if rng.random() < 0.5:
            piece = reverse_complement(piece)
        if rng.random() < 0.3:
            piece[rng.integers(length)] = rng.choice(list(b"ACGTNn"))
        held_out[place : place + length] = piece
    train[rng.integers(0, 5000, size=5)] = ord("N")
    train[[1000, 2500]] = 0, ord("@")
    return train, held_out


@pytest.mark.parametrize("num_bases", [32, 33, 100, 150])
@pytest.mark.parametrize("seed", range(4))
def test_equals_a_search_of_the_text(seed: int, num_bases: int) -> None:
    train, held_out = planted(seed)
    wanted = found_by_text(train, held_out, num_bases)
    assert wanted.any()
    assert not wanted.all()
    np.testing.assert_array_equal(shared_stretches(train, held_out, num_bases), wanted)


@pytest.mark.parametrize("reversed_strand", [False, True])
def test_a_stretch_counts_from_its_length_on(reversed_strand: bool) -> None:
    train, held_out = unique_genome(2000, 1), unique_genome(1000, 2)
    piece = train[500:600] if not reversed_strand else reverse_complement(train[500:600])
    held_out[300:400] = piece
    # Lest the neighbours match by chance.
    held_out[[299, 400]] = ord("N")
    shared = shared_stretches(train, held_out, 100)
    assert np.flatnonzero(shared).tolist() == list(range(300, 400))
    assert longest_run(shared) == 100
    assert not shared_stretches(train, held_out, 101).any()
    held_out[350] = ord("A") if held_out[350] not in b"Aa" else ord("C")
    assert not shared_stretches(train, held_out, 100).any()


@pytest.mark.parametrize("letter", list(b"NRn@#|\0"))
def test_other_letters_match_nothing(letter: int) -> None:
    same = np.full(500, letter, dtype=np.uint8)
    assert not shared_stretches(same, same, 32).any()
    genome = unique_genome(200, 3)
    genome[100] = letter
    assert not shared_stretches(genome, genome, 101).any()
    assert shared_stretches(genome, genome, 99).sum() == 199


def test_a_repeated_base_is_a_word_like_any_other() -> None:
    held_out = unique_genome(300, 4)
    held_out[100:160] = ord("A")
    held_out[[99, 160]] = ord("C")
    thymines = np.full(60, ord("t"), dtype=np.uint8)
    assert np.flatnonzero(shared_stretches(thymines, held_out, 60)).tolist() == list(range(100, 160))


def test_a_mosaic_of_overlapping_words_is_reported() -> None:
    """More than is shared: no stretch of 100 bases is in training, but all its words are."""
    held_out = unique_genome(100, 5)
    train = np.concatenate([held_out[:70], [0], held_out[39:]]).astype(np.uint8)
    assert not found_by_text(train, held_out, 100).any()
    assert shared_stretches(train, held_out, 100).all()
    one_less = np.concatenate([held_out[:70], [0], held_out[40:]]).astype(np.uint8)
    assert not shared_stretches(one_less, held_out, 100).any()


def test_inputs_are_left_as_they_are_and_may_be_read_only() -> None:
    train, held_out = planted(9)
    kept = train.copy(), held_out.copy()
    train.flags.writeable = held_out.flags.writeable = False
    shared_stretches(train, held_out)
    np.testing.assert_array_equal(train, kept[0])
    np.testing.assert_array_equal(held_out, kept[1])


def test_short_sequences_share_nothing() -> None:
    genome = unique_genome(99, 6)
    for train, held_out in ((genome, genome), (genome[:0], genome), (genome, genome[:0])):
        assert shared_stretches(train, held_out, 100).tolist() == [False] * len(held_out)
    assert longest_run(np.zeros(0, dtype=bool)) == longest_run(np.zeros(5, dtype=bool)) == 0


def test_stretches_shorter_than_a_word_are_refused() -> None:
    with pytest.raises(DataError, match="stretches of 31 bases: 32 is the least"):
        shared_stretches(unique_genome(100, 7), unique_genome(100, 8), 31)
