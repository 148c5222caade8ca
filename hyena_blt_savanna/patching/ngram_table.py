"""Entropies by context, frozen, and the kernels that find a base's context while a stream is read.

What precedes a base decides what is known of it:

- bases: the longest context of them that has a row or a node;
- a mark, or the start of a document: nothing, and the base has the entropy of the shortest context;
- a letter that is no base, or the inside of a tag: entropy 0 by convention. No base is at stake there,
  and a long run of N shall become few long patches.
"""

from __future__ import annotations

import copy
import hashlib
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.marks import BYTE_CLASS, IN_SEQUENCE, IN_TAG, NEXT_STATE, PLACE, START
from hyena_blt_savanna.patching.ngram_counts import num_contexts
from hyena_blt_savanna.patching.ngram_tree import NO_TREE, ContextTree, descend, node_nats

_LAST_BASES = (1 << 32) - 1
"""The 16 newest bases of a number in base 4."""
_BLOCK_BASES = 256
"""Bases that are read at once, level by level: their look-ups wait for the memory together."""
_AFTER_UNKNOWN, _INSIDE_TAG = -1, -2
"""Places of bases that nothing is known of: see `_locate`."""


class EntropyTable:
    """Entropies by context, frozen: what cutting into patches needs of an `ngram` model.

    Args:
        order: bases of the longest context.
        entropies: float32 [contexts that have a row each, those of 0 to so many bases], nats.
        tree: the contexts that are longer than those.
    """

    def __init__(self, order: int, entropies: NDArray[np.float32], tree: ContextTree = NO_TREE) -> None:
        assert len(entropies) == num_contexts(order - tree.levels)
        self.context_bases = order
        self.nats, self.tree = entropies, tree

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return self.nats.nbytes + self.tree.roots.nbytes + self.tree.nodes.nbytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table."""
        digest = hashlib.sha256(self.nats.tobytes())
        digest.update(self.tree.nodes.tobytes())
        return digest.hexdigest()

    def entropies(self, bases: Bytes) -> NDArray[np.float32]:
        """Entropy of each base given the bases before it.

        Args:
            bases: uint8 [L], one or more documents from their start, either case.

        Returns:
            float32 [L], nats, on the grid of `data.entropy_grid`.
        """
        return self.stepper().read(bases)

    def stepper(self, state: int = START) -> NgramStepper:
        """A reader of one stream: from its start, or from a place with the `state` (see `marks`) before it."""
        return NgramStepper(self, state)


class Reading(NamedTuple):
    """Where a reader is in its stream."""

    mark: int
    row: int = 0
    """Of the context, as far as it has one."""
    last_bases: int = 0
    """The newest bases, as a number in base 4."""
    num_bases: int = 0
    """How many of them are context."""


class NgramStepper:
    """Reads one stream from its start, in chunks or base by base, with the entropies of the whole stream."""

    def __init__(self, table: EntropyTable, state: int) -> None:
        self._table = table
        self._reading = Reading(state)

    @property
    def next_entropy_nats(self) -> float:
        """Entropy of the base after those read so far."""
        # It does not depend on which base that is.
        return float(self._read(np.zeros(1, dtype=np.uint8))[0][0])

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
        nats, self._reading = self._read(bases)
        return nats

    def copy(self) -> NgramStepper:
        """Another reader of the same stream, at the same place."""
        return copy.copy(self)

    def _read(self, bases: Bytes) -> tuple[NDArray[np.float32], Reading]:
        table, tree, nats = self._table, self._table.tree, np.empty(len(bases), dtype=np.float32)
        context = table.context_bases, tree.levels, tree.roots, tree.nodes
        return nats, Reading(
            *_read_entropies(bases, table.nats, *context, *self._reading, NEXT_STATE, BYTE_CLASS, nats)
        )


def read_log_probabilities(
    bases: Bytes, order: int, dense: NDArray[np.float32], tree: ContextTree, longer: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How likely each base of a stream was.

    Args:
        bases: uint8 [L], from the start of a document.
        order: bases of the longest context.
        dense: float32 [contexts that have a row, 4], the distributions.
        tree: the longer contexts.
        longer: float32 [nodes of the tree, 4].

    Returns:
        float32 [L], nats; NaN where the byte is no base, and inside tags.
    """
    nats = np.empty(len(bases), dtype=np.float32)
    context = order, tree.levels, tree.roots, tree.nodes
    _read_log_probabilities(bases, dense, longer, *context, NEXT_STATE, BYTE_CLASS, nats)
    return nats


