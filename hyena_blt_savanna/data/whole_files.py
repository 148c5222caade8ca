"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.errors import DiskFullError

PARTIAL_SUFFIX = ".partial"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The memory of an array's values in C order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


@contextmanager
def reporting_full_disk(folder: Path) -> Iterator[None]:
    """Says what to do where a temporary file fills the disk.

    Raises:
        DiskFullError: in place of the system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        free = shutil.disk_usage(folder).free
        raise DiskFullError(
            f"{folder}: no space left on the device ({free:,} bytes are free): free some space or choose another folder"
        ) from error


class WholeWriter(ABC):
    """A context manager: what it writes appears when the block ends well, and nothing is left of it otherwise."""

    @abstractmethod
    def close(self) -> None:
        """Completes what was written and gives it its name."""

    @abstractmethod
    def discard(self) -> None:
        """Removes what was written so far; does nothing to what is complete."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.discard()


class WholeFile:
    """Writes `PATH.partial`, and renames it to `PATH` when it is complete and on the disk.

    As a context manager it commits when the block ends well and removes the partial file otherwise.

    Args:
        path: where the whole file goes; its folder is made if need be.

    Raises:
        DiskFullError: from any method, when the disk is full; the partial file is gone by then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_bytes = 0
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] | None = None
        with self._reporting(0):
            self._file = self._partial.open("wb")

    def write(self, data: bytes | bytearray | memoryview | NDArray[Any]) -> None:
        """Appends bytes, or an array's values in C order."""
        view = as_bytes(data) if isinstance(data, np.ndarray) else memoryview(data)
        assert self._file is not None
        file = self._file
        self._run(lambda: file.write(view), len(view))
        self.num_bytes += len(view)

    def commit(self) -> None:
        """Makes the file visible under its own name."""
        if self._file is None:
            return
        file = self._file
        self._run(file.flush, 0)
        self._run(lambda: os.fsync(file.fileno()), 0)
        self._run(file.close, 0)
        self._file = None
        try:
            self._partial.replace(self.path)
        except OSError:
            self._partial.unlink(missing_ok=True)
            raise

    def discard(self) -> None:
        """Removes what was written; does nothing after `commit`."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            file.close()
        except OSError as error:
            # Closing flushes what is buffered, which fails again on a full disk.
            if error.errno not in _NO_SPACE:
                raise
        finally:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        else:
            self.discard()

    def _run(self, action: Callable[[], Any], num_bytes: int) -> None:
        with self._reporting(num_bytes):
            action()

    @contextmanager
    def _reporting(self, num_bytes: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NO_SPACE:
                self.discard()
                raise
            needed = self.num_bytes + num_bytes
            self.discard()
            free = shutil.disk_usage(self.path.parent).free
            raise DiskFullError(
                f"{self.path}: no space left on the device: at least {needed:,} bytes are needed and {free:,} are free "
                "now that the unfinished file is removed; free some space or choose another folder"
            ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Writes a small file whole or not at all.

    Raises:
        DiskFullError: the disk is full.
    """
    with WholeFile(path) as file:
        file.write(data)
