"""Which bases count in the loss, and how much."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import BASES, END_OF_DOCUMENT, TAG_MARK, UPPER, Bytes

_END_OF_DOCUMENT = END_OF_DOCUMENT
_TAG_MARK = TAG_MARK


def weight_table(repeat_weight: float = 1.0) -> NDArray[np.float32]:
    """Weight of each byte outside a tag as a target, float32 [256].

    Args:
        repeat_weight: weight of a, c, g and t in lower case (repeat-masked).
    """
    table = np.zeros(256, dtype=np.float32)
    table[list(BASES)] = 1.0
    table[list(BASES.lower())] = repeat_weight
    table[END_OF_DOCUMENT] = 1.0
    return table


def loss_weights(raw_bases: Bytes, repeat_weight: float = 1.0, num_leading_tag_bytes: int = 0) -> NDArray[np.float32]:
    """Weight of each base as a target.

    1 for A, C, G, T and the end-of-document byte, `repeat_weight` for a, c, g, t; 0 for an opening tag (its marks
    and what is between them), for join marks, and for every other letter.

    Args:
        raw_bases: uint8 [L], case as on disk.
        repeat_weight: weight of the repeat-masked bases.
        num_leading_tag_bytes: bytes at the start that belong to a tag; `Window` knows them.

    Returns:
        float32 [L].
    """
    weights = np.empty(len(raw_bases), dtype=np.float32)
    fold_and_weigh(
        raw_bases, UPPER, weight_table(repeat_weight), num_leading_tag_bytes, np.empty(0, dtype=np.int64), weights
    )
    return weights


@njit(cache=True, nogil=True)
def fold_and_weigh(
    raw: Bytes,
    upper: Bytes,
    table: NDArray[np.float32],
    num_leading_tag_bytes: int,
    bases: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> None:
    """Upper-cases bases and weighs them as targets, in one pass.

    Args:
        raw: uint8 [L], case as on disk.
        upper: uint8 [256], `nucleotides.UPPER`.
        table: float32 [256] from `weight_table`.
        num_leading_tag_bytes: bytes at the start that belong to a tag.
        bases: int64 [L], filled; one of length 0 is left alone.
        weights: float32 [L], filled.
    """
    fold = len(bases) > 0
    in_tag = False
    for i in range(len(raw)):
        byte = raw[i]
        if fold:
            bases[i] = upper[byte]
        weights[i] = table[byte]
        if i < num_leading_tag_bytes:
            weights[i] = 0.0
        elif in_tag:
            weights[i] = 0.0
            in_tag = byte != _TAG_MARK
        # Only a mark that opens a document opens a tag; one that the window cuts has no closing mark here.
        elif byte == _TAG_MARK and i > 0 and raw[i - 1] == _END_OF_DOCUMENT:
            in_tag = True
