"""Folds: stretches of a stream that are left out in turn, on both strands.

A fold is a stretch of the forward stream. On the reverse strand a document that several folds share is mirrored, so
its pieces come in the opposite order: a base and its complement belong to one fold.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import Strand
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, tag_length


class LeftOut(Config):
    """The fold that a model does not see, so that it can judge it."""

    fold: int = Field(ge=0)
    """Which, from 0."""
    folds: int = Field(ge=2)
    """Stretches of about equal length that the training stream is divided into."""

    @model_validator(mode="after")
    def _check_fold(self) -> LeftOut:
        if self.fold >= self.folds:
            raise ValueError(
                f"fold {self.fold} of {self.folds}: folds are counted from 0, so give at most {self.folds - 1}"
            )
        return self


class FoldStretch(NamedTuple):
    """Bases [start, stop) of a strand, all of one fold."""

    start: int
    stop: int
    fold: int


def stretches_of_folds(reader: IndexedReader, strand: Strand, edges: Sequence[int]) -> list[FoldStretch]:
    """The stretches of one strand that each belong to one fold, in stream order.

    Args:
        reader: the dataset.
        strand: which strand.
        edges: borders of the folds on the forward stream, from 0 to its length.
    """
    if strand == "forward":
        return [FoldStretch(*bounds, fold) for fold, bounds in enumerate(itertools.pairwise(edges))]
    starts = reader.document_starts
    borders = {int(edges[0]), int(edges[-1])}
    bodies: dict[int, tuple[int, int]] = {}
    for edge in edges[1:-1]:
        index = int(np.searchsorted(starts, edge, side="right")) - 1
        begin, end = int(starts[index]), int(starts[index + 1])
        document = reader.stream[begin:end]
        body = begin + tag_length(document), end - int(document[-1] == END_OF_DOCUMENT)
        bodies[begin] = body
        borders |= {begin, end, *body, body[0] + body[1] - edge if body[0] <= edge < body[1] else edge}

    def fold_at(position: int) -> int:
        begin = int(starts[np.searchsorted(starts, position, side="right") - 1])
        first, last = bodies.get(begin, (0, 0))
        forward = first + last - 1 - position if first <= position < last else position
        return int(np.searchsorted(edges, forward, side="right")) - 1

    return [FoldStretch(a, b, fold_at(a)) for a, b in itertools.pairwise(sorted(borders))]


def stretches_without(reader: IndexedReader, strand: Strand, left_out: LeftOut) -> list[tuple[int, int]]:
    """What a strand keeps when a fold is left out.

    Returns:
        [start, stop) of each stretch, in stream order; none begins inside a tag.
    """
    tags = StrandReader(reader, strand)
    kept: list[tuple[int, int]] = []
    for start, stop, fold in stretches_of_folds(reader, strand, fold_edges(len(reader.stream), left_out.folds)):
        if fold == left_out.fold:
            continue
        if kept and kept[-1][1] == start:
            kept[-1] = kept[-1][0], stop
        elif start + tags.tag_bytes_at(start) < stop:
            inside = start > int(reader.document_starts[tags.document_at(start)])
            kept.append((start + (tags.tag_bytes_at(start) if inside else 0), stop))
    return kept
