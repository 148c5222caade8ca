"""The records of an input, one after the other, each as a stream of pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, cast

from hyena_blt_savanna.data.corpus.byte_streams import DigestedFile, archive_members, naming, uncompressed
from hyena_blt_savanna.data.corpus.fastq import QualityRule, read_fastq
from hyena_blt_savanna.data.corpus.inputs import CorpusInput, InputError, InputKind, kind_of_member
from hyena_blt_savanna.data.corpus.raw_record import RawRecord
from hyena_blt_savanna.data.corpus.rows import read_rows
from hyena_blt_savanna.data.fasta import header_and_sequence
from hyena_blt_savanna.data.gunzip import in_chunks


@dataclass(frozen=True)
class Reading:
    """How inputs are read.

    Attributes:
        text_key: key of the sequence in rows of JSON; other keys are passed over.
        quality: what becomes of letters of low quality in FASTQ.
    """

    text_key: str
    quality: QualityRule


def read_records(given: CorpusInput, file: DigestedFile, reading: Reading) -> Iterator[RawRecord]:
    """Reads an input in constant memory.

    A record's pieces must be taken before the next record is asked for; what is left of them is passed over. A
    record that can't be read raises `RecordError` from its pieces, and the next one can be asked for after that.

    Args:
        given: the input.
        file: its bytes.
        reading: how.

    Raises:
        InputError: the input is cut off, broken or empty, or not what its name says.
    """
    number = 0
    with naming(given), uncompressed(cast(IO[bytes], file)) as content:
        if given.kind != "tar":
            for record in _of_kind(given, given.kind, content, reading):
                number += 1
                yield record
        else:
            for name, packed in archive_members(given, content):
                kind = kind_of_member(name)
                if kind is None:
                    continue
                with naming(given, f"member {name}"), uncompressed(packed) as member:
                    for record in _of_kind(given, kind, member, reading):
                        number += 1
                        record.number, record.member = number, name
                        yield record
    if not number:
        raise InputError(given.path, "", "no records in it: remove it from the inputs, or download it again")


def _of_kind(given: CorpusInput, kind: InputKind, file: IO[bytes], reading: Reading) -> Iterator[RawRecord]:
    chunks = in_chunks(file)
    if kind == "rows":
        return read_rows(given.path, chunks, reading.text_key)
    return _read_fasta(given, chunks) if kind == "fasta" else read_fastq(given.path, chunks, reading.quality)


class _UntilHeader:
    """The sequence up to the next header, which is kept."""

    def __init__(self, events: Iterator[tuple[bool, bytes]]) -> None:
        self._events = events
        self._done = False
        self.header: bytes | None = None

    def __iter__(self) -> Iterator[bytes]:
        if self._done:
            return
        for is_header, text in self._events:
            if is_header:
                self.header, self._done = text, True
                return
            yield text
        self._done = True


def _read_fasta(given: CorpusInput, chunks: Iterable[bytes]) -> Iterator[RawRecord]:
    events = header_and_sequence(iter(chunks))
    pieces = _UntilHeader(events)
    for text in pieces:
        if text.strip():
            raise InputError(given.path, "", f"no '>' before {text[:20].decode(errors='replace')!r}: no FASTA file")
    number = 0
    while pieces.header is not None:
        number += 1
        header, pieces = pieces.header, _UntilHeader(events)
        words = header.decode(errors="replace").split(maxsplit=1)
        yield RawRecord(number, words[0] if words else "", pieces)
        for _ in pieces:
            pass
