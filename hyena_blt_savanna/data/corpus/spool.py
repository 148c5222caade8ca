"""A record that is being put together: in memory, and beyond 32 MiB in a file without a name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hyena_blt_savanna.data.whole_files import reporting_full_disk

_HELD_BYTES = 1 << 25
_PIECE_BYTES = 1 << 22


class Spool:
    """Takes bytes, and gives any stretch of them back in pieces; a context manager.

    Args:
        folder: where long records lie meanwhile; it must exist.

    Raises:
        DiskFullError: from `write`, when the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._num_in_file = 0

    def __len__(self) -> int:
        """Bytes so far."""
        return self._num_in_file + len(self._held)

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        self._held += data
        if len(self._held) > _HELD_BYTES:
            with reporting_full_disk(self._folder):
                if self._file is None:
                    # Closed by `clear` and `close`.
                    self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
                self._file.seek(self._num_in_file)
                self._file.write(self._held)
            self._num_in_file += len(self._held)
            self._held.clear()

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes [start, stop), in pieces of 4 MiB at most."""
        if self._file is None and stop - start <= _PIECE_BYTES:
            yield bytes(self._held[start:stop])
            return
        for begin in range(start, stop, _PIECE_BYTES):
            end = min(begin + _PIECE_BYTES, stop)
            in_file = min(end, self._num_in_file)
            parts = []
            if begin < in_file:
                assert self._file is not None
                self._file.seek(begin)
                parts.append(self._file.read(in_file - begin))
            parts.append(bytes(self._held[max(0, begin - self._num_in_file) : max(0, end - self._num_in_file)]))
            yield b"".join(parts)

    def clear(self) -> None:
        """Forgets everything."""
        self._held.clear()
        self._num_in_file = 0
        self.close()

    def close(self) -> None:
        """Gives the space on the disk back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
