"""Forced boundaries, against a table of cases and a reference that looks back over the whole prefix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna.nucleotides import reverse_complement_document
from hyena_blt_savanna.patching.marks import (
    FORCED,
    PLACE,
    START,
    forced_starts,
    place_after,
    state_after,
    states_before,
)

streams = st.lists(st.sampled_from(list(b"ACGTacgtNnRy|@#DB;_\0")), max_size=60).map(lambda x: np.array(x, np.uint8))


def as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def forced_by_looking_back(bases: np.ndarray, i: int) -> bool:
    """The rule in words, from the prefix alone: what was read just before base i, and where it stood."""
    if i == 0:
        return True
    document = bytes(bases[:i]).rpartition(b"\0")[2]
    if not document:
        return True
    last = document[-1:]
    in_tag_before = document[:-1].count(b"|") % 2 == 1
    if in_tag_before:
        return last == b"|"
    if last in b"@#":
        return True
    if last in b"|ACGTacgt":
        return False
    before = document[-2:-1]
    return not before or before in b"|@#ACGTacgt"


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        ("ACGT", "^..."),
        ("AC\0GT\0A", "^..^..^"),
        ("|D__N;A|ACG", "^.......^.."),
        ("AC@GT#A", "^..^..^"),
        ("ACNNNNGT", "^..^...."),
        ("NACGTRA", "^^....^"),
        ("ANRYA", "^.^.."),
        ("nnACn", "^^..."),
        ("|AC\0AC", "^...^."),
    ],
)
def test_boundaries_are_forced_after_marks(text: str, starts: str) -> None:
    found = "".join("^" if forced else "." for forced in forced_starts(as_bytes(text)))
    assert found == starts


@given(streams)
def test_forced_starts_equal_the_rule_in_words(bases: np.ndarray) -> None:
    assert forced_starts(bases).tolist() == [forced_by_looking_back(bases, i) for i in range(len(bases))]


@given(streams, st.data())
def test_a_stream_can_be_read_in_chunks(bases: np.ndarray, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(bases)))
    state = state_after(bases[:cut], START)
    parts = [forced_starts(bases[:cut]), forced_starts(bases[cut:], state)]
    np.testing.assert_array_equal(np.concatenate(parts), forced_starts(bases))


def test_the_tag_of_the_reverse_strand_is_closed_at_the_same_place() -> None:
    document = as_bytes("|D__X|AACNNG\0")
    reverse = reverse_complement_document(document)
    assert np.flatnonzero(forced_starts(document)).tolist() == [0, 6, 10]
    assert np.flatnonzero(forced_starts(reverse)).tolist() == [0, 6, 8]
    assert state_after(reverse, START) & FORCED


@given(streams, st.data())
def test_the_place_in_a_document_is_found_by_counting(bases: np.ndarray, data: st.DataObject) -> None:
    document = bases[bases != 0]
    cut = data.draw(st.integers(0, len(document)))
    assert place_after([document[:cut], document[cut:]]) == state_after(document) & PLACE


@given(streams)
def test_states_are_those_after_each_prefix(bases: np.ndarray) -> None:
    assert states_before(bases).tolist() == [state_after(bases[:i]) for i in range(len(bases))]
