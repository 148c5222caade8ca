"""Both strands of a stream, read in slices.

The forward stream is the file. In the reverse stream each document is replaced, in its place, by its reverse
complement: its tag stays in front, its end-of-document byte last. So both have the same document starts, and a
slice of the reverse stream needs only the bytes that it mirrors.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import Strand
from hyena_blt_savanna.nucleotides import COMPLEMENT, END_OF_DOCUMENT, Bytes, tag_length


class StrandReader:
    """Reads slices of one strand of a dataset.

    Args:
        reader: the dataset, uint8.
        strand: "forward" or "reverse".
    """

    def __init__(self, reader: IndexedReader, strand: Strand) -> None:
        assert reader.stream.dtype == np.uint8
        self.strand = strand
        self.document_starts = reader.document_starts
        self._stream = reader.stream

    @property
    def num_bytes(self) -> int:
        """Length of the stream in bytes."""
        return len(self._stream)

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of the strand, case as on disk.

        Args:
            start: first byte, at least 0.
            stop: byte after the last one, at most `num_bytes`.

        Returns:
            uint8 [stop - start]; a read-only view where the strand is the file, else a new array.
        """
        assert 0 <= start <= stop <= self.num_bytes
        if self.strand == "forward":
            return self._stream[start:stop]
        out = np.empty(stop - start, dtype=np.uint8)
        index = self.document_at(start)
        position = start
        while position < stop:
            begin, end = int(self.document_starts[index]), int(self.document_starts[index + 1])
            until = min(end, stop)
            self._read_reversed(begin, end, position, out[position - start : until - start])
            position, index = until, index + 1
        return out

    def document_at(self, position: int) -> int:
        """Index of the document that a position lies in."""
        return int(np.searchsorted(self.document_starts, position, side="right")) - 1

    def tag_bytes_at(self, position: int) -> int:
        """Number of bytes from a position to the end of the opening tag that it lies in; 0 outside a tag."""
        if position >= self.num_bytes:
            return 0
        index = self.document_at(position)
        begin, end = int(self.document_starts[index]), int(self.document_starts[index + 1])
        return max(0, begin + tag_length(self._stream[begin:end]) - position)

    def _read_reversed(self, begin: int, end: int, position: int, out: Bytes) -> None:
        """Fills `out` with the bytes from `position` on of the document at [begin, end), reversed."""
        body_begin = begin + tag_length(self._stream[begin:end])
        body_end = end - int(end > body_begin and self._stream[end - 1] == END_OF_DOCUMENT)
        num_tag = min(max(0, body_begin - position), len(out))
        out[:num_tag] = self._stream[position : position + num_tag]
        body_stop = min(position + len(out), body_end)
        body_start = max(position, body_begin)
        num_body = max(0, body_stop - body_start)
        if num_body:
            # Base p of the reversed body is base begin + end - 1 - p of the forward one.
            first = body_begin + body_end - body_stop
            _reverse_complement(self._stream[first : first + num_body], COMPLEMENT, out[num_tag : num_tag + num_body])
        out[num_tag + num_body :] = END_OF_DOCUMENT


@njit(cache=True, nogil=True)
def _reverse_complement(source: Bytes, complement: Bytes, out: Bytes) -> None:
    last = len(source) - 1
    for i in range(len(source)):
        out[i] = complement[source[last - i]]
