"""The training data of a dataset or a source as one stream: its shards end to end, opened as they are needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, Bytes
from hyena_blt_savanna.patching.entropy_models import StreamEntropies
from hyena_blt_savanna.patching.stretches import SAMPLE_BASES, JudgedStretch, sample_stretches

_MOST_OPEN = 16


class FoldSample(NamedTuple):
    """Bases to fit a model on, fold by fold.

    Attributes:
        stream: uint8 [L].
        edges: borders of the folds in it, from 0 to L.
    """

    stream: Bytes
    edges: list[int]


class TrainingStream:
    """Shards end to end.

    Args:
        prefixes: their paths without suffix, in order.
        num_bytes: the length of each.
    """

    def __init__(self, prefixes: Sequence[Path], num_bytes: Sequence[int]) -> None:
        self.prefixes = list(prefixes)
        self._starts = np.concatenate([[0], np.cumsum(num_bytes, dtype=np.int64)])
        self.reader = lru_cache(_MOST_OPEN)(lambda index: IndexedReader(self.prefixes[index]))

    def __len__(self) -> int:
        """Bytes of all shards."""
        return int(self._starts[-1])

    def places(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Where bytes [start, stop) lie: shard, and first byte and end in it."""
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            begin, end = int(self._starts[index]), int(self._starts[index + 1])
            if start < end:
                yield index, start - begin, min(stop, end) - begin
            start, index = max(start, end), index + 1

    def folds_of(
        self, index: int, edges: Sequence[int], by_fold: Sequence[StreamEntropies | None]
    ) -> tuple[list[int], list[StreamEntropies | None]]:
        """The folds that a shard has part in: their borders in it, from 0 to its length, and their models.

        Args:
            index: of the shard.
            edges: borders of all folds in the whole stream.
            by_fold: what gives each fold its entropies.
        """
        begin, end = int(self._starts[index]), int(self._starts[index + 1])
        inner = [edge - begin for edge in edges if begin < edge < end]
        first = int(np.searchsorted(edges, begin, side="right")) - 1
        return [0, *inner, end - begin], list(by_fold[first : first + len(inner) + 1])

    def samples(self, stretch: JudgedStretch, num_bases: int) -> Iterator[tuple[StrandReader, JudgedStretch]]:
        """Samples of a stretch, spread evenly, each with the reader of its shard; see `sample_stretches`."""
        for sample in sample_stretches(stretch, num_bases):
            for index, start, stop in self.places(sample.start, sample.stop):
                yield StrandReader(self.reader(index), "forward"), sample._replace(start=start, stop=stop)

    def fold_sample(self, edges: Sequence[int], num_bases: int | None) -> FoldSample:
        """About as many bases as are wanted, of every fold alike; all of them, as they lie, where no more are there.

        Args:
            edges: borders of the folds.
            num_bases: how many are wanted; None: all.
        """
        if num_bases is None or len(self) <= num_bases:
            readers = [self.reader(index) for index in range(len(self.prefixes))]
            stream = readers[0].stream if len(readers) == 1 else np.concatenate([found.stream for found in readers])
            return FoldSample(stream, list(edges))
        parts: list[Bytes] = []
        borders = [0]
        end = np.array([END_OF_DOCUMENT], dtype=np.uint8)
        for start, stop in itertools.pairwise(edges):
            length = 0
            wanted = max(SAMPLE_BASES, num_bases // (len(edges) - 1))
            for reader, sample in self.samples(JudgedStretch(start, stop, None), wanted):
                # No window of bases may go across from one sample to the next, and none lies in a tag.
                first = min(sample.stop, sample.start + reader.tag_bytes_at(sample.start))
                parts += [reader.read(first, sample.stop), end]
                length += sample.stop - first + 1
            borders.append(borders[-1] + length)
        return FoldSample(np.concatenate(parts), borders)
