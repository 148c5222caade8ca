"""Stretches of a stream, each with an entropy model of its own that reads as if from the start of its document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.folds import stretches_of_folds
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import Strand
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.entropy_models import StreamEntropies
from hyena_blt_savanna.patching.marks import place_after

CHUNK_BASES = 1 << 22
SAMPLE_BASES = 1 << 16


class JudgedStretch(NamedTuple):
    """Bases [start, stop) of a stream, and what gives them their entropies."""

    start: int
    stop: int
    entropies: StreamEntropies | None


def fold_stretches(
    reader: IndexedReader, strand: Strand, edges: Sequence[int], by_fold: Sequence[StreamEntropies | None]
) -> list[JudgedStretch]:
    """The stretches of one strand that each are read with one fold's model.

    Args:
        reader: the dataset.
        strand: which strand.
        edges: borders of the folds on the forward stream, from 0 to its length.
        by_fold: what gives each fold its entropies.
    """
    return [
        JudgedStretch(start, stop, by_fold[fold]) for start, stop, fold in stretches_of_folds(reader, strand, edges)
    ]


def sample_stretches(stretch: JudgedStretch, num_bases: int) -> Iterator[JudgedStretch]:
    """Samples of a stretch: back to back where it has no more than `num_bases`, else spread evenly."""
    wanted = max(1, num_bases // SAMPLE_BASES)
    step = max(SAMPLE_BASES, (stretch.stop - stretch.start) // wanted)
    for start in range(stretch.start, stretch.stop, step):
        yield stretch._replace(start=start, stop=min(start + SAMPLE_BASES, stretch.stop))


def read_judged(reader: StrandReader, stretch: JudgedStretch) -> Iterator[tuple[Bytes, NDArray[np.float32]]]:
    """Reads a stretch in chunks.

    Yields:
        uint8 [L] bases and float32 [L] entropies in nats; no entropies where nothing gives them.
    """
    stepper = None
    if stretch.entropies is not None:
        document_start = int(reader.document_starts[reader.document_at(stretch.start)])
        begin = max(document_start, stretch.start - stretch.entropies.context_bases)
        stepper = stretch.entropies.stepper(place_after(_chunks(reader, document_start, begin)))
        stepper.read(reader.read(begin, stretch.start))
    for bases in _chunks(reader, stretch.start, stretch.stop):
        yield bases, stepper.read(bases) if stepper is not None else np.zeros(0, dtype=np.float32)


def _chunks(reader: StrandReader, start: int, stop: int) -> Iterator[Bytes]:
    for begin in range(start, stop, CHUNK_BASES):
        yield reader.read(begin, min(begin + CHUNK_BASES, stop))
