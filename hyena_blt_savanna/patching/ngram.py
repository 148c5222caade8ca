"""The `ngram` entropy model: interpolated counts of the bases after each context, of both strands.

It is fitted in one pass over the sequence, and then frozen into one table of entropies, a row for each
context of 0 to `order` bases: reading a stream is one look-up a base.

What precedes a base decides what is known of it:

- bases: the longest context of at most `order` of them;
- a mark, or the start of a document: nothing, and the base has the entropy of the shortest context;
- a letter that is no base, or the inside of a tag: entropy 0 by convention. No base is at stake there,
  and a long run of N shall become few long patches.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.entropies import on_grid
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.marks import BYTE_CLASS, IN_SEQUENCE, IN_TAG, NEXT_STATE, PLACE, START
from hyena_blt_savanna.patching.ngram_counts import (
    count_windows,
    count_windows_touching,
    counts_by_order,
    first_row,
    num_contexts,
)
from hyena_blt_savanna.patching.ngram_smoothing import NgramError, fit_weights, total_and_bucket


class NgramConfig(Config):
    """Settings of an `ngram` entropy model."""

    kind: Literal["ngram"] = "ngram"
    order: int = Field(8, ge=0, le=13)
    """Bases of context; the table has 4 ** order rows and more (order 12: 0.7 GB, order 8: 2.6 MB)."""
    both_strands: bool = True
    """Whether the reverse complement is counted too; false for RNA."""
    smoothing_folds: int = Field(8, ge=2)
    """Stretches of the training stream that are predicted from the others, to choose the smoothing."""
    smoothing_samples: int = Field(500_000, ge=1)
    """Bases that are predicted for it."""

    def fit(self, stream: Bytes) -> NgramModel:
        """Fits the model.

        Args:
            stream: uint8 [L], documents with an end-of-document byte between them, either case.

        Raises:
            NgramError: the stream has no stretch of order + 1 bases.
        """
        counts = count_windows(stream, self.order, self.both_strands)
        weights = fit_weights(stream, counts, self.both_strands, self.smoothing_folds, self.smoothing_samples)
        return NgramModel(self, counts, weights)

    def fit_out_of_fold(self, stream: Bytes, edges: list[int]) -> tuple[NgramModel, list[EntropyTable]]:
        """Fits the model on all of a stream, and one on all but each stretch in turn.

        Args:
            stream: uint8 [L].
            edges: borders of the stretches, from 0 to L.

        Returns:
            The model of the whole stream, and for each stretch the entropies of a model that has seen no
            window with a base of it. The smoothing is that of the whole.
        """
        model = self.fit(stream)
        stretches = itertools.pairwise(edges)
        return model, [model.without(stream, start, stop).table for start, stop in stretches]


class EntropyTable:
    """Entropies by context, frozen: what cutting into patches needs of an `ngram` model.

    Args:
        order: bases of the longest context.
        entropies: float32 [contexts of 0 to order bases], nats.
    """

    def __init__(self, order: int, entropies: NDArray[np.float32]) -> None:
        assert len(entropies) == num_contexts(order)
        self.context_bases = order
        self.nats = entropies

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table."""
        return hashlib.sha256(self.nats.tobytes()).hexdigest()

    def entropies(self, bases: Bytes) -> NDArray[np.float32]:
        """See `NgramModel.entropies`."""
        return self.stepper().read(bases)

    def stepper(self, state: int = START) -> NgramStepper:
        """See `NgramModel.stepper`."""
        return NgramStepper(self, state)


class NgramStepper:
    """Reads one stream from its start, in chunks or base by base, with the entropies of the whole stream."""

    def __init__(self, table: EntropyTable, state: int) -> None:
        self._table = table
        self._state = (state, 0, 0)

    @property
    def next_entropy_nats(self) -> float:
        """Entropy of the base after those read so far."""
        mark, row, _ = self._state
        return float(self._table.nats[row]) if mark & PLACE == IN_SEQUENCE else 0.0

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""
        self.read(np.array([base], dtype=np.uint8))

    def read(self, bases: Bytes) -> NDArray[np.float32]:
        """Reads the next bases of the stream.

        Args:
            bases: uint8 [L], either case.

        Returns:
            float32 [L]: the entropy of each of them given those before it, in nats.
        """
        nats = np.empty(len(bases), dtype=np.float32)
        self._state = _read_entropies(
            bases, self._table.nats, self._table.context_bases, self._state, NEXT_STATE, BYTE_CLASS, nats
        )
        return nats


