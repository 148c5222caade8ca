"""Rows of JSON, one a line: the letters under one key, whatever the other keys and whatever the length of a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson

from hyena_blt_savanna.data.corpus.inputs import RecordError
from hyena_blt_savanna.data.corpus.raw_record import RawRecord
from hyena_blt_savanna.data.corpus.row_scanner import RowError, RowScanner

_LONG_ROW_BYTES = 1 << 24
"""Longer rows are scanned as they come."""


def read_rows(path: Path, chunks: Iterator[bytes], text_key: str) -> Iterator[RawRecord]:
    """The rows of a file; empty lines are passed over.

    Args:
        path: the file, for messages.
        chunks: its content, cut anywhere.
        text_key: key of the sequence.
    """
    number = line = 0
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        for text in whole:
            line += 1
            if text.strip():
                number += 1
                yield RawRecord(number, "", _parse(path, text, line, text_key), line=line)
        if len(held) > _LONG_ROW_BYTES:
            line, number = line + 1, number + 1
            long_row = _LongRow(held, chunks)
            yield RawRecord(number, "", _scan(path, long_row, line, text_key), line=line)
            held = long_row.rest()
            # What follows may hold whole rows; they are cut off with the next chunk, or below.
    for text in held.split(b"\n"):
        line += 1
        if text.strip():
            number += 1
            yield RawRecord(number, "", _parse(path, text, line, text_key), line=line)


def _parse(path: Path, text: bytes, line: int, text_key: str) -> Iterator[bytes]:
    try:
        row = orjson.loads(text)
        if not isinstance(row, dict):
            raise RowError(f"a row must be an object, {{...}}, not {type(row).__name__}")
        if text_key not in row:
            keys = ", ".join(map(repr, row)) or "none"
            raise RowError(f"no key {text_key!r}, its keys: {keys}; name another with text_key")
        letters = row[text_key]
        if not isinstance(letters, str):
            raise RowError(f"{text_key!r} is no text but {type(letters).__name__}")
        yield letters.encode("ascii")
    except UnicodeError as error:
        raise RecordError(path, f"line {line:,}", f"bytes that are no text of letters ({error})") from error
    except orjson.JSONDecodeError as error:
        raise RecordError(path, f"line {line:,}", f"no row of JSON ({error.msg} at byte {error.pos:,})") from error
    except RowError as error:
        raise RecordError(path, f"line {line:,}", str(error)) from error


def _scan(path: Path, row: _LongRow, line: int, text_key: str) -> Iterator[bytes]:
    try:
        yield from RowScanner(row.pieces()).text(text_key)
    except RowError as error:
        raise RecordError(path, f"line {line:,}", str(error)) from error


class _LongRow:
    """A row that has only begun, and the chunks that it goes on in."""

    def __init__(self, begin: bytes, chunks: Iterator[bytes]) -> None:
        self._begin: bytes | None = begin
        self._chunks = chunks
        self._rest: bytes | None = None

    def pieces(self) -> Iterator[bytes]:
        """What is left of the row, without its line end."""
        if self._begin is not None:
            begin, self._begin = self._begin, None
            yield begin
        while self._rest is None:
            chunk = next(self._chunks, b"")
            end = chunk.find(b"\n")
            if chunk and end < 0:
                yield chunk
                continue
            self._rest = chunk[end + 1 :] if chunk else b""
            if chunk:
                yield chunk[:end]

    def rest(self) -> bytes:
        """What was read of the lines after it."""
        for _ in self.pieces():
            pass
        assert self._rest is not None
        return self._rest
