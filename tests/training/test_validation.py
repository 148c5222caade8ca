"""Held-out windows: each is scored once, whatever the ranks."""

from __future__ import annotations

import pytest

from hyena_blt_savanna.training.validation import shares, spread


def test_windows_are_spread_evenly():
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(1000, 1000) == list(range(1000))


@pytest.mark.parametrize("num_windows", [1, 2, 5, 12])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_windows", [1, 2, 4])
def test_each_window_counts_once_and_ranks_call_alike(num_windows, num_ranks, micro_batch_windows):
    indices = range(100, 100 + num_windows)
    of_rank = [list(shares(indices, rank, num_ranks, micro_batch_windows)) for rank in range(num_ranks)]
    counted = [
        index
        for micro_batches in of_rank
        for chosen, counts in micro_batches
        for index, counted in zip(chosen, counts, strict=True)
        if counted
    ]
    assert sorted(counted) == list(indices)
    sizes = [[len(chosen) for chosen, _ in micro_batches] for micro_batches in of_rank]
    assert all(size == sizes[0] for size in sizes)
    assert max(sizes[0]) <= micro_batch_windows
