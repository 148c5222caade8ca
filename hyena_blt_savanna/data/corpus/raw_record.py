"""A record as an input has it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class RawRecord:
    """One record of an input.

    Attributes:
        number: in its input, from 1.
        name: its name; that of a row is empty.
        pieces: its letters as they stand there, with tags, marks and white space; can be read once.
        member: name of the file in an archive; empty outside.
        line: number of its line, where the input has a record a line; else 0.
    """

    number: int
    name: str
    pieces: Iterable[bytes]
    member: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        """Where it stands, for a message."""
        place = f"line {self.line:,}" if self.line else f"record {self.number:,}"
        place += f" ({self.name})" if self.name else ""
        return f"member {self.member}, {place}" if self.member else place
