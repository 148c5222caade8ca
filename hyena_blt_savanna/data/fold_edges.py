"""Where a stream is divided into folds."""

from __future__ import annotations


def fold_edges(num_bases: int, num_folds: int) -> list[int]:
    """Borders of stretches of about equal length: num_folds + 1 positions from 0 to num_bases."""
    return [num_bases * fold // num_folds for fold in range(num_folds + 1)]