@njit(cache=True, nogil=True, inline="always")
def _longer_context(row: int, num_bases: int, code: int, order: int, last_row: int) -> int:
    """Row of the context after one more base.

    Rows of contexts of k bases begin at (4 ** k - 1) / 3, so that appending a base takes row r to 4 r + 1 + code,
    whatever k is; a full context drops its oldest base first.
    """
    if num_bases < order:
        return 4 * row + 1 + code
    return last_row + ((4 * (row - last_row) + code) & ((1 << (2 * order)) - 1))


@njit(cache=True, nogil=True)
def _locate(
    bases: Bytes,
    order: int,
    levels: int,
    roots: NDArray[np.uint32],
    nodes: NDArray[np.uint32],
    mark: int,
    row: int,
    last_bases: int,
    num_bases: int,
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    pending: NDArray[np.int64],
    places: NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Finds where each base's distribution is; returns the fields of `Reading` after them.

    A place is a row of the dense table or, that of the node behind all its rows; `_AFTER_UNKNOWN` and `_INSIDE_TAG`
    where no base is at stake.
    """
    dense_order = order - levels
    last_row = ((1 << (2 * dense_order)) - 1) // 3
    num_rows = last_row + (1 << (2 * dense_order))
    num_pending = 0
    for i in range(len(bases)):
        if (mark & PLACE) != IN_SEQUENCE:
            places[i] = _INSIDE_TAG if (mark & PLACE) == IN_TAG else _AFTER_UNKNOWN
        elif levels == 0 or num_bases < dense_order:
            places[i] = row
        else:
            pending[0, num_pending] = i
            pending[1, num_pending] = roots[row - last_row]
            pending[2, num_pending] = last_bases >> (2 * dense_order)
            pending[3, num_pending] = (1 << (num_bases - dense_order)) - 1
            num_pending += 1
        code = byte_class[bases[i]]
        if code < 4 and (mark & PLACE) != IN_TAG:
            row = _longer_context(row, num_bases, code, dense_order, last_row)
            last_bases = ((last_bases << 2) | code) & _LAST_BASES
            num_bases = min(num_bases + 1, order)
        else:
            row, num_bases = 0, 0
        mark = next_state[mark & PLACE, code]
    if num_pending:
        descend(pending[1, :num_pending], pending[2], pending[3], levels, nodes)
    for j in range(num_pending):
        places[pending[0, j]] = num_rows + pending[1, j]
    return mark, row, last_bases, num_bases


@njit(cache=True, nogil=True)
def _read_entropies(
    bases: Bytes,
    table: NDArray[np.float32],
    order: int,
    levels: int,
    roots: NDArray[np.uint32],
    nodes: NDArray[np.uint32],
    mark: int,
    row: int,
    last_bases: int,
    num_bases: int,
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    nats: NDArray[np.float32],
) -> tuple[int, int, int, int]:
    """Looks up the entropy of each base; returns the fields of `Reading` after them."""
    pending, places = np.empty((4, _BLOCK_BASES), dtype=np.int64), np.empty(_BLOCK_BASES, dtype=np.int64)
    for start in range(0, len(bases), _BLOCK_BASES):
        block = bases[start : start + _BLOCK_BASES]
        mark, row, last_bases, num_bases = _locate(
            block,
            order,
            levels,
            roots,
            nodes,
            mark,
            row,
            last_bases,
            num_bases,
            next_state,
            byte_class,
            pending,
            places,
        )
        for i in range(len(block)):
            place = places[i]
            if place < 0:
                nats[start + i] = np.float32(0.0)
            elif place < len(table):
                nats[start + i] = table[place]
            else:
                nats[start + i] = node_nats(place - len(table), nodes)
    return mark, row, last_bases, num_bases


@njit(cache=True, nogil=True)
def _read_log_probabilities(
    bases: Bytes,
    dense: NDArray[np.float32],
    longer: NDArray[np.float32],
    order: int,
    levels: int,
    roots: NDArray[np.uint32],
    nodes: NDArray[np.uint32],
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    nats: NDArray[np.float32],
) -> None:
    mark, row, last_bases, num_bases = START, 0, 0, 0
    pending, places = np.empty((4, _BLOCK_BASES), dtype=np.int64), np.empty(_BLOCK_BASES, dtype=np.int64)
    for start in range(0, len(bases), _BLOCK_BASES):
        block = bases[start : start + _BLOCK_BASES]
        mark, row, last_bases, num_bases = _locate(
            block,
            order,
            levels,
            roots,
            nodes,
            mark,
            row,
            last_bases,
            num_bases,
            next_state,
            byte_class,
            pending,
            places,
        )
        for i in range(len(block)):
            place, code = places[i], byte_class[block[i]]
            if code > 3 or place == _INSIDE_TAG:
                nats[start + i] = np.nan
            elif place < len(dense):
                nats[start + i] = np.log(dense[max(place, 0), code])
            else:
                nats[start + i] = np.log(longer[place - len(dense), code])
