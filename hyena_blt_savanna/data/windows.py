"""Windows: whole patches from any place of a stream, found without a scan or a table.

Window k of a stream holds the patches that start in [o + kW, o + (k+1)W), for a window size W and an offset o
in bases; its bases end where its last patch ends, so it has at most W + longest patch - 1 of them. Each patch
belongs to exactly one window, whatever W and o are.

Evaluation takes o = 0 and windows 0, 1, ... up to the one with the last patch: every base once. Training moves
the grid by an offset o in [0, W), and reads the stream as a ring: its ceil(num_bytes / W) windows start at o and
go on at the stream's start once they have passed its end. So every base is trained on in every epoch, the number
of windows does not depend on o, and there is no short window before o. Fewer than W bases come twice, others in
each epoch. A window across the seam has a document border there, as it would between any two documents. Where a fold
is left out, the ring joins what is left, and the seams are more.

A window that is cut anew holds bases [o + kW, o + (k+1)W) exactly: a patch starts at its first base, and its last
patch ends with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.boundaries import Boundaries, BoundaryReader, SingleBases, boundary_prefix
from hyena_blt_savanna.data.entropies import EntropyReader
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.folds import LeftOut, stretches_without
from hyena_blt_savanna.data.indexed import IndexedReader, data_path
from hyena_blt_savanna.data.manifest import Strand
from hyena_blt_savanna.data.ring import Ring
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import Bytes


class Seam(NamedTuple):
    """Where a window goes on at another place of the stream.

    Attributes:
        place: first base behind it, counted from the window's start.
        num_tag_bytes: bytes from there on that belong to an opening tag.
    """

    place: int
    num_tag_bytes: int


@dataclass(frozen=True)
class Window:
    """Whole patches of one strand, in stream order.

    Attributes:
        bases: uint8 [L], case as on disk; nothing is put in front.
        patch_lengths: int32 [P], in bases; they sum to L.
        start: position of the first base in its stream.
        num_leading_tag_bytes: bytes at the start that belong to an opening tag.
        num_cut_patches: patches that were left out at the end, because the window had too many.
        entropies: float32 [L], nats, of each base given those before it in its document; None where they were not
            asked for.
        seams: in order; none where the stream goes on from start to end.
    """

    bases: Bytes
    patch_lengths: NDArray[np.int32]
    start: int
    num_leading_tag_bytes: int = 0
    num_cut_patches: int = 0
    entropies: NDArray[np.float32] | None = None
    seams: tuple[Seam, ...] = ()

    def pieces(self) -> Iterator[tuple[slice, int]]:
        """Its bases between the seams, and how many of each piece's first bytes belong to an opening tag."""
        seams = [Seam(0, self.num_leading_tag_bytes), *self.seams, Seam(len(self.bases), 0)]
        for seam, following in itertools.pairwise(seams):
            yield slice(seam.place, following.place), seam.num_tag_bytes


class Stretch(NamedTuple):
    """Patches that lie end to end in one stream.

    Attributes:
        start: of the first of them in the stream.
        patch_lengths: int32 [P], in bases.
        strand: what their bases are read from.
        entropies: what the entropies of these are read from; None: they are not asked for.
    """

    start: int
    patch_lengths: NDArray[np.int32]
    strand: StrandReader
    entropies: EntropyReader | None = None


