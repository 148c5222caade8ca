"""Drawing the next base from a model's logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LARGEST_SEED = 2**64 - 1


class SamplingError(ValueError):
    """Settings of sampling that make no sense."""


class Sampler:
    """Draws one of some classes for each row of a batch.

    A row draws one number between 0 and 1 a base, from a stream that its seed and its number of a sample decide alone:
    with the same logits it draws the same, whatever is drawn beside it.

    Args:
        columns: of the logits that may be drawn.
        temperature: divides the logits; 0 takes the most likely class, the first of equals.
        top_k: draw from so many most likely classes only; None: from all.
        top_p: draw from the fewest most likely classes that have this probability together only; None: from all.
        seed: of all rows.
        samples: the number of each row among the sequences that are drawn with this seed from one prompt.

    Raises:
        SamplingError: temperature below 0, top_k below 1, top_p outside (0, 1], or a seed that is none.
    """

    def __init__(
        self,
        columns: Sequence[int],
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        samples: Sequence[int] = (0,),
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise SamplingError(f"temperature is {temperature}: give 0 (most likely base) or more")
        if top_k is not None and top_k < 1:
            raise SamplingError(f"top_k is {top_k}: give at least 1, or leave it out to draw from all bases")
        if top_p is not None and not 0 < top_p <= 1:
            raise SamplingError(f"top_p is {top_p}: give more than 0 and at most 1, or leave it out")
        if not 0 <= seed <= LARGEST_SEED:
            raise SamplingError(f"seed is {seed}: give a whole number from 0 to 2^64 - 1")
        self.columns = np.array(columns)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        keys = [np.array([seed, sample], dtype=np.uint64) for sample in samples]
        self._numbers = [np.random.Generator(np.random.Philox(key=key)) for key in keys]

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """What is drawn from.

        Args:
            logits: [B, C].

        Returns:
            [B, number of columns].
        """
        wanted = logits[:, self.columns].astype(np.float64)
        if self.temperature == 0:
            return np.eye(wanted.shape[1])[wanted.argmax(1)]
        weights = np.exp((wanted - wanted.max(1, keepdims=True)) / self.temperature)
        probabilities: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
        if self.top_k is None and self.top_p is None:
            return probabilities
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ordered = np.take_along_axis(probabilities, order, 1)
        kept = np.ones_like(ordered, dtype=np.bool_)
        if self.top_k is not None:
            kept[:, self.top_k :] = False
        if self.top_p is not None:
            # A class stays while those before it fall short of top_p, so that the most likely one always does.
            kept &= ordered.cumsum(1) - ordered < self.top_p
        np.put_along_axis(probabilities, order, np.where(kept, ordered, 0.0), 1)
        return probabilities / probabilities.sum(1, keepdims=True)

    def draw(self, logits: NDArray[np.float32], rows: Sequence[int] = (0,)) -> NDArray[np.int64]:
        """One of the columns for each of some rows.

        Args:
            logits: [B, C].
            rows: whose logits these are, B of them.
        """
        probabilities = self.probabilities(logits)
        if self.temperature == 0:
            return self.columns[probabilities.argmax(1)]
        numbers = np.array([self._numbers[row].random() for row in rows])
        return self.columns[(probabilities[:, :-1].cumsum(1) <= numbers[:, None]).sum(1)]
