"""The contexts that are longer than a row of the dense table, frozen into a tree of those that were seen.

A context that was seen has all its suffixes seen, so each row of the dense table is the root of a tree: a node's
children are the contexts with one older base. A node is one number of 32 bits, and the nodes of a row lie one
after the other, level by level, so that reading a base touches the row's root and its few neighbours:

    bits 0 to 15    entropy, in steps of the grid
    bits 16 to 19   which of A, C, G, T have a child
    bits 20 to 31   distance from the node to its first child
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.data.entropy_grid import ENTROPY_STEP_NATS
from hyena_blt_savanna.patching.ngram_smoothing import mix
from hyena_blt_savanna.patching.ngram_windows import COUNT_BITS, WindowList

MOST_LEVELS = 5
"""Orders above the dense one; a row's tree has 1365 nodes at most, so that distances fit their bits."""

_MOST_NODES = (4 ** (MOST_LEVELS + 1) - 1) // 3
_STEPS = (1 << 16) - 1
_COUNT = (1 << COUNT_BITS) - 1


class ContextTree:
    """The trees of all rows.

    Args:
        levels: orders above the dense one.
        roots: uint32 [4 ** dense order], place of each row's root among the nodes.
        nodes: uint32 [N], see the module.
    """

    def __init__(self, levels: int, roots: NDArray[np.uint32], nodes: NDArray[np.uint32]) -> None:
        self.levels, self.roots, self.nodes = levels, roots, nodes


NO_TREE = ContextTree(0, np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.uint32))
"""Of a table whose rows are all its contexts."""


def grow_tree(
    windows: WindowList,
    weights: NDArray[np.float64],
    dense_probabilities: NDArray[np.float32],
    dense_nats: NDArray[np.float32],
    with_probabilities: bool = False,
) -> tuple[ContextTree, NDArray[np.float32]]:
    """Interpolates the distributions of all contexts that were seen, and freezes their entropies.

    Args:
        windows: what was seen.
        weights: float64 [order + 1, buckets], the smoothing.
        dense_probabilities: float32 [4 ** dense order, 4], the distributions of the rows.
        dense_nats: float32 [4 ** dense order], their entropies, on the grid.
        with_probabilities: whether the distributions are wanted too: 16 bytes a node.

    Returns:
        The tree, and float32 [nodes, 4], the distributions, or [0, 4].
    """
    levels = windows.order - windows.dense_order
    assert levels <= MOST_LEVELS
    num_nodes = len(dense_nats) + _count_nodes(windows.entries, levels)
    tree = ContextTree(levels, np.empty(len(dense_nats), dtype=np.uint32), np.empty(num_nodes, dtype=np.uint32))
    probabilities = np.empty((num_nodes if with_probabilities else 0, 4), dtype=np.float32)
    deeper = weights[windows.dense_order + 1 :]
    _grow(windows.entries, deeper, dense_probabilities, dense_nats, tree.roots, tree.nodes, probabilities)
    return tree, probabilities


@njit(cache=True, nogil=True)
def descend(
    found: NDArray[np.int64], older: NDArray[np.int64], known: NDArray[np.int64], levels: int, nodes: NDArray[np.uint32]
) -> None:
    """Finds the nodes of the longest contexts that were seen.

    Level by level, and without a branch that waits for what is read: a miss leaves a node where it is.

    Args:
        found: int64 [N], the roots; becomes the nodes.
        older: int64 [N], the bases before the rows', the newest in the lowest two bits.
        known: int64 [N], a bit set for each of them that is context; becomes what was not needed.
        levels: levels of the tree below its root.
        nodes: the tree's.
    """
    for level in range(levels):
        for i in range(len(found)):
            value = np.int64(nodes[found[i]])
            base = (older[i] >> (2 * level)) & 3
            children = (value >> 16) & 15
            hit = -(known[i] & (children >> base) & 1)
            before = children & ((1 << base) - 1)
            # before - before // 2 - before // 4 is how many of its three bits are set.
            found[i] += hit & ((value >> 20) + before - (before >> 1) - (before >> 2))
            known[i] = hit & (known[i] >> 1)


@njit(cache=True, nogil=True, inline="always")
def node_nats(node: int, nodes: NDArray[np.uint32]) -> Any:
    """Entropy of a node, float32."""
    return np.float32((np.int64(nodes[node]) & _STEPS) * ENTROPY_STEP_NATS)


@njit(cache=True, nogil=True, inline="always")
def entropy_nats(probabilities: NDArray[np.float32]) -> float:
    """Entropy of a distribution [4] whose rounding to float32 leaves it short of one, scaled to one."""
    total, weighted = 0.0, 0.0
    for base in range(4):
        probability = np.float64(probabilities[base])
        total += probability
        weighted -= probability * np.log(probability)
    return weighted / total + np.log(total)


@njit(cache=True, nogil=True)
def _count_nodes(entries: NDArray[np.int64], levels: int) -> int:
    """Contexts of all levels below the roots: where an entry differs from the one before it."""
    num_nodes, previous = 0, np.int64(-1)
    for entry in entries:
        context = entry >> (COUNT_BITS + 2)
        for level in range(levels):
            num_nodes += (context >> (2 * level)) != (previous >> (2 * level))
        previous = context
    return num_nodes


@njit(cache=True, nogil=True)
def _grow(
    entries: NDArray[np.int64],
    weights: NDArray[np.float64],
    dense_probabilities: NDArray[np.float32],
    dense_nats: NDArray[np.float32],
    roots: NDArray[np.uint32],
    nodes: NDArray[np.uint32],
    probabilities: NDArray[np.float32],
) -> None:
    """Builds the trees row by row; a node's entries are [low, high)."""
    levels = len(weights)
    low, high = np.empty(_MOST_NODES, dtype=np.int64), np.empty(_MOST_NODES, dtype=np.int64)
    mixed = np.empty((_MOST_NODES, 4), dtype=np.float32)
    counts = np.empty((1, 4), dtype=np.int64)
    place, position = 0, 0
    for row in range(len(roots)):
        roots[row] = place
        low[0] = position
        while position < len(entries) and (entries[position] >> (COUNT_BITS + 2 + 2 * levels)) == row:
            position += 1
        high[0] = position
        mixed[0] = dense_probabilities[row]
        size, node = 1, 0
        for level in range(levels + 1):
            shift = COUNT_BITS + 2 * (levels - level)
            for _ in range(size - node):
                first_child, children = size, 0
                i = low[node]
                while level < levels and i < high[node]:
                    base = (entries[i] >> shift) & 3
                    low[size], counts[:] = i, 0
                    while i < high[node] and ((entries[i] >> shift) & 3) == base:
                        counts[0, (entries[i] >> COUNT_BITS) & 3] += entries[i] & _COUNT
                        i += 1
                    high[size] = i
                    mix(counts, 0, weights[level], mixed[node], mixed[size])
                    children |= 1 << base
                    size += 1
                nats = np.float64(dense_nats[row]) if node == 0 else np.float64(np.float32(entropy_nats(mixed[node])))
                steps = int(np.rint(nats / ENTROPY_STEP_NATS))
                nodes[place + node] = steps | (children << 16) | ((first_child - node) << 20)
                node += 1
        if len(probabilities):
            probabilities[place : place + size] = mixed[:size]
        place += size
