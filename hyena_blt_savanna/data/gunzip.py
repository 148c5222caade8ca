"""Gzip streams: uncompressed by ISA-L where the package `isal` is installed, several times as fast, else by zlib."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

try:
    from isal import igzip, isal_zlib
except ImportError:
    _GzipFile: Any = gzip.GzipFile
    GZIP_ERRORS: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
else:
    _GzipFile = igzip.IGzipFile
    GZIP_ERRORS = (EOFError, zlib.error, cast(type[Exception], isal_zlib.error), gzip.BadGzipFile)
"""What reading a gzip stream raises where it is cut off (EOFError) or broken."""

CHUNK_BYTES = 1 << 22
_MAGIC = b"\x1f\x8b"


def is_gzip(path: Path) -> bool:
    """Whether a file is gzip by its content, whatever its name."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def starts_gzip(data: bytes) -> bool:
    """Whether these are the first bytes of a gzip stream."""
    return data.startswith(_MAGIC)


def gunzip(file: IO[bytes]) -> IO[bytes]:
    """The uncompressed content of a gzip stream, of one member or many (bgzip)."""
    return cast(IO[bytes], _GzipFile(fileobj=file, mode="rb"))


def in_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """What a stream holds, in pieces of 4 MiB."""
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


def gzip_problem(error: Exception) -> str:
    """What one of `GZIP_ERRORS` says about a file, and what to do."""
    what = "ends in the middle of the compressed data" if isinstance(error, EOFError) else f"is broken ({error})"
    return f"the gzip file {what}: copy or download it again"
