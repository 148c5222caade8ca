"""A row of JSON as a stream: the text under one key, piece by piece, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator

_WHITE_SPACE = b" \t\r"
_ESCAPES = {
    ord(escaped): letter
    for escaped, letter in zip('"\\/bfnrt', (b'"', b"\\", b"/", b"\b", b"\f", b"\n", b"\r", b"\t"), strict=True)
}
_LONGEST_KEY_BYTES = 1 << 10


class RowError(ValueError):
    """What is wrong with a row."""


class RowScanner:
    """Reads one object of JSON.

    Args:
        pieces: its bytes, cut anywhere.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._data = b""
        self._at = 0
        self._num_before = 0

    def text(self, wanted: str) -> Iterator[bytes]:
        """The text under a key, as ASCII; the rest of the object is read to its end.

        Args:
            wanted: the key.

        Raises:
            RowError: the row is no object of JSON, lacks the key, or has no text of letters there.
        """
        keys: list[str] = []
        self._expect(b"{")
        while self._next() != ord("}") or keys:
            key = b"".join(self._string(_LONGEST_KEY_BYTES, is_letters=False)).decode(errors="replace")
            keys.append(key)
            self._expect(b":")
            if key == wanted:
                if self._next() != ord('"'):
                    raise RowError(f"{wanted!r} is no text")
                yield from self._string()
            else:
                self._pass_over()
            if self._next() == ord("}"):
                break
            self._expect(b",")
        self._expect(b"}")
        if self._next() is not None:
            raise self._problem()
        if wanted not in keys:
            found = ", ".join(map(repr, keys)) or "none"
            raise RowError(f"no key {wanted!r}, its keys: {found}; name another with text_key")

    def _fill(self) -> bool:
        """Goes on to the next piece that holds anything."""
        self._num_before += len(self._data)
        self._data, self._at = next((piece for piece in self._pieces if piece), b""), 0
        return bool(self._data)

    def _take(self) -> int:
        if self._at == len(self._data) and not self._fill():
            raise RowError("no row of JSON: it ends in the middle")
        self._at += 1
        return self._data[self._at - 1]

    def _next(self) -> int | None:
        """The next byte that is no white space, which is not taken; None at the end."""
        while True:
            if self._at == len(self._data) and not self._fill():
                return None
            if self._data[self._at] not in _WHITE_SPACE:
                return self._data[self._at]
            self._at += 1

    def _expect(self, byte: bytes) -> None:
        found = self._next()
        if found is None:
            raise RowError("no row of JSON: it ends in the middle")
        if found != byte[0]:
            raise self._problem()
        self._at += 1

    def _problem(self) -> RowError:
        found = self._data[self._at : self._at + 10].decode("latin-1")
        return RowError(f"no row of JSON ({found!r} at byte {self._num_before + self._at:,})")

    def _string(self, most_bytes: int | None = None, is_letters: bool = True) -> Iterator[bytes]:
        """What stands between the next quotation marks: letters with escapes read, or anything as it stands."""
        self._expect(b'"')
        num_bytes = 0
        while True:
            if self._at == len(self._data) and not self._fill():
                raise RowError("no row of JSON: it ends in the middle of a text")
            end = self._data.find(b'"', self._at)
            end = len(self._data) if end < 0 else end
            escape = self._data.find(b"\\", self._at, end)
            stop = end if escape < 0 else escape
            piece, self._at = self._data[self._at : stop], stop
            if is_letters and not piece.isascii():
                raise RowError("bytes that are no text of letters")
            if piece:
                yield piece
            num_bytes += len(piece)
            if most_bytes is not None and num_bytes > most_bytes:
                raise RowError(f"a key of more than {most_bytes:,} bytes")
            if escape >= 0:
                self._at += 1
                yield self._escaped() if is_letters else bytes([self._take()])
            elif stop < len(self._data):
                self._at += 1
                return

    def _escaped(self) -> bytes:
        byte = self._take()
        if byte in _ESCAPES:
            return _ESCAPES[byte]
        code = bytes(self._take() for _ in range(4)) if byte == ord("u") else b""
        try:
            return chr(int(code, 16)).encode("ascii")
        except (ValueError, UnicodeEncodeError):
            shown = f"\\{chr(byte)}{code.decode('latin-1')}"
            raise RowError(f"bytes that are no text of letters ({shown})") from None

    def _pass_over(self) -> None:
        """Reads a value of any kind, of which only the brackets and texts are looked at."""
        depth = 0
        while True:
            byte = self._next()
            if byte is None:
                raise RowError("no row of JSON: it ends in the middle")
            if byte == ord('"'):
                for _ in self._string(is_letters=False):
                    pass
            elif byte in b"[{":
                depth += 1
                self._at += 1
            elif byte in b"]}" and depth:
                depth -= 1
                self._at += 1
            elif byte in b",}]" and not depth:
                return
            else:
                self._at += 1