@dataclass(frozen=True)
class FoundWindow:
    """A window whose patches are known, before any of its bases is read.

    Attributes:
        stretches: where its patches lie; at least one, and more where there are seams.
        num_cut_patches: patches that were left out at the end, because the window had too many.
    """

    stretches: tuple[Stretch, ...]
    num_cut_patches: int

    @classmethod
    def of(cls, stretches: Iterable[Stretch], max_patches: int | None) -> FoundWindow:
        """The window of the patches of these stretches, without those that are too many.

        Args:
            stretches: in order, at least one.
            max_patches: patches beyond that many are cut off; None never cuts.
        """
        kept, num_kept, num_cut = [], 0, 0
        for stretch in stretches:
            lengths = stretch.patch_lengths
            taken = len(lengths) if max_patches is None else min(len(lengths), max_patches - num_kept)
            kept.append(stretch._replace(patch_lengths=lengths[:taken]))
            num_kept, num_cut = num_kept + taken, num_cut + len(lengths) - taken
        return cls(tuple(kept), num_cut)

    @cached_property
    def patch_lengths(self) -> NDArray[np.int32]:
        """int32 [P], of the whole window, in bases."""
        return np.concatenate([stretch.patch_lengths for stretch in self.stretches])

    def read(self, first: int = 0, stop: int | None = None) -> Window:
        """Reads patches, and nothing of the others.

        Args:
            first: index of the first one.
            stop: index after the last one, at least `first`; may lie beyond the window; None reads to its end.
        """
        stop = len(self.patch_lengths) if stop is None else stop
        pieces = self._pieces(first, stop)
        ends = itertools.accumulate(piece.stop - piece.start for piece in pieces)
        tags = [piece.strand.tag_bytes_at(piece.start) for piece in pieces]
        entropies = [piece.entropies.read(piece.start, piece.stop) for piece in pieces if piece.entropies is not None]
        return Window(
            bases=_end_to_end([piece.strand.read(piece.start, piece.stop) for piece in pieces]),
            patch_lengths=self.patch_lengths[first:stop],
            start=pieces[0].start,
            num_leading_tag_bytes=tags[0],
            num_cut_patches=self.num_cut_patches,
            entropies=_end_to_end(entropies) if entropies else None,
            seams=tuple(Seam(place, num_tag_bytes) for place, num_tag_bytes in zip(ends, tags[1:], strict=False)),
        )

    def _pieces(self, first: int, stop: int) -> list[_Piece]:
        """What of each stretch holds some of the patches; an empty piece where none does."""
        pieces = []
        for start, lengths, strand, entropies in self.stretches:
            begin = start + int(lengths[:first].sum(dtype=np.int64))
            end = begin + int(lengths[first:stop].sum(dtype=np.int64))
            pieces.append(_Piece(begin, end, strand, entropies))
            first, stop = max(0, first - len(lengths)), max(0, stop - len(lengths))
        return [piece for piece in pieces if piece.start < piece.stop] or pieces[:1]


class _Piece(NamedTuple):
    """Bases [start, stop) of a stream."""

    start: int
    stop: int
    strand: StrandReader
    entropies: EntropyReader | None


