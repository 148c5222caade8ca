"""FASTQ: reads with a quality for each base, which decides how much a base counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.corpus.inputs import InputError
from hyena_blt_savanna.data.corpus.raw_record import RawRecord
from hyena_blt_savanna.nucleotides import UNKNOWN

_LONGEST_READ_BASES = 1 << 26
_LOWEST = 33
_TO_LOWER = 0x20
_LETTERS = np.zeros(256, dtype=np.bool_)
_LETTERS[ord("A") : ord("Z") + 1] = _LETTERS[ord("a") : ord("z") + 1] = True


class QualityRule(Config):
    """What becomes of bases that the sequencer was unsure of."""

    rule: Literal["keep", "lower", "unknown"] = "keep"
    """keep: nothing; lower: they are written in lower case, so that they weigh as repeats do (repeat_weight in
    training); unknown: they become N, which is never scored."""
    least: int = Field(default=20, ge=0, le=93)
    """Phred quality below which a base is unsure: 20 is an error in 100."""


def read_fastq(path: Path, chunks: Iterator[bytes], rule: QualityRule) -> Iterator[RawRecord]:
    """The reads of a FASTQ file, four lines each; one is held in memory at a time.

    Args:
        path: the file, for messages.
        chunks: its content, cut anywhere.
        rule: what becomes of unsure bases.

    Raises:
        InputError: a read that is not four lines, of two lengths, above 67,108,864 bases, or cut off.
    """
    lines = _lines(path, chunks)
    number = 0
    for header in lines:
        if not header:
            continue
        number += 1
        place = f"record {number:,}"
        letters, plus, quality = (next(lines, None) for _ in range(3))
        if letters is None or plus is None or quality is None:
            raise InputError(path, place, "ends in the middle of a read: copy or download it again")
        if not header.startswith(b"@") or not plus.startswith(b"+"):
            raise InputError(path, place, "a read is four lines, the first opens with '@' and the third with '+'")
        if len(letters) != len(quality):
            what = f"{len(letters):,} bases with {len(quality):,} qualities"
            raise InputError(path, place, f"{what}: a read has its bases on one line and as many qualities on another")
        words = header[1:].decode(errors="replace").split(maxsplit=1)
        yield RawRecord(number, words[0] if words else "", [_weighed(letters, quality, rule)])


def _weighed(letters: bytes, quality: bytes, rule: QualityRule) -> bytes:
    if rule.rule == "keep":
        return letters
    bases = np.frombuffer(letters, dtype=np.uint8).copy()
    unsure = (np.frombuffer(quality, dtype=np.uint8) < _LOWEST + rule.least) & _LETTERS[bases]
    if rule.rule == "lower":
        bases[unsure] |= _TO_LOWER
    else:
        bases[unsure] = UNKNOWN
    return bases.tobytes()


def _lines(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    held = b""
    for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")
        if len(held) > _LONGEST_READ_BASES:
            raise InputError(path, "", f"a line of more than {_LONGEST_READ_BASES:,} bytes: no FASTQ file")
    if held:
        yield held.removesuffix(b"\r")
