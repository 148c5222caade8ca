"""The bytes of an input: parts one after the other, uncompressed, with the digest of what lay on the disk."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from hyena_blt_savanna.data.corpus.inputs import CorpusInput, InputError
from hyena_blt_savanna.data.gunzip import GZIP_ERRORS, gunzip, gzip_problem, starts_gzip

_PEEK_BYTES = 512
_TAR_BLOCK_BYTES = 512


class DigestedFile(io.RawIOBase):
    """Files read one after the other, with the digest of all that was read.

    Args:
        paths: the files, in order.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills a buffer as far as the next bytes go; 0 at the end of the last file."""
        view = memoryview(buffer)
        while True:
            if self._file is None:
                if not self._paths:
                    return 0
                self._file = self._paths.pop(0).open("rb", buffering=0)
            num_read = cast(io.RawIOBase, self._file).readinto(view) or 0
            if num_read:
                self._digest.update(view[:num_read])
                return num_read
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Closes what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def sha256(self) -> str:
        """Digest of all the files, in hexadecimal; what was not read yet is read for it."""
        buffer = bytearray(1 << 20)
        while self.readinto(buffer):
            pass
        return self._digest.hexdigest()


@contextmanager
def uncompressed(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """A stream, uncompressed if it is gzip by its content."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, file), 1 << 20)
    if not starts_gzip(buffered.peek(_PEEK_BYTES)):
        yield buffered
        return
    with gunzip(buffered) as content:
        yield content


@contextmanager
def naming(given: CorpusInput, place: str = "") -> Iterator[None]:
    """Names the input in what is raised where compressed data or an archive are cut off or broken.

    Raises:
        InputError: for any of `GZIP_ERRORS` and of tarfile's errors.
    """
    try:
        yield
    except GZIP_ERRORS as error:
        raise InputError(given.path, place, gzip_problem(error)) from error
    except tarfile.TarError as error:
        raise InputError(given.path, place, f"the archive is cut off or none ({error}): copy it again") from error


def archive_members(given: CorpusInput, file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    """The files in a tar archive, in order; nothing is unpacked to the disk.

    Args:
        given: the input, for messages.
        file: its bytes, uncompressed.

    Yields:
        Name and content of each regular file.

    Raises:
        InputError: a path leads outside the archive, or its end is missing.
        tarfile.TarError: the archive is cut off or none.
    """
    watched = _Tail(file)
    with tarfile.open(fileobj=cast(IO[bytes], watched), mode="r|") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(given.path, f"member {member.name!r}", "a path outside the archive: not read")
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
    if watched.last_block.strip(b"\0"):
        raise InputError(given.path, "", "the archive ends without its end mark, so it was cut off: copy it again")


class _Tail:
    """Passes a stream on and remembers its last block: an archive closes with blocks of zeros."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.last_block = b"\1"

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(num_bytes)
        if data:
            self.last_block = (self.last_block + data[-_TAR_BLOCK_BYTES:])[-_TAR_BLOCK_BYTES:]
        return data
