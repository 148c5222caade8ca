"""K-mers of sequences that are read base by base."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from hyena_blt_savanna.model.kmers import LONGEST_KMER, KmerTables
from hyena_blt_savanna.nucleotides import BASE_CODE, OTHER_CODE

_LONGEST_WORD = (1 << 2 * LONGEST_KMER) - 1


class KmerReader:
    """Looks up words while sequences are being read, base by base: `prefill` once, then `step`.

    Args:
        tables: in evaluation mode.
    """

    def __init__(self, tables: KmerTables) -> None:
        self._tables = tables
        self._sizes = np.array(tables.sizes, dtype=np.int64)
        self._num_left = max(tables.sizes, default=1) - 1
        # The last bases of each row as one base-4 number, and how many of them in a row are A, C, G or T.
        self._words = self._runs = np.empty(0, dtype=np.int64)

    def prefill(self, bases: Tensor) -> None:
        """Reads the start of sequences, int64 [B, L]: no more is remembered than their last bases."""
        self._words, self._runs = np.zeros((2, len(bases)), dtype=np.int64)
        for column in bases[:, max(bases.shape[1] - self._num_left, 0) :].unbind(1):
            self.step(column)

    def step(self, bases: Tensor, rows: Tensor | None = None) -> Tensor:
        """Reads the next base of some rows.

        Args:
            bases: int64 [b].
            rows: int64 [b], which they are; None: all of the batch.

        Returns:
            [b, D], what `KmerTables` gives there.
        """
        weight = self._tables.weight
        indices = np.empty((len(bases), len(self._sizes)), dtype=np.int64)
        at = np.arange(len(bases)) if rows is None else rows.numpy()
        _read_bases(bases.cpu().numpy(), at, self._words, self._runs, self._sizes, BASE_CODE, indices)
        # As many rows as a word has bases: a sum of looked-up rows takes less than a bag here.
        return torch.embedding(weight, torch.from_numpy(indices).to(weight.device)).sum(1)

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 [b], only; a row may come more than once."""
        self._words, self._runs = self._words[rows.numpy()], self._runs[rows.numpy()]

    def join(self, others: Sequence[KmerReader]) -> None:
        """Adds the rows of other readers of the same tables, behind its own."""
        self._words = np.concatenate([self._words, *(other._words for other in others)])
        self._runs = np.concatenate([self._runs, *(other._runs for other in others)])


@njit(cache=True, nogil=True)
def _read_bases(
    bases: NDArray[np.int64],
    rows: NDArray[np.int64],
    words: NDArray[np.int64],
    runs: NDArray[np.int64],
    sizes: NDArray[np.int64],
    base_code: NDArray[np.uint8],
    indices: NDArray[np.int64],
) -> None:
    """Reads the next base of some rows; fills their rows of the table, [b, number of sizes]."""
    for i in range(len(bases)):
        row, code = rows[i], np.int64(base_code[bases[i]])
        if code < OTHER_CODE:
            words[row] = ((words[row] << 2) | code) & _LONGEST_WORD
            runs[row] += 1
        else:
            words[row] = runs[row] = 0
        first_row = 0
        for place in range(len(sizes)):
            num_words = 1 << (2 * sizes[place])
            known = runs[row] >= sizes[place]
            indices[i, place] = first_row + (words[row] & (num_words - 1) if known else num_words)
            first_row += num_words + 1
