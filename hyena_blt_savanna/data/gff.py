"""GFF3 annotation files: plain or gzipped, read strictly, line by line; and what they say of each base.

Source: the GFF3 specification 1.26 of the Sequence Ontology.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.fasta import read_chunks
from hyena_blt_savanna.data.gunzip import GZIP_ERRORS

_COLUMNS = ("seqid", "source", "type", "start", "end", "score", "strand", "phase", "attributes")
_LISTED_NAMES = 8

GffStrand = Literal["+", "-", ".", "?"]
CODING = "CDS"
"""Type of a feature that is translated."""


class GffError(DataError):
    """A GFF3 file that can't be read: the message names the file and the line.

    Args:
        path: the file.
        line: number of the line, from 1; None where no line is to blame.
        what: what is wrong, and what to change.
    """

    def __init__(self, path: Path, line: int | None, what: str) -> None:
        self.path, self.line = path, line
        super().__init__(f"{path}{'' if line is None else f':{line}'}: {what}")


@dataclass(frozen=True, slots=True)
class Feature:
    """One line of a GFF3 file.

    Attributes:
        sequence: name of the record that it lies on.
        source: what found it.
        kind: its type, such as "gene" or "CDS".
        start: first base, from 0.
        stop: base after the last one.
        score: None where there is none.
        strand: "+" and "-"; "." where it has none, "?" where it is not known.
        phase: bases at its 5' end that finish the codon before it; None where it has none.
        attributes: by tag, decoded; several values of a tag stay separated by commas.
        line: number of its line, from 1.
    """

    sequence: str
    source: str
    kind: str
    start: int
    stop: int
    score: float | None
    strand: GffStrand
    phase: int | None
    attributes: dict[str, str]
    line: int


@dataclass(frozen=True)
class Coding:
    """What is coding in a stretch.

    Attributes:
        strands: uint8 [L]: 0 not coding, 1 on the forward strand, 2 on the reverse strand, 3 on both.
        codon_places: int8 [L]: 0, 1, 2 for the first, second and third base of a codon, counted along the coding
            strand; -1 for a base that is not coding, or for which features disagree.
    """

    strands: NDArray[np.uint8]
    codon_places: NDArray[np.int8]


def read_gff(path: Path) -> Iterator[Feature]:
    """Reads the features of a GFF3 file in order; sequences at its end (##FASTA) are left aside.

    Args:
        path: the file; gzip is known by its content.

    Raises:
        GffError: the file is missing, a line is no feature (GTF, BED and GFF 2 are refused), or its gzip data are
            cut off or broken.
    """
    if not path.is_file():
        raise GffError(path, None, "no such file; give a GFF3 file")
    number = 0
    try:
        for number, line in enumerate(_lines(path), start=1):
            if line.startswith("##FASTA") or line.startswith(">"):
                return
            if line.startswith("##gff-version") and line.split()[1:2] and not line.split()[1].startswith("3"):
                raise GffError(path, number, f"{line.strip()!r}: only version 3 is read; convert the file to GFF3")
            if line and not line.startswith("#"):
                yield _feature(path, number, line)
    except GZIP_ERRORS as error:
        raise GffError(path, number + 1, f"the gzip file is cut off or broken ({error}): download it again") from error
    except UnicodeDecodeError as error:
        raise GffError(path, number + 1, f"no UTF-8 text ({error}): give a GFF3 file") from error


def coding_of(path: Path, features: Iterable[Feature], sequences: dict[str, int]) -> dict[str, Coding]:
    """Which bases of whole records are coding.

    Args:
        path: the file that the features come from, for messages.
        features: of any type; those of type CDS count.
        sequences: length of each record in bases, by name.

    Returns:
        What is coding in each record, by name.

    Raises:
        GffError: no feature lies on these records, none of them is a CDS, or one reaches beyond the end of its record.
    """
    found = {
        name: Coding(np.zeros(length, dtype=np.uint8), np.full(length, -1, dtype=np.int8))
        for name, length in sequences.items()
    }
    others: dict[str, None] = {}
    num_here = num_coding = 0
    for feature in features:
        coding = found.get(feature.sequence)
        if coding is None:
            others[feature.sequence] = None
            continue
        if feature.stop > len(coding.strands):
            raise GffError(
                path,
                feature.line,
                f"ends at base {feature.stop:,}, but {feature.sequence} has {len(coding.strands):,}: "
                "give the annotation of this very sequence",
            )
        num_here += 1
        if feature.kind == CODING:
            num_coding += 1
            _mark_coding(coding, feature)
    if not num_here:
        raise GffError(
            path,
            None,
            f"no feature lies on {_listed(list(sequences))}; its sequences: {_listed(list(others)) or 'none'}: "
            "give both files the same names",
        )
    if not num_coding:
        raise GffError(path, None, f"no feature of type {CODING} lies on {_listed(list(sequences))}: nothing is coding")
    return found


def _mark_coding(coding: Coding, feature: Feature) -> None:
    piece = slice(feature.start, feature.stop)
    is_reverse = feature.strand == "-"
    before = coding.strands[piece].copy()
    coding.strands[piece] |= 2 if is_reverse else 1
    assert feature.phase is not None
    places = ((np.arange(feature.stop - feature.start) - feature.phase) % 3).astype(np.int8)
    if is_reverse:
        places = places[::-1]
    known = coding.codon_places[piece]
    # A base that two features give different places, or places on both strands, has none.
    known[:] = np.where((before == 0) | ((before == coding.strands[piece]) & (known == places)), places, -1)


def _lines(path: Path) -> Iterator[str]:
    rest = b""
    for chunk in read_chunks(path):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode().rstrip("\r")
    if rest:
        yield rest.decode().rstrip("\r")


def _feature(path: Path, number: int, line: str) -> Feature:
    columns = line.split("\t")
    if len(columns) != len(_COLUMNS):
        raise GffError(
            path, number, f"{len(columns)} columns instead of {len(_COLUMNS)}, separated by tabs, in {_quote(line)}"
        )
    sequence, source, kind, first, last, score, strand, phase, attributes = columns
    for name, value in zip(_COLUMNS[:3], columns[:3], strict=True):
        if not value:
            raise GffError(path, number, f"{name} is empty in {_quote(line)}; write . where there is none")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise GffError(path, number, f"start {first!r} and end {last!r}: bases are counted from 1, start before end")
    if strand not in ("+", "-", ".", "?"):
        raise GffError(path, number, f"strand {strand!r} is none of + - . ?")
    if phase not in ("0", "1", "2", "."):
        raise GffError(path, number, f"phase {phase!r} is none of 0 1 2 .")
    if kind == CODING and (phase == "." or strand not in "+-"):
        raise GffError(path, number, f"a {CODING} needs a strand and a phase (0, 1 or 2), not {strand!r} and {phase!r}")
    return Feature(
        sequence=unquote(sequence),
        source=unquote(source),
        kind=unquote(kind),
        start=int(first) - 1,
        stop=int(last),
        score=_score(path, number, score),
        strand=strand,  # type: ignore[arg-type]
        phase=None if phase == "." else int(phase),
        attributes=_attributes(path, number, attributes),
        line=number,
    )


def _score(path: Path, number: int, text: str) -> float | None:
    if text == ".":
        return None
    try:
        return float(text)
    except ValueError:
        raise GffError(path, number, f"score {text!r} is neither a number nor .") from None


def _attributes(path: Path, number: int, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(";") if text != "." else ():
        tag, equals, value = part.partition("=")
        if not part.strip():
            continue
        if not equals:
            raise GffError(path, number, f"attribute {_quote(part)} is not tag=value: GTF and GFF 2 must be converted")
        found[unquote(tag.strip())] = unquote(value)
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED_NAMES:,} more" if len(names) > _LISTED_NAMES else ""
    return ", ".join(names[:_LISTED_NAMES]) + more


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
