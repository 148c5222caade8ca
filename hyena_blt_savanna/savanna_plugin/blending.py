"""Which dataset each sample of a blend comes from, by Savanna's rule."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

_CHUNK = 1 << 16


class Blend:
    """The order in which samples are taken from several datasets.

    The next one is always from the dataset that is furthest behind its share, so that a sample's place follows from all
    those before it: it is found chunk by chunk from the start, and chunks' beginnings are kept.

    Args:
        weights: of each dataset, above nothing; they are normalised.

    Source: `build_blending_indices` of Savanna's `data/helpers.cpp`.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = np.asarray(weights, dtype=np.float64) / float(sum(weights))
        self._starts = [np.zeros(len(weights), dtype=np.int64)]
        self._chunk = -1
        self._datasets = np.empty(0, dtype=np.int64)
        self._samples = np.empty(0, dtype=np.int64)

    def place_of(self, index: int) -> tuple[int, int]:
        """The dataset of a sample of the blend, and which of its own samples it is.

        Args:
            index: from 0.
        """
        chunk, place = divmod(index, _CHUNK)
        if chunk != self._chunk:
            while len(self._starts) <= chunk:
                _, _, counts = _blend(self.weights, self._starts[-1], (len(self._starts) - 1) * _CHUNK, _CHUNK)
                self._starts.append(counts)
            self._datasets, self._samples, _ = _blend(self.weights, self._starts[chunk], chunk * _CHUNK, _CHUNK)
            self._chunk = chunk
        return int(self._datasets[place]), int(self._samples[place])


@njit(cache=True)
def _blend(
    weights: NDArray[np.float64], counts: NDArray[np.int64], first: int, num: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    counts = counts.copy()
    datasets, samples = np.empty(num, np.int64), np.empty(num, np.int64)
    for place in range(num):
        done = max(float(first + place), 1.0)
        chosen, largest = 0, weights[0] * done - counts[0]
        for dataset in range(1, len(weights)):
            behind = weights[dataset] * done - counts[dataset]
            if behind > largest:
                chosen, largest = dataset, behind
        datasets[place], samples[place] = chosen, counts[chosen]
        counts[chosen] += 1
    return datasets, samples, counts
