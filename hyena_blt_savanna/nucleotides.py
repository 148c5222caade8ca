"""The alphabet: what each byte of a stream means, and how a strand is reversed.

A base is its ASCII byte (vocabulary 512, as in Savanna and Evo 2). Lower case on disk means
repeat-masked. `|...|` is a phylogenetic tag, `@` joins exons or windows, `#` joins contigs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

END_OF_DOCUMENT = 0
PADDING = 1
VOCABULARY_SIZE = 512
TAG_MARK = ord("|")
JOIN_MARKS = (ord("@"), ord("#"))
UNKNOWN = ord("N")
_TAG_SEARCH_BYTES = 4096

BASES = b"ACGT"
IUPAC = b"RYSWKMBDHVN"
"""Codes of more than one base: kept on disk, seen by the model, never scored."""

SCORED = BASES + bytes([END_OF_DOCUMENT])
"""The bytes that a model of ours predicts, in the order of its logits."""

NUM_SCORED = len(SCORED)


def _table(fill: int, entries: dict[int, int], dtype: type[np.generic] = np.uint8) -> NDArray:
    table = np.full(256, fill, dtype=dtype)
    for byte, value in entries.items():
        table[byte] = value
    table.flags.writeable = False
    return table


def _both_cases(pairs: dict[int, int], keep_case: bool = False) -> dict[int, int]:
    lower = {ord(chr(byte).lower()): ord(chr(value).lower()) if keep_case else value for byte, value in pairs.items()}
    return pairs | lower


OTHER_CODE = 4
BASE_CODE: NDArray[np.uint8] = _table(OTHER_CODE, _both_cases({byte: i for i, byte in enumerate(BASES)}))
"""0, 1, 2, 3 for A, C, G, T of either case; 4 for every other byte."""

SCORED_CLASS: NDArray[np.int64] = _table(-1, {byte: i for i, byte in enumerate(SCORED)}, np.int64)
"""Column of the logits that predicts an upper-case byte; -1 for a byte that is never scored."""

_IDENTITY = np.arange(256, dtype=np.uint8)

UPPER: NDArray[np.uint8] = _table(0, {int(b): ord(chr(b).upper()) if b < 128 else int(b) for b in _IDENTITY})
"""Each byte in upper case."""

COMPLEMENT: NDArray[np.uint8] = _table(
    0,
    {int(b): int(b) for b in _IDENTITY}
    | _both_cases(dict(zip(b"ACGTURYSWKMBDHVN", b"TGCAAYRSWMKVHDBN", strict=True)), keep_case=True),
)
"""The complementary letter in the same case; every other byte is its own complement."""

IS_REPEAT_MASKED: NDArray[np.uint8] = _table(0, dict.fromkeys((BASES + IUPAC).lower(), 1))
"""1 for a lower-case letter of the nucleotide alphabet."""


def tag_length(document: Bytes) -> int:
    """Number of bytes of the tag that opens a document, both marks included; 0 without a tag.

    Args:
        document: uint8 [L].
    """
    if len(document) == 0 or document[0] != TAG_MARK:
        return 0
    # In pieces: a tag is short, and a document may be a chromosome that lies on the disk.
    for start in range(1, len(document), _TAG_SEARCH_BYTES):
        closing = np.flatnonzero(document[start : start + _TAG_SEARCH_BYTES] == TAG_MARK)
        if len(closing):
            return start + int(closing[0]) + 1
    return 0


def reverse_complement(sequence: Bytes) -> Bytes:
    """The other strand, read in its own direction, without regard to tags.

    Args:
        sequence: uint8 [L], either case.

    Returns:
        uint8 [L], a new array; case stays with its base.
    """
    return COMPLEMENT[sequence[::-1]]


def reverse_complement_document(document: Bytes) -> Bytes:
    """The other strand of one document: its tag stays in front, its end-of-document byte last.

    Args:
        document: uint8 [L], with or without an opening tag and an end-of-document byte.

    Returns:
        uint8 [L], a new array.
    """
    front = tag_length(document)
    back = len(document) - int(len(document) > 0 and document[-1] == END_OF_DOCUMENT)
    return np.concatenate([document[:front], reverse_complement(document[front:back]), document[back:]])
