"""The keyed order: a bijection, the same for ever, and without a pattern."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna.data.order import keyed_integer, keyed_permutation, order_key


@given(size=st.integers(1, 5000), seed=st.integers(0, 2**32))
def test_bijection(size, seed):
    permuted = keyed_permutation(np.arange(size), size, order_key(seed))
    assert np.array_equal(np.sort(permuted), np.arange(size))


@given(size=st.integers(1, 2**62), seed=st.integers(0, 2**32), data=st.data())
def test_numbers_and_arrays_agree(size, seed, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5, unique=True))
    key = order_key(seed)
    permuted = keyed_permutation(np.array(indices, dtype=np.int64), size, key).tolist()
    assert permuted == [keyed_permutation(index, size, key) for index in indices]
    assert all(0 <= value < size for value in permuted)
    assert len(set(permuted)) == len(indices)


def test_the_order_never_changes():
    key = order_key(1, 0, 2, "order")
    assert key.hex()[:16] == "1b232e4d7db98032"
    assert [keyed_permutation(i, 10, key) for i in range(10)] == [5, 8, 1, 2, 6, 7, 9, 4, 0, 3]
    assert keyed_permutation(123_456_789, 10**12, key) == 112_520_696_510
    assert keyed_integer(8192, order_key(1, 0, 2, "offset")) == 6_853


def test_every_part_of_the_key_counts():
    keys = [order_key(0, 1), order_key(1, 0), order_key(0, "1"), order_key(0, 1, ""), order_key("0", 1), order_key(1)]
    keys += [order_key("ab", "c"), order_key("a", "bc"), order_key("a'", "b"), order_key("a", "'b")]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)


@pytest.mark.parametrize("size", [2, 3, 5, 24, 100])
def test_every_index_goes_everywhere_equally_often(size):
    num_keys = 1000
    counts = np.zeros((size, size))
    for seed in range(num_keys):
        counts[np.arange(size), keyed_permutation(np.arange(size), size, order_key(seed))] += 1
    expected = num_keys / size
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    # Five standard deviations of a chi-squared variable.
    assert abs(chi_squared - freedom) < 5 * np.sqrt(2 * freedom) + 5


def test_neighbours_are_not_kept_together():
    size = 100_000
    permuted = keyed_permutation(np.arange(size), size, order_key(7))
    assert abs(np.corrcoef(np.arange(size), permuted)[0, 1]) < 0.02
    steps = np.diff(permuted)
    assert abs(np.corrcoef(permuted[:-1], permuted[1:])[0, 1]) < 0.02
    assert abs((steps > 0).mean() - 0.5) < 0.01
    # A random permutation has about two steps of +1 or -1 in all.
    assert (np.abs(steps) == 1).sum() < 15


def test_keyed_integers_are_spread():
    drawn = np.array([keyed_integer(10, order_key(seed, "offset")) for seed in range(5000)])
    counts = np.bincount(drawn, minlength=10)
    assert len(counts) == 10
    assert ((counts - 500) ** 2 / 500).sum() < 35
