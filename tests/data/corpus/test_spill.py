"""Spills: long documents pass through, and are never held."""

from collections.abc import Iterator
from pathlib import Path

from hyena_blt_savanna.data.corpus.spill import SpillWriter, spill_path


def test_a_long_document_is_written_piece_by_piece(tmp_path: Path) -> None:
    piece, num_pieces = b"ACGT" * (1 << 18), 24
    written: list[int] = []

    def pieces(writer: SpillWriter) -> Iterator[bytes]:
        for _ in range(num_pieces):
            written.append(writer._data.num_bytes)
            yield piece

    with SpillWriter(tmp_path / "spill", 1, frozenset([0])) as writer:
        writer.add(0, b"", pieces(writer), num_pieces * len(piece))
    assert written == [number * len(piece) for number in range(num_pieces)]
    assert spill_path(tmp_path / "spill").read_bytes() == piece * num_pieces + b"\0"
