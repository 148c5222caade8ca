"""Held-out sequence that the training data have too, letter by letter.

A genome repeats itself: ribosomal operons and insertion sequences of a bacterium, segmental duplications of a human
chromosome. Where a repeat lies on both sides of a split, a model that remembers its training data looks as if it
could predict.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.nucleotides import BASE_CODE, OTHER_CODE, Bytes

WORD_BASES = 32
"""A word fills 64 bits, 2 for each base: equal words are equal letter by letter."""

_EMPTY, _HELD_OUT, _SHARED = 0, 1, 2


def shared_stretches(train: Bytes, held_out: Bytes, num_bases: int = 100) -> NDArray[np.bool_]:
    """Where held-out sequence lies in a stretch that occurs in training on either strand.

    A stretch is found by its words of 32 bases: a run of `num_bases` - 31 words one after the other, each of which
    training has somewhere. Every stretch that occurs as a whole is such a run. So is one whose words occur in
    different places only, as in a mosaic of repeats that overlap by 31 bases or more: what is reported is at least
    what is shared. Letters other than A, C, G, T of either case, marks and ends of documents match nothing.

    Memory: 18 to 36 bytes for each held-out base; the training sequence is read once.

    Args:
        train: uint8 [T].
        held_out: uint8 [L].
        num_bases: of the shortest stretch that counts, at least 32.

    Returns:
        bool [L].

    Raises:
        DataError: stretches shorter than a word.
    """
    if num_bases < WORD_BASES:
        raise DataError(f"stretches of {num_bases} bases: {WORD_BASES} is the least, the length of a word")
    shared = np.zeros(len(held_out), dtype=np.bool_)
    if len(held_out) < num_bases or len(train) < num_bases:
        return shared
    num_slots = 1 << (2 * len(held_out) - 1).bit_length()
    words, states = np.empty(num_slots, dtype=np.uint64), np.zeros(num_slots, dtype=np.uint8)
    _enter(held_out, BASE_CODE, words, states)
    _find(train, BASE_CODE, words, states)
    _mark_runs(held_out, BASE_CODE, words, states, num_bases, shared)
    return shared


def longest_run(shared: NDArray[np.bool_]) -> int:
    """Length of the longest run of True in bool [L]."""
    borders = np.flatnonzero(np.diff(np.concatenate([[False], shared, [False]])))
    return int(np.diff(borders)[::2].max(initial=0))


# A word and its reverse complement grow base by base; the smaller one of them stands for both. Numba compiles this
# tuple of plain numbers into registers.
_Words = tuple[np.uint64, np.uint64, int]


@njit(cache=True, nogil=True, inline="always")
def _push(code: int, ahead: np.uint64, back: np.uint64, num_known: int) -> _Words:
    """The word that ends with a base, its reverse complement, and how many known bases there are up to it."""
    if code == OTHER_CODE:
        return np.uint64(0), np.uint64(0), 0
    ahead = (ahead << np.uint64(2)) | np.uint64(code)
    # Codes are A, C, G, T: the complement of a code is 3 minus it.
    back = (back >> np.uint64(2)) | (np.uint64(3 - code) << np.uint64(62))
    return ahead, back, num_known + 1


@njit(cache=True, nogil=True, inline="always")
def _slot(word: np.uint64, words: NDArray[np.uint64], states: NDArray[np.uint8]) -> int:
    """Where a word stands, or the empty place where it would.

    Source: the finaliser of SplitMix64 (Steele et al. 2014), and linear probing.
    """
    mixed = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    last = np.uint64(len(words) - 1)
    place = mixed & last
    while states[place] != _EMPTY and words[place] != word:
        place = (place + np.uint64(1)) & last
    return int(place)


@njit(cache=True, nogil=True)
def _enter(bases: Bytes, base_code: NDArray[np.uint8], words: NDArray[np.uint64], states: NDArray[np.uint8]) -> None:
    ahead, back, num_known = np.uint64(0), np.uint64(0), 0
    for base in bases:
        ahead, back, num_known = _push(base_code[base], ahead, back, num_known)
        if num_known >= WORD_BASES:
            word = min(ahead, back)
            place = _slot(word, words, states)
            words[place], states[place] = word, _HELD_OUT


@njit(cache=True, nogil=True)
def _find(bases: Bytes, base_code: NDArray[np.uint8], words: NDArray[np.uint64], states: NDArray[np.uint8]) -> None:
    ahead, back, num_known = np.uint64(0), np.uint64(0), 0
    for base in bases:
        ahead, back, num_known = _push(base_code[base], ahead, back, num_known)
        if num_known >= WORD_BASES:
            place = _slot(min(ahead, back), words, states)
            if states[place] == _HELD_OUT:
                states[place] = _SHARED


@njit(cache=True, nogil=True)
def _mark_runs(
    bases: Bytes,
    base_code: NDArray[np.uint8],
    words: NDArray[np.uint64],
    states: NDArray[np.uint8],
    num_bases: int,
    shared: NDArray[np.bool_],
) -> None:
    ahead, back, num_known = np.uint64(0), np.uint64(0), 0
    run = 0
    for i in range(len(bases)):
        ahead, back, num_known = _push(base_code[bases[i]], ahead, back, num_known)
        found = num_known >= WORD_BASES and states[_slot(min(ahead, back), words, states)] == _SHARED
        # Bases of the run of words that ends here.
        run = (run + 1 if run else WORD_BASES) if found else 0
        if run == num_bases:
            shared[i + 1 - num_bases : i + 1] = True
        elif run > num_bases:
            shared[i] = True
