"""The shards of a source read end to end: opened as they are needed, and a window may begin in one and end in the next.

How many shards there are decides nothing but how long the list is: memory is bounded by what is open at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import Strand
from hyena_blt_savanna.data.order import keyed_permutation
from hyena_blt_savanna.data.ring import Ring
from hyena_blt_savanna.data.windows import FoundWindow, Window, WindowCutter, WindowReader

_BYTES_OF_A_DOCUMENT = 8
_BYTES_OF_A_SHARD = 1 << 20


class Shard(NamedTuple):
    """A dataset as its source's manifest knows it, unopened.

    Attributes:
        prefix: its path without suffix.
        num_bytes: length of its stream.
        num_documents: documents in it.
    """

    prefix: Path
    num_bytes: int
    num_documents: int


@dataclass(frozen=True)
class ShardList:
    """The shards of one split of a source.

    Attributes:
        path: of the source, for messages.
        shards: in order, at least one.
        annotation: name of the patch boundaries; None: each base a patch.
        longest_patch_bases: length of the longest patch over all shards, for each strand that there is.
    """

    path: Path
    shards: tuple[Shard, ...]
    annotation: str | None
    longest_patch_bases: Mapping[Strand, int]

    def shuffled(self, key: bytes) -> ShardList:
        """The same shards in a keyed order."""
        num = len(self.shards)
        return replace(self, shards=tuple(self.shards[keyed_permutation(i, num, key)] for i in range(num)))


class OpenShards:
    """Keeps the shards open that were asked for last, as many as there is room for. For one thread at a time.

    The bases and their boundaries are mapped files, which the system takes memory from when it needs some; what
    counts is where each document starts.

    Args:
        most_bytes: about what the open shards may take; the newest one is kept whatever it takes.
        entropies_in_windows: whether windows hold the stored entropies of their bases; None: these are not opened.
    """

    def __init__(self, most_bytes: int = 1 << 29, entropies_in_windows: bool | None = None) -> None:
        self._most_bytes, self._entropies_in_windows = most_bytes, entropies_in_windows
        self._open: OrderedDict[Path, _OpenShard] = OrderedDict()
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    def reader(self, shard: Shard, annotation: str | None, strand: Strand) -> WindowReader:
        """Reads one strand of a shard.

        Args:
            shard: of any source; it is opened if it is not.
            annotation: name of the patch boundaries; None: each base a patch. The same for all calls.
            strand: "forward" or "reverse".

        Raises:
            DataError: the data or the boundaries are missing, broken, or don't belong together.
        """
        found = self._open.get(shard.prefix)
        if found is None:
            found = self._open[shard.prefix] = _OpenShard(IndexedReader(shard.prefix), {}, _open_bytes(shard))
            self._num_bytes += found.num_bytes
            while self._num_bytes > self._most_bytes and len(self._open) > 1:
                _, closed = self._open.popitem(last=False)
                self._num_bytes -= closed.num_bytes
        self._open.move_to_end(shard.prefix)
        if strand not in found.strands:
            reader = WindowReader(shard.prefix, annotation, strand, found.reader)
            if self._entropies_in_windows is not None:
                reader.open_entropies(self._entropies_in_windows)
            found.strands[strand] = reader
        return found.strands[strand]


class _OpenShard(NamedTuple):
    """What is open of a shard."""

    reader: IndexedReader
    strands: dict[Strand, WindowReader]
    num_bytes: int


def _open_bytes(shard: Shard) -> int:
    return _BYTES_OF_A_SHARD + _BYTES_OF_A_DOCUMENT * shard.num_documents


class ShardRing:
    """One strand of all shards as one ring: windows go on from a shard into the next, from the last into the first.

    Args:
        source: its shards, in the order of the ring.
        strand: "forward" or "reverse".
        opened: holds them open.
    """

    def __init__(self, source: ShardList, strand: Strand, opened: OpenShards) -> None:
        self.longest_patch_bases = source.longest_patch_bases[strand]
        self._source, self._strand, self._opened = source, strand, opened
        self._ends = np.cumsum([shard.num_bytes for shard in source.shards], dtype=np.int64)
        starts = (self._ends - [shard.num_bytes for shard in source.shards]).tolist()
        self.ring = Ring(list(zip(starts, self._ends.tolist(), strict=True)))

    def ring_window(self, index: int, window_bases: int, offset: int, max_patches: int | None = None) -> FoundWindow:
        """See `WindowReader.ring_window`."""
        places = self._places(offset + index * window_bases, window_bases)
        return FoundWindow.of((reader.stretch(start, stop, end) for reader, start, stop, end in places), max_patches)

    def cut_window(
        self,
        index: int,
        window_bases: int,
        offset: int,
        cutter: WindowCutter,
        key: bytes,
        progress: float,
        max_patches: int | None = None,
    ) -> FoundWindow:
        """See `WindowReader.cut_window`."""
        places = self._places(offset + index * window_bases, window_bases)
        stretches = (reader.cut_stretch(start, stop, cutter, key, progress) for reader, start, stop, _ in places)
        return FoundWindow.of(stretches, max_patches)

    def _places(self, start: int, length: int) -> Iterator[tuple[WindowReader, int, int, int]]:
        """What a stretch of the ring is: reader of the shard, [start, stop) in it, and its end."""
        for begin, stop, end in self.ring.pieces(start, length):
            index = int(np.searchsorted(self._ends, begin, side="right"))
            shard = self._source.shards[index]
            first = end - shard.num_bytes
            reader = self._opened.reader(shard, self._source.annotation, self._strand)
            yield reader, begin - first, stop - first, shard.num_bytes


class ShardWindows(Sequence[Window]):
    """All windows of the forward strand, shard by shard: as `EvaluationWindows` of each of them, end to end.

    Args:
        source: its shards.
        window_bases: bases in which a window's patches start.
        opened: holds shards open.

    Raises:
        DataError: the data or the boundaries are missing, broken, or don't belong together.
    """

    def __init__(self, source: ShardList, window_bases: int, opened: OpenShards) -> None:
        self.window_bases = window_bases
        self._source, self._opened = source, opened
        self._ends = np.cumsum([self._reader(index).num_windows(window_bases) for index in range(len(source.shards))])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        return self.find(index).read()

    def find(self, index: int) -> FoundWindow:
        """A window, with its patches known and its bases still to be read."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return self._reader(shard).window(index - first, self.window_bases)

    def _reader(self, index: int) -> WindowReader:
        return self._opened.reader(self._source.shards[index], self._source.annotation, "forward")
