"""Drawing the next base from a model's logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SamplingError(ValueError):
    """Settings of sampling that make no sense."""


class Sampler:
    """Draws one of some classes; the same seed draws the same.

    Args:
        columns: of the logits that may be drawn.
        temperature: divides the logits; 0 takes the most likely class, the first of equals.
        top_k: draw from so many most likely classes only; None: from all.
        top_p: draw from the fewest most likely classes that have this probability together only; None: from all.
        seed: of the generator.

    Raises:
        SamplingError: temperature below 0, top_k below 1, or top_p outside (0, 1].
    """

    def __init__(
        self,
        columns: Sequence[int],
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise SamplingError(f"temperature is {temperature}: give 0 (most likely base) or more")
        if top_k is not None and top_k < 1:
            raise SamplingError(f"top_k is {top_k}: give at least 1, or leave it out to draw from all bases")
        if top_p is not None and not 0 < top_p <= 1:
            raise SamplingError(f"top_p is {top_p}: give more than 0 and at most 1, or leave it out")
        self.columns = torch.tensor(columns)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._generator = torch.Generator().manual_seed(seed)

    def probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from.

        Args:
            logits: float [C].

        Returns:
            float64 [number of columns].
        """
        wanted = logits.cpu()[self.columns].double()
        if self.temperature == 0:
            return torch.nn.functional.one_hot(wanted.argmax(), len(wanted)).double()
        probabilities = (wanted / self.temperature).softmax(-1)
        ordered, order = probabilities.sort(descending=True, stable=True)
        kept = torch.ones_like(ordered, dtype=torch.bool)
        if self.top_k is not None:
            kept[self.top_k :] = False
        if self.top_p is not None:
            # A class stays while those before it fall short of top_p, so that the most likely one always does.
            kept &= ordered.cumsum(-1) - ordered < self.top_p
        chosen = torch.zeros_like(probabilities).scatter(0, order, torch.where(kept, ordered, 0.0))
        return chosen / chosen.sum()

    def draw(self, logits: Tensor) -> int:
        """One of the columns.

        Args:
            logits: float [C].
        """
        probabilities = self.probabilities(logits)
        if self.temperature == 0:
            return int(self.columns[probabilities.argmax()])
        return int(self.columns[torch.multinomial(probabilities, 1, generator=self._generator)])