def _end_to_end(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class WindowCutter(Protocol):
    """Cuts windows in the loader, in place of stored boundaries. A pure function of what it is given."""

    @property
    def needs_entropies(self) -> bool:
        """Whether it reads entropies."""

    @property
    def longest_patch_bases(self) -> int:
        """No patch that it makes is longer."""

    def cut(
        self,
        bases: Bytes,
        entropies: NDArray[np.float32] | None,
        num_leading_tag_bytes: int,
        key: bytes,
        progress: float,
    ) -> NDArray[np.int32]:
        """Cuts the bases of one window.

        Args:
            bases: uint8 [L], case as on disk.
            entropies: float32 [L], nats, where they are needed.
            num_leading_tag_bytes: bytes at the start that belong to an opening tag.
            key: of the window (see `order.order_key`); chance follows from it.
            progress: how much of the training is behind it, from 0 to 1.

        Returns:
            int32 [P], in bases; they sum to L.
        """


class WindowReader:
    """Reads windows of one strand of a dataset; each touches only its own bytes and boundary blocks.

    Args:
        prefix: path of the dataset without its suffix.
        annotation: name of the patch boundaries; None: each base a patch.
        strand: "forward" or "reverse".
        reader: the open dataset, where several readers share one.
        left_out: the fold that training windows leave out.

    Raises:
        DataError: the data or the boundaries are missing, broken, or don't belong together.
    """

    def __init__(
        self,
        prefix: Path,
        annotation: str | None = "patches",
        strand: Strand = "forward",
        reader: IndexedReader | None = None,
        left_out: LeftOut | None = None,
    ) -> None:
        self.prefix, self.annotation = prefix, annotation
        reader = reader or IndexedReader(prefix)
        self.bases = StrandReader(reader, strand)
        self.ring = Ring(stretches_without(reader, strand, left_out) if left_out else [(0, self.bases.num_bytes)])
        self._entropies: EntropyReader | None = None
        self._entropies_in_windows = False
        if annotation is None:
            self.boundaries: Boundaries = SingleBases(self.bases.num_bytes)
            return
        self.boundaries = BoundaryReader(prefix, annotation, strand)
        if self.bases.num_bytes != self.boundaries.num_bytes:
            raise DataError(
                f"{data_path(prefix)} has {self.bases.num_bytes:,} bytes, but "
                f"{data_path(boundary_prefix(prefix, annotation, strand))} describes "
                f"{self.boundaries.num_bytes:,}: prepare and annotate the data again"
            )

    def open_entropies(self, in_windows: bool = False) -> None:
        """Makes the stored entropies ready for `cut_window`.

        Args:
            in_windows: whether windows hold their bases' entropies from here on.

        Raises:
            DataError: none were stored with the boundaries, or they are of other data.
        """
        assert self.annotation is not None
        self._entropies = EntropyReader(self.prefix, self.annotation, self.bases.strand)
        self._entropies_in_windows = in_windows

    @property
    def num_bytes(self) -> int:
        """Length of the stream in bases."""
        return self.bases.num_bytes

    @property
    def longest_patch_bases(self) -> int:
        """Length of the strand's longest patch."""
        return self.boundaries.longest_patch_bases

    def num_windows(self, window_bases: int, offset: int = 0) -> int:
        """One more than the index of the last window in which a patch starts."""
        return (self.boundaries.last_start - offset) // window_bases + 1

    def window(self, index: int, window_bases: int, offset: int = 0, max_patches: int | None = None) -> FoundWindow:
        """The patches that start in [offset + index * window_bases, offset + (index + 1) * window_bases).

        Args:
            index: k; -1 with a positive offset is the window before it.
            window_bases: W.
            offset: o, in bases.
            max_patches: patches beyond that many are cut off; None never cuts.

        Returns:
            The window, clipped at the stream's start and end; empty where no patch starts.
        """
        start = offset + index * window_bases
        return self.find(start, start + window_bases, max_patches)

    def ring_window(self, index: int, window_bases: int, offset: int, max_patches: int | None = None) -> FoundWindow:
        """As `window`, with the stream read as a ring: what lies past its end is at its start.

        Args:
            index: 0 to ceil(ring.num_bytes / window_bases) - 1.
            window_bases: W, at most the ring's length.
            offset: o, in [0, W).
            max_patches: as in `window`.
        """
        assert 0 <= offset < window_bases <= self.ring.num_bytes
        pieces = self.ring.pieces(offset + index * window_bases, window_bases)
        return FoundWindow.of((self.stretch(*piece) for piece in pieces), max_patches)

    def stretch(self, start: int, stop: int, end: int) -> Stretch:
        """The patches that start in [start, stop), the last one of them cut off at `end`."""
        first, lengths = self.boundaries.patches(start, stop)
        if len(lengths):
            # A stretch may end within a patch: what follows is left out.
            lengths[-1] -= max(0, first + int(lengths.sum(dtype=np.int64)) - end)
        return self._stretch(first, lengths)

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
        """As `ring_window`, with boundaries that are found here and now instead of stored ones.

        All bases of the window are looked at for that, and their entropies where the cutter needs them: then
        `open_entropies` comes first.

        Args:
            index: as in `ring_window`.
            window_bases: W, exactly the window's length if nothing is cut off.
            offset: o, in [0, W).
            cutter: finds the boundaries.
            key: of the window, for the cutter.
            progress: of the training, for the cutter.
            max_patches: as in `window`.
        """
        pieces = self.ring.pieces(offset + index * window_bases, window_bases)
        stretches = (self.cut_stretch(start, stop, cutter, key, progress) for start, stop, _ in pieces)
        return FoundWindow.of(stretches, max_patches)

    def cut_stretch(self, start: int, stop: int, cutter: WindowCutter, key: bytes, progress: float) -> Stretch:
        """Bases [start, stop), cut here and now; see `cut_window`."""
        bases = self.bases.read(start, stop)
        entropies = self._entropies.read(start, stop) if self._entropies is not None else None
        return self._stretch(start, cutter.cut(bases, entropies, self.bases.tag_bytes_at(start), key, progress))

    def find(self, start: int, stop: int, max_patches: int | None = None) -> FoundWindow:
        """The patches that start in [start, stop), clipped to the stream.

        Args:
            start: first base.
            stop: base after the last one.
            max_patches: patches beyond that many are cut off; None never cuts.
        """
        return FoundWindow.of([self._stretch(*self.boundaries.patches(start, stop))], max_patches)

    def _stretch(self, start: int, patch_lengths: NDArray[np.int32]) -> Stretch:
        return Stretch(start, patch_lengths, self.bases, self._entropies if self._entropies_in_windows else None)
