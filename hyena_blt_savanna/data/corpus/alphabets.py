"""The letters that a source may have: DNA, RNA (kept in the letters of DNA) or protein."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hyena_blt_savanna.nucleotides import BASES, IUPAC, JOIN_MARKS

AlphabetName = Literal["dna", "rna", "protein"]


@dataclass(frozen=True)
class Alphabet:
    """What the letters of a source are.

    Attributes:
        plain: letters that stand for one base or amino acid, and the unknown one; both cases.
        ambiguous: letters of more than one; both cases.
        marks: bytes between stretches.
        unknown: the unknown letter, upper and lower case.
        translation: 256 bytes, what each byte becomes.
        has_reverse_strand: whether the reverse complement is a sequence of the same kind.
        one_of_them: what one letter is called in messages.
    """

    plain: bytes
    ambiguous: bytes
    marks: bytes
    unknown: bytes
    translation: bytes
    has_reverse_strand: bool
    one_of_them: str

    @property
    def allowed(self) -> str:
        """The letters, for an error message."""
        letters = sorted({chr(byte).upper() for byte in self.plain + self.ambiguous})
        return "".join(letters) + f", in either case, and the marks {self.marks.decode()}"


def _both_cases(letters: bytes) -> bytes:
    return letters + letters.lower()


# Databases write RNA in the letters of DNA; so do we.
_U_TO_T = bytes.maketrans(b"Uu", b"Tt")
_SAME = bytes(range(256))
_NUCLEOTIDES = (_both_cases(BASES + b"N"), _both_cases(IUPAC.replace(b"N", b"")), bytes(JOIN_MARKS), b"Nn", _U_TO_T)

ALPHABETS: dict[AlphabetName, Alphabet] = {
    "dna": Alphabet(*_NUCLEOTIDES, has_reverse_strand=True, one_of_them="nucleotide"),
    "rna": Alphabet(*_NUCLEOTIDES, has_reverse_strand=False, one_of_them="nucleotide"),
    "protein": Alphabet(
        plain=_both_cases(b"ACDEFGHIKLMNPQRSTVWYX") + b"*",
        ambiguous=_both_cases(b"BJOUZ"),
        marks=bytes(JOIN_MARKS),
        unknown=b"Xx",
        translation=_SAME,
        has_reverse_strand=False,
        one_of_them="amino acid",
    ),
}
