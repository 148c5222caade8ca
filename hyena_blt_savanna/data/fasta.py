"""FASTA files: plain or gzipped, read record by record at the speed of a copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.gunzip import GZIP_ERRORS, gunzip, gzip_problem, in_chunks, is_gzip
from hyena_blt_savanna.nucleotides import BASES, IUPAC, Bytes

_LISTED_NAMES = 8
_WHITE_SPACE = b"\r\n \t"
_ALLOWED = BASES + IUPAC + (BASES + IUPAC).lower()
_PROTEIN_ONLY = b"EFILPQJXZO*"
# RNA is kept in the alphabet of DNA, as databases do.
_U_TO_T = bytes.maketrans(b"Uu", b"Tt")


class FastaError(DataError):
    """A FASTA file that can't be read.

    Args:
        path: the file.
        record: the record, by name or number; None before the first.
        position: base of the record at which reading stopped, from 1; None where no base is to blame.
        what: what is wrong, and what to change.
    """

    def __init__(self, path: Path, record: str | None, position: int | None, what: str) -> None:
        self.path, self.record, self.position = path, record, position
        place = "" if record is None else f", {record}"
        place += "" if position is None else f", base {position:,}"
        super().__init__(f"{path}{place}: {what}")


def no_file(path: Path) -> FastaError:
    """The error for a path that is no file."""
    if path.is_dir():
        return FastaError(path, None, None, "a folder; give FASTA files by their own names")
    return FastaError(path, None, None, "no such file; fetch it first (tools/fetch_genomes.py)")


@dataclass(frozen=True)
class Record:
    """One sequence of a FASTA file.

    Attributes:
        name: header up to the first white space.
        description: the rest of the header.
        sequence: uint8 [L], case kept, U read as T.
    """

    name: str
    description: str
    sequence: Bytes


def read_fasta(path: Path) -> Iterator[Record]:
    """Reads the records of a FASTA file in order, one in memory at a time.

    Gzip is known by its content, in one member or many (bgzip). Windows line ends, blank lines, white space in
    lines, lower case, the IUPAC codes and a missing last line end are accepted; U becomes T.

    Args:
        path: the file.

    Raises:
        FastaError: the file is missing or empty, has no records or text before the first, a record without bases,
            letters outside the nucleotide alphabet (a protein, say), or its gzip data are cut off or broken.
    """
    if not path.is_file():
        raise no_file(path)
    header: bytes | None = None
    number = 0
    parts: list[bytes] = []
    try:
        for is_header, text in header_and_sequence(read_chunks(path)):
            if is_header:
                if header is not None:
                    yield _record(path, header, number, parts)
                header, parts, number = text, [], number + 1
                continue
            letters = text.translate(_U_TO_T, _WHITE_SPACE)
            if not letters:
                continue
            if header is None:
                raise FastaError(path, None, None, f"no '>' before {_quote(letters)}: not a FASTA file")
            if letters.translate(None, _ALLOWED):
                raise _wrong_letter(path, _label(header, number), letters, sum(map(len, parts)))
            parts.append(letters)
    except GZIP_ERRORS as error:
        label = None if header is None else _label(header, number)
        position = None if header is None else sum(map(len, parts)) + 1
        raise FastaError(path, label, position, gzip_problem(error)) from error
    if header is None:
        what = "the file is empty" if path.stat().st_size == 0 else "no records: no line starts with '>'"
        raise FastaError(path, None, None, what)
    yield _record(path, header, number, parts)


def read_record(path: Path, name: str) -> Record:
    """One record of a FASTA file, which is read from its start.

    Args:
        path: the file.
        name: name of the record.

    Raises:
        FastaError: there is no such record, or the file can't be read.
    """
    names = []
    for record in read_fasta(path):
        if record.name == name:
            return record
        names.append(record.name)
    raise _no_record(path, name, names)


def read_region(path: Path, name: str, start: int, stop: int) -> Bytes:
    """Bases [start, stop) of one record, case kept.

    A plain file is read through pyfaidx, which leaves an index, PATH.fai, beside it; a gzipped one from its start.

    Args:
        path: the file.
        name: name of the record.
        start: first base, from 0.
        stop: base after the last one; at most the record's length.

    Returns:
        uint8 [stop - start].

    Raises:
        FastaError: there is no such record or region, or the file can't be read.
    """
    if _is_gzip(path):
        sequence = read_record(path, name).sequence
        return _checked_region(path, name, sequence[start:stop], start, stop, len(sequence))
    import pyfaidx

    try:
        with pyfaidx.Fasta(str(path), as_raw=True, sequence_always_upper=False) as fasta:
            if name not in fasta:
                raise _no_record(path, name, list(fasta.keys()))
            letters, num_bases = fasta[name][start:stop].encode(), len(fasta[name])
    except pyfaidx.FastaIndexingError as error:
        raise FastaError(
            path, None, None, f"can't be indexed ({error}): give all lines of a record one length"
        ) from error
    sequence = np.frombuffer(letters.translate(_U_TO_T), dtype=np.uint8)
    return _checked_region(path, name, sequence, start, stop, num_bases)


def _checked_region(path: Path, name: str, sequence: Bytes, start: int, stop: int, num_bases: int) -> Bytes:
    if not 0 <= start <= stop or len(sequence) != stop - start:
        raise FastaError(
            path, f"record {name!r}", None, f"no region {start + 1:,}-{stop:,} in it: it has {num_bases:,} bases"
        )
    return sequence


def _no_record(path: Path, name: str, names: list[str]) -> FastaError:
    more = f" and {len(names) - _LISTED_NAMES:,} more" if len(names) > _LISTED_NAMES else ""
    return FastaError(
        path, None, None, f"no record named {name!r}; its records: {', '.join(names[:_LISTED_NAMES])}{more}"
    )


def _is_gzip(path: Path) -> bool:
    if not path.is_file():
        raise no_file(path)
    return is_gzip(path)


def read_chunks(path: Path) -> Iterator[bytes]:
    """A file's content in pieces of 4 MiB, uncompressed if it is gzip by its content.

    Args:
        path: the file.

    Raises:
        FastaError: there is no such file.
        GZIP_ERRORS: the compressed data are cut off or broken.
    """
    compressed = _is_gzip(path)
    with path.open("rb") as raw, gunzip(raw) if compressed else nullcontext(raw) as file:
        yield from in_chunks(file)


def header_and_sequence(chunks: Iterator[bytes]) -> Iterator[tuple[bool, bytes]]:
    """Cuts the chunks of a FASTA file into headers and sequence, as they come.

    Args:
        chunks: the file's content, cut anywhere.

    Yields:
        (True, header without '>' and line end) and (False, piece of sequence lines).
    """
    header: list[bytes] | None = None
    line_start = True
    for chunk in chunks:
        position = 0
        while position < len(chunk):
            if header is not None:
                end = chunk.find(b"\n", position)
                header.append(chunk[position : end if end >= 0 else len(chunk)])
                if end < 0:
                    break
                yield True, b"".join(header)
                header, line_start, position = None, True, end + 1
            elif line_start and chunk.startswith(b">", position):
                header, position = [], position + 1
            else:
                end = chunk.find(b"\n>", position)
                piece = chunk[position : end + 1 if end >= 0 else len(chunk)]
                yield False, piece
                line_start = piece.endswith(b"\n")
                position += len(piece)
    if header is not None:
        yield True, b"".join(header)


def _record(path: Path, header: bytes, number: int, parts: list[bytes]) -> Record:
    if not parts:
        raise FastaError(path, _label(header, number), None, "the record has no bases: remove it or fill it")
    name, _, description = header.decode(errors="replace").strip().partition(" ")
    return Record(name, description.strip(), np.frombuffer(b"".join(parts), dtype=np.uint8))


def _label(header: bytes, number: int) -> str:
    words = header.decode(errors="replace").split(maxsplit=1)
    return f"record {number} ({words[0]})" if words else f"record {number}"


def _quote(letters: bytes) -> str:
    return repr(letters[:20].decode(errors="replace"))


def _wrong_letter(path: Path, label: str, letters: bytes, num_before: int) -> FastaError:
    index = next(i for i, letter in enumerate(letters) if letter not in _ALLOWED)
    letter = chr(letters[index])
    around = _quote(letters[max(0, index - 5) : index + 6])
    if letters[index] in _PROTEIN_ONLY + _PROTEIN_ONLY.lower():
        what = f"{letter!r} in {around} is no nucleotide: this looks like a protein; give DNA or RNA"
    elif letter == "-":
        what = f"a gap '-' in {around}: give sequences, not an alignment"
    else:
        what = f"{letter!r} in {around} is no nucleotide; allowed are ACGTU, {IUPAC.decode()}, in either case"
    return FastaError(path, label, num_before + index + 1, what)
