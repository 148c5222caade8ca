"""The `ngram` entropy model: interpolated counts of the bases after each context, of both strands.

It is fitted in one pass over the sequence, and then frozen into one table of entropies by context: reading a
stream is one look-up a base. Contexts of up to 12 bases have a row each; of longer ones only those that were seen
are kept (see `ngram_tree`), which costs a look-up or two more.
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
from hyena_blt_savanna.data.entropy_grid import on_grid
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.marks import START
from hyena_blt_savanna.patching.ngram_counts import (
    LONGEST_DENSE_ORDER,
    WindowCounts,
    dense_order_of,
    first_row,
    num_contexts,
)
from hyena_blt_savanna.patching.ngram_smoothing import fit_weights, mix
from hyena_blt_savanna.patching.ngram_table import EntropyTable, NgramStepper, read_log_probabilities
from hyena_blt_savanna.patching.ngram_tree import NO_TREE, ContextTree, entropy_nats, grow_tree
from hyena_blt_savanna.patching.ngram_windows import NgramError, WindowList


class NgramConfig(Config):
    """Settings of an `ngram` entropy model."""

    kind: Literal["ngram"] = "ngram"
    order: int = Field(8, ge=0, le=16)
    """Bases of context. Up to order 12 a table has 4 ** order rows and more (order 12: 0.7 GB, order 8: 2.6 MB); above,
    it has 4 bytes for each context that was seen, and at most 134 million bases can be fitted on."""
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
            NgramError: the stream has no stretch of order + 1 bases, or too many bases for an order above 12.
        """
        counts = WindowCounts.of_stream(stream, self.order, self.both_strands)
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


class NgramModel:
    """A fitted `ngram` model; made by `NgramConfig.fit`.

    Args:
        config: its settings.
        counts: how often each base followed each context.
        weights: float64 [order + 1, buckets], the smoothing.
    """

    def __init__(self, config: NgramConfig, counts: WindowCounts, weights: NDArray[np.float64]) -> None:
        self.config, self.counts, self.weights = config, counts, weights

    @property
    def context_bases(self) -> int:
        """Bases before a base that its entropy depends on, at most."""
        return self.config.order

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the settings, the counts and the smoothing."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        longer = self.counts.longer
        counts = longer.entries.astype("<i8", copy=False) if longer else self.counts.dense.astype("<u4", copy=False)
        digest.update(np.ascontiguousarray(counts).data)
        digest.update(self.weights.astype("<f8", copy=False).tobytes())
        return digest.hexdigest()

    @cached_property
    def table(self) -> EntropyTable:
        """The entropies by context."""
        dense, nats = self._dense()
        return EntropyTable(self.config.order, nats, self._tree(dense, nats)[0])

    def entropies(self, bases: Bytes) -> NDArray[np.float32]:
        """Entropy of each base given the bases before it.

        Args:
            bases: uint8 [L], one or more documents from their start, either case.

        Returns:
            float32 [L], nats, on the grid of `data.entropy_grid`.
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
        return self.entropies_and_log_probabilities(bases)[1]

    def entropies_and_log_probabilities(self, bases: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both at once, for the price of one interpolation of all contexts; see `entropies`, `log_probabilities`."""
        dense, nats = self._dense()
        tree, longer = self._tree(dense, nats, with_probabilities=True)
        order = self.config.order
        entropies = EntropyTable(order, nats, tree).entropies(bases)
        return entropies, read_log_probabilities(bases, order, dense, tree, longer)

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
        counts, both_strands = self.counts, self.config.both_strands
        seen = WindowCounts.of_stretch(stream, start, stop, counts.order, both_strands, counts.dense_order)
        return NgramModel(self.config, counts.without(seen), self.weights)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What a file of this model holds: a row of counts for each context, in the narrowest type that holds them;
        above order 12 the list of windows."""
        if self.counts.longer:
            return {"windows": self.counts.longer.entries, "weights": self.weights}
        largest = int(self.counts.dense.max())
        dtype = next(dtype for dtype in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(dtype).max)
        return {"counts": self.counts.dense.astype(dtype), "weights": self.weights}

    @classmethod
    def from_tensors(cls, config: NgramConfig, tensors: dict[str, NDArray[Any]]) -> Self:
        """The model that `tensors` describes.

        Raises:
            NgramError: they are not those of such a model.
        """
        found = {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()}
        listed = config.order > LONGEST_DENSE_ORDER
        counts = tensors.get("windows" if listed else "counts", np.empty(0))
        if set(tensors) != {"windows" if listed else "counts", "weights"} or (
            (counts.dtype, counts.ndim) != (np.int64, 1) if listed else counts.shape != (4**config.order, 4)
        ):
            raise NgramError(f"tensors {found} are not those of an ngram model of order {config.order}")
        if listed:
            longer = WindowList.stored(counts, config.order, dense_order_of(config.order))
            return cls(config, WindowCounts.of_list(longer), tensors["weights"])
        return cls(config, WindowCounts(counts.astype(np.uint32)), tensors["weights"])

    def _dense(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Interpolated distributions, float32 [contexts that have a row, 4], and their entropies."""
        dense_order = self.counts.dense_order
        probabilities = np.empty((num_contexts(dense_order), 4), dtype=np.float32)
        below = np.full((1, 4), 0.25, dtype=np.float32)
        for k, counts in enumerate(self.counts.dense_levels()):
            level = probabilities[first_row(k) : first_row(k + 1)]
            _interpolate(counts, self.weights[k], below, level)
            below = level
        nats = np.empty(len(probabilities), dtype=np.float32)
        for k in range(dense_order + 1):
            shorter = slice(first_row(max(k - 1, 0)), first_row(max(k, 1)))
            rows = slice(first_row(k), first_row(k + 1))
            _fill_entropies(probabilities[shorter], nats[shorter], probabilities[rows], nats[rows])
        return probabilities, on_grid(nats)

    def _tree(
        self, dense: NDArray[np.float32], nats: NDArray[np.float32], with_probabilities: bool = False
    ) -> tuple[ContextTree, NDArray[np.float32]]:
        """The contexts that have no row, and their distributions where those are wanted."""
        longer = self.counts.longer
        if longer is None:
            return NO_TREE, dense[:0]
        rows = slice(first_row(longer.dense_order), None)
        return grow_tree(longer, self.weights, dense[rows], nats[rows], with_probabilities)


@njit(cache=True, nogil=True)
def _interpolate(
    counts: NDArray[Any], weights: NDArray[np.float64], below: NDArray[np.float32], level: NDArray[np.float32]
) -> None:
    """Fills the distributions of one order, [4 ** k, 4], from its counts and those of the order below."""
    shorter = len(below) - 1
    for row in range(len(counts)):
        mix(counts, row, weights, below[row & shorter], level[row])


@njit(cache=True, nogil=True)
def _fill_entropies(
    below: NDArray[np.float32],
    below_nats: NDArray[np.float32],
    probabilities: NDArray[np.float32],
    nats: NDArray[np.float32],
) -> None:
    """Entropies of one order; where nothing was seen, the distribution and its entropy are those of the order below."""
    shorter = len(below) - 1
    for row in range(len(nats)):
        same = len(nats) > len(below)
        for base in range(4):
            same &= probabilities[row, base] == below[row & shorter, base]
        nats[row] = below_nats[row & shorter] if same else entropy_nats(probabilities[row])
