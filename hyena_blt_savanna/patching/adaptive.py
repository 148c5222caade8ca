"""The `adaptive` entropy model: counts of what the stream itself has shown so far, on both strands.

It needs no training, so it is what cuts a bare sequence when no fitted model is at hand. It knows
nothing at the start and learns as it reads; base i is still judged by the bases before it only. It
is no model for annotating training data: its context is all of the stream.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any, Literal, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.entropy_grid import on_grid
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.marks import BYTE_CLASS, IN_SEQUENCE, IN_TAG, NEXT_STATE, PLACE, START
from hyena_blt_savanna.patching.ngram_counts import num_contexts


class AdaptiveConfig(Config):
    """Settings of an `adaptive` entropy model."""

    kind: Literal["adaptive"] = "adaptive"
    order: int = Field(8, ge=0, le=12)
    """Bases of the longest context."""
    strength: float = Field(64.0, gt=0)
    """Counts that the distribution of the next shorter context is worth."""


class AdaptiveModel:
    """A model that learns from the stream it reads.

    Args:
        config: its settings.
    """

    def __init__(self, config: AdaptiveConfig) -> None:
        self.config = config

    @property
    def context_bases(self) -> int:
        """0: a base's entropy depends on all bases before it."""
        return 0

    @property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        return hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode()).hexdigest()

    def entropies(self, bases: Bytes) -> NDArray[np.float32]:
        """Entropy of each base given the bases before it, float32 [L], nats, for uint8 [L]."""
        return self.stepper().read(bases)

    def stepper(self, state: int = START) -> AdaptiveStepper:
        """A reader of one stream: from its start, or from a place with the `state` (see `marks`) before it."""
        return AdaptiveStepper(self.config, state)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """None: the settings are all there is."""
        return {}

    @classmethod
    def from_tensors(cls, config: AdaptiveConfig, tensors: dict[str, NDArray[Any]]) -> Self:
        """The model of these settings."""
        return cls(config)


class AdaptiveStepper:
    """Reads one stream, in chunks or base by base, and learns from it."""

    def __init__(self, config: AdaptiveConfig, state: int) -> None:
        self._config = config
        self._counts = np.zeros((num_contexts(config.order), 4), dtype=np.uint32)
        self._state = (state, 0, 0, 0)

    @property
    def next_entropy_nats(self) -> float:
        """Entropy of the base after those read so far."""
        mark, window, _, length = self._state
        if mark & PLACE != IN_SEQUENCE:
            return 0.0
        order = min(length, self._config.order)
        nats = _entropy(self._counts, window, order, self._config.strength)
        return float(on_grid(np.array([nats], dtype=np.float32))[0])

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""
        self.read(np.array([base], dtype=np.uint8))

    def copy(self) -> AdaptiveStepper:
        """Another reader of the same stream, at the same place, that goes on learning by itself."""
        twin = copy.copy(self)
        twin._counts = self._counts.copy()
        return twin

    def read(self, bases: Bytes) -> NDArray[np.float32]:
        """Reads the next bases, uint8 [L]; returns the entropy of each, float32 [L], nats."""
        nats = np.empty(len(bases), dtype=np.float32)
        order, strength = self._config.order, self._config.strength
        self._state = _read(bases, self._counts, order, strength, self._state, NEXT_STATE, BYTE_CLASS, nats)
        return on_grid(nats)


@njit(cache=True, nogil=True)
def _entropy(counts: NDArray[np.uint32], window: int, order: int, strength: float) -> float:
    """Entropy after the last `order` bases of `window`, interpolated from the shortest context to the longest."""
    a, c, g, t = 0.25, 0.25, 0.25, 0.25
    for k in range(order + 1):
        size = 1 << (2 * k)
        row = (size - 1) // 3 + (window & (size - 1))
        seen = counts[row]
        scale = 1.0 / (np.float64(seen[0]) + seen[1] + seen[2] + seen[3] + strength)
        a, c = scale * (seen[0] + strength * a), scale * (seen[1] + strength * c)
        g, t = scale * (seen[2] + strength * g), scale * (seen[3] + strength * t)
    return float(-(a * np.log(a) + c * np.log(c) + g * np.log(g) + t * np.log(t)))


@njit(cache=True, nogil=True)
def _read(
    bases: Bytes,
    counts: NDArray[np.uint32],
    order: int,
    strength: float,
    state: tuple[int, int, int, int],
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    nats: NDArray[np.float32],
) -> tuple[int, int, int, int]:
    """Reads bases; the state is (mark, last order + 1 bases, their reverse complement, number of them)."""
    mark, window, reverse, length = state
    mask = (1 << (2 * (order + 1))) - 1
    for i in range(len(bases)):
        nats[i] = 0.0
        if (mark & PLACE) == IN_SEQUENCE:
            nats[i] = _entropy(counts, window, min(length, order), strength)
        code = byte_class[bases[i]]
        if code > 3 or (mark & PLACE) == IN_TAG:
            window, reverse, length = 0, 0, 0
        else:
            window = ((window << 2) | code) & mask
            reverse = (reverse >> 2) | ((3 - code) << (2 * order))
            length = min(length + 1, order + 1)
            for k in range(length):
                # The last k + 1 bases, of either strand: a context of k bases and the base after it.
                size = 1 << (2 * k)
                last = window & (4 * size - 1)
                counts[(size - 1) // 3 + (last >> 2), last & 3] += np.uint32(1)
                last = reverse >> (2 * (order - k))
                counts[(size - 1) // 3 + (last >> 2), last & 3] += np.uint32(1)
        mark = next_state[mark & PLACE, code]
    return mark, window, reverse, length
