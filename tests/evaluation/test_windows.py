import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna.evaluation.windows import WindowError, overlapping_windows


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=60),
    window_bases=st.integers(2, 40),
    overlap=st.floats(0, 1),
)
def test_each_base_once_with_enough_context(lengths: list[int], window_bases: int, overlap: float) -> None:
    overlap_bases = max(1, int(overlap * (window_bases - 1)))
    document = np.frombuffer(b"ACGTN" * 200, dtype=np.uint8)[: sum(lengths)]
    patch_starts = {0, *np.cumsum(lengths).tolist()}
    scored: list[int] = []
    for number, window in enumerate(
        overlapping_windows(document, np.array(lengths, dtype=np.int32), window_bases, overlap_bases)
    ):
        end = window.start + len(window.bases)
        np.testing.assert_array_equal(window.bases, document[window.start : end])
        assert window.patch_lengths.sum() == len(window.bases)
        assert {window.start, end, window.start + window.first_scored} <= patch_starts
        assert window.first_scored == window.patch_lengths[: window.first_scored_patch].sum()
        assert len(window.bases) <= window_bases + 2 * (max(lengths) - 1)
        assert number == 0 or window.first_scored >= overlap_bases
        np.testing.assert_array_equal(window.counts, window.bases[window.first_scored :] != ord("N"))
        scored.extend(range(window.start + window.first_scored, end))
    assert scored == list(range(len(document)))


@pytest.mark.parametrize(("window_bases", "overlap_bases"), [(10, 0), (10, 10), (10, 11), (1, 1)])
def test_windows_must_overlap_and_move_on(window_bases: int, overlap_bases: int) -> None:
    with pytest.raises(WindowError, match=f"overlap_bases is {overlap_bases} and window_bases {window_bases}"):
        list(overlapping_windows(np.zeros(5, np.uint8), np.array([5], np.int32), window_bases, overlap_bases))
