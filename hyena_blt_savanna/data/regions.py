"""Regions of sequences as a user writes them: RECORD:FROM-TO."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

from hyena_blt_savanna.data.errors import DataError

_REGION = re.compile(r"(?P<name>.+):(?P<first>[\d,]*\d[\d,]*)-(?P<last>[\d,]*\d[\d,]*)")


class RegionError(DataError):
    """Text that is no region: the message quotes it and shows one."""


class Region(NamedTuple):
    """Bases [start, stop) of one record, counted from 0."""

    name: str
    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads RECORD:FROM-TO, counted from 1, both ends included; a record's name may hold colons.

        Raises:
            RegionError: the text is something else, or the region has no bases.
        """
        found = _REGION.fullmatch(text)
        if found is None:
            raise RegionError(f"region {text!r} is not RECORD:FROM-TO, such as chr20:1-64,444,167 (counted from 1)")
        first, last = (int(found[end].replace(",", "")) for end in ("first", "last"))
        if not 1 <= first <= last:
            raise RegionError(f"region {text!r}: bases are counted from 1, and the first comes before the last")
        return cls(found["name"], first - 1, last)
