"""Windows: whole patches from any place of a stream, found without a scan or a table.

Window k of a stream holds the patches that start in [o + kW, o + (k+1)W), for a window size W and an offset o
in bases; its bases end where its last patch ends, so it has at most W + longest patch - 1 of them. Each patch
belongs to exactly one window, whatever W and o are.

Evaluation takes o = 0 and windows 0, 1, ... up to the one with the last patch: every base once. Training moves
the grid by an offset o in [0, W), and reads the stream as a ring: its ceil(num_bytes / W) windows start at o and
go on at the stream's start once they have passed its end. So every base is trained on in every epoch, the number
of windows does not depend on o, and there is no short window before o. Fewer than W bases come twice, others in
each epoch. A window across the seam has a document border there, as it would between any two documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.boundaries import BoundaryReader, boundary_prefix
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader, data_path
from hyena_blt_savanna.data.manifest import Strand
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import Bytes


@dataclass(frozen=True)
class Window:
    """Whole patches of one strand, in stream order.

    Attributes:
        bases: uint8 [L], case as on disk; nothing is put in front.
        patch_lengths: int32 [P], in bases; they sum to L.
        start: position of the first base in its stream.
        num_leading_tag_bytes: bytes at the start that belong to an opening tag.
        num_cut_patches: patches that were left out at the end, because the window had too many.
    """

    bases: Bytes
    patch_lengths: NDArray[np.int32]
    start: int
    num_leading_tag_bytes: int = 0
    num_cut_patches: int = 0


class WindowReader:
    """Reads windows of one strand of a dataset; each touches only its own bytes and boundary blocks.

    Args:
        prefix: path of the dataset without its suffix.
        annotation: name of the patch boundaries.
        strand: "forward" or "reverse".
        reader: the open dataset, where several readers share one.

    Raises:
        DataError: the data or the boundaries are missing, broken, or don't belong together.
    """

    def __init__(
        self,
        prefix: Path,
        annotation: str = "patches",
        strand: Strand = "forward",
        reader: IndexedReader | None = None,
    ) -> None:
        self.prefix = prefix
        self.boundaries = BoundaryReader(prefix, annotation, strand)
        self.bases = StrandReader(reader or IndexedReader(prefix), strand)
        if self.bases.num_bytes != self.boundaries.num_bytes:
            raise DataError(
                f"{data_path(prefix)} has {self.bases.num_bytes:,} bytes, but "
                f"{data_path(boundary_prefix(prefix, annotation, strand))} describes "
                f"{self.boundaries.num_bytes:,}: prepare and annotate the data again"
            )

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

    def window(self, index: int, window_bases: int, offset: int = 0, max_patches: int | None = None) -> Window:
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
        return self.read(start, start + window_bases, max_patches)

    def ring_window(self, index: int, window_bases: int, offset: int, max_patches: int | None = None) -> Window:
        """As `window`, with the stream read as a ring: what lies past its end is at its start.

        Args:
            index: 0 to ceil(num_bytes / window_bases) - 1.
            window_bases: W, at most the stream's length.
            offset: o, in [0, W).
            max_patches: as in `window`.
        """
        assert 0 <= offset < window_bases <= self.num_bytes
        start = (offset + index * window_bases) % self.num_bytes
        stop = start + window_bases
        window = self.read(start, stop, max_patches)
        if stop <= self.num_bytes:
            return window
        left = None if max_patches is None else max_patches - len(window.patch_lengths)
        rest = self.read(0, stop - self.num_bytes, left)
        if window.num_cut_patches:
            # Nothing may follow a cut: the rest is cut off too.
            assert not len(rest.patch_lengths)
        return Window(
            bases=np.concatenate([window.bases, rest.bases]),
            patch_lengths=np.concatenate([window.patch_lengths, rest.patch_lengths]),
            start=window.start if len(window.bases) else rest.start,
            num_leading_tag_bytes=window.num_leading_tag_bytes if len(window.bases) else rest.num_leading_tag_bytes,
            num_cut_patches=window.num_cut_patches + rest.num_cut_patches,
        )

    def read(self, start: int, stop: int, max_patches: int | None = None) -> Window:
        """The patches that start in [start, stop), clipped to the stream.

        Args:
            start: first base.
            stop: base after the last one.
            max_patches: patches beyond that many are cut off; None never cuts.
        """
        first, lengths = self.boundaries.patches(start, stop)
        num_cut = 0 if max_patches is None else max(0, len(lengths) - max_patches)
        lengths = lengths[: len(lengths) - num_cut]
        end = first + int(lengths.sum(dtype=np.int64))
        return Window(
            bases=self.bases.read(first, end),
            patch_lengths=lengths,
            start=first,
            num_leading_tag_bytes=self.bases.tag_bytes_at(first),
            num_cut_patches=num_cut,
        )