class NgramModel:
    """A fitted `ngram` model; made by `NgramConfig.fit`.

    Args:
        config: its settings.
        counts: uint32 [4 ** order, 4], how often each base followed each context.
        weights: float64 [order + 1, buckets], the smoothing.
    """

    def __init__(self, config: NgramConfig, counts: NDArray[np.uint32], weights: NDArray[np.float64]) -> None:
        self.config, self.counts, self.weights = config, counts, weights

    @property
    def context_bases(self) -> int:
        """Bases before a base that its entropy depends on, at most."""
        return self.config.order

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the settings, the counts and the smoothing."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        digest.update(self.counts.astype("<u4", copy=False).tobytes())
        digest.update(self.weights.astype("<f8", copy=False).tobytes())
        return digest.hexdigest()

    @cached_property
    def table(self) -> EntropyTable:
        """The entropies by context."""
        order = self.config.order
        nats = np.empty(num_contexts(order), dtype=np.float32)
        _fill_entropies(self._probabilities(), nats)
        return EntropyTable(order, on_grid(nats))

    def entropies(self, bases: Bytes) -> NDArray[np.float32]:
        """Entropy of each base given the bases before it.

        Args:
            bases: uint8 [L], one or more documents from their start, either case.

        Returns:
            float32 [L], nats, on the grid of `data.entropies`.
        """
        return self.table.entropies(bases)

    def stepper(self, state: int = START) -> NgramStepper:
        """A reader of one stream: from its start, or from a place with the `state` (see `marks`) before it."""
        return self.table.stepper(state)

    def log_probabilities(self, bases: Bytes) -> NDArray[np.float32]:
        """How likely each base was, given the bases before it.

        Args:
            bases: uint8 [L], one or more documents from their start, either case.

        Returns:
            float32 [L], nats; NaN where the byte is no base, and inside tags.
        """
        nats = np.empty(len(bases), dtype=np.float32)
        probabilities = self._probabilities()
        _read_log_probabilities(bases, probabilities, self.config.order, NEXT_STATE, BYTE_CLASS, nats)
        return nats

    def bits_per_base(self, bases: Bytes) -> float:
        """Mean of -log2 of the probabilities, over the bases A, C, G, T of uint8 [L].

        Raises:
            NgramError: there is none.
        """
        nats = self.log_probabilities(bases)
        scored = nats[~np.isnan(nats)]
        if not len(scored):
            raise NgramError(f"no base A, C, G, T among {len(bases):,} bytes: nothing to score")
        return float(-scored.mean(dtype=np.float64) / np.log(2.0))

    def without(self, stream: Bytes, start: int, stop: int) -> NgramModel:
        """The model that has never seen a stretch: no window with a base in [start, stop) is counted.

        Args:
            stream: uint8 [L], the stream that this model was fitted on.
            start: first base of the stretch.
            stop: base after its last one.
        """
        order, both_strands = self.config.order, self.config.both_strands
        seen = count_windows_touching(stream, start, stop, order, both_strands)
        assert (seen <= self.counts).all(), "another stream than the one that was fitted"
        return NgramModel(self.config, self.counts - seen, self.weights)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What a file of this model holds; counts in the narrowest type that holds them."""
        largest = int(self.counts.max())
        dtype = next(dtype for dtype in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(dtype).max)
        return {"counts": self.counts.astype(dtype), "weights": self.weights}

    @classmethod
    def from_tensors(cls, config: NgramConfig, tensors: dict[str, NDArray[Any]]) -> Self:
        """The model that `tensors` describes.

        Raises:
            NgramError: they are not those of such a model.
        """
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        if set(shapes) != {"counts", "weights"} or shapes["counts"] != (4**config.order, 4):
            raise NgramError(f"tensors {shapes} are not those of an ngram model of order {config.order}")
        return cls(config, tensors["counts"].astype(np.uint32), tensors["weights"])

    def _probabilities(self) -> NDArray[np.float32]:
        """Interpolated distributions, float32 [contexts of 0 to order bases, 4]."""
        probabilities = np.empty((num_contexts(self.config.order), 4), dtype=np.float32)
        below = np.full((1, 4), 0.25, dtype=np.float32)
        for k, counts in enumerate(counts_by_order(self.counts)):
            level = probabilities[first_row(k) : first_row(k + 1)]
            _interpolate(counts, self.weights[k], below, level)
            below = level
        return probabilities


@njit(cache=True, nogil=True)
def _interpolate(
    counts: NDArray[Any], weights: NDArray[np.float64], below: NDArray[np.float32], level: NDArray[np.float32]
) -> None:
    """Fills the distributions of one order, [4 ** k, 4], from its counts and those of the order below."""
    shorter = len(below) - 1
    for row in range(len(counts)):
        total, bucket = total_and_bucket(counts, row)
        weight = weights[bucket]
        scale = weight / total if total > 0 else 0.0
        for base in range(4):
            level[row, base] = scale * counts[row, base] + (1.0 - weight) * below[row & shorter, base]


@njit(cache=True, nogil=True)
def _fill_entropies(probabilities: NDArray[np.float32], nats: NDArray[np.float32]) -> None:
    for row in range(len(nats)):
        total, weighted = 0.0, 0.0
        for base in range(4):
            probability = np.float64(probabilities[row, base])
            total += probability
            weighted -= probability * np.log(probability)
        # Rounding to float32 leaves the four short of one: entropy of the distribution scaled to one.
        nats[row] = weighted / total + np.log(total)


@njit(cache=True, nogil=True, inline="always")
def _longer_context(row: int, num_bases: int, code: int, order: int, last_row: int) -> tuple[int, int]:
    """Row and length of the context after one more base.

    Rows of contexts of k bases begin at (4 ** k - 1) / 3, so that appending a base takes row r to 4 r + 1 + code,
    whatever k is; a full context drops its oldest base first.
    """
    if num_bases < order:
        return 4 * row + 1 + code, num_bases + 1
    return last_row + ((4 * (row - last_row) + code) & ((1 << (2 * order)) - 1)), num_bases


@njit(cache=True, nogil=True)
def _read_entropies(
    bases: Bytes,
    table: NDArray[np.float32],
    order: int,
    state: tuple[int, int, int],
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    nats: NDArray[np.float32],
) -> tuple[int, int, int]:
    """Looks up the entropy of each base; the state is (mark, row of the context, bases in it)."""
    mark, row, num_bases = state
    longest = ((1 << (2 * order)) - 1) // 3
    for i in range(len(bases)):
        nats[i] = table[row] if (mark & PLACE) == IN_SEQUENCE else np.float32(0.0)
        code = byte_class[bases[i]]
        if code < 4 and (mark & PLACE) != IN_TAG:
            row, num_bases = _longer_context(row, num_bases, code, order, longest)
        else:
            row, num_bases = 0, 0
        mark = next_state[mark & PLACE, code]
    return mark, row, num_bases


@njit(cache=True, nogil=True)
def _read_log_probabilities(
    bases: Bytes,
    probabilities: NDArray[np.float32],
    order: int,
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    nats: NDArray[np.float32],
) -> None:
    mark, row, num_bases = START, 0, 0
    longest = ((1 << (2 * order)) - 1) // 3
    for i in range(len(bases)):
        code = byte_class[bases[i]]
        if code < 4 and (mark & PLACE) != IN_TAG:
            nats[i] = np.log(probabilities[row, code])
            row, num_bases = _longer_context(row, num_bases, code, order, longest)
        else:
            nats[i] = np.nan
            row, num_bases = 0, 0
        mark = next_state[mark & PLACE, code]
