"""The alphabet against the IUPAC table written out, and the laws of reversing a strand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyena_blt_savanna import nucleotides as nt

# What each code stands for (IUPAC-IUB 1984).
IUPAC_SETS = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
PAIRS = str.maketrans("ACGT", "TGCA")


def array(text: bytes):
    return np.frombuffer(text, dtype=np.uint8)


def test_complement_is_that_of_the_sets():
    by_set = {frozenset(letters): code for code, letters in IUPAC_SETS.items()}
    for code, letters in IUPAC_SETS.items():
        complement = by_set[frozenset(letters.translate(PAIRS))]
        assert chr(nt.COMPLEMENT[ord(code)]) == complement
        assert chr(nt.COMPLEMENT[ord(code.lower())]) == complement.lower()
    assert chr(nt.COMPLEMENT[ord("U")]) == "A"
    others = [byte for byte in range(256) if chr(byte).upper() not in {*IUPAC_SETS, "U"}]
    assert all(nt.COMPLEMENT[byte] == byte for byte in others)


def test_alphabet():
    assert set(nt.BASES.decode()) | set(nt.IUPAC.decode()) == set(IUPAC_SETS)
    assert nt.SCORED == b"ACGT\0"
    assert nt.NUM_SCORED == 5
    assert nt.VOCABULARY_SIZE == 512


def test_tables():
    for byte in range(256):
        letter = chr(byte)
        position = "ACGT".find(letter.upper())
        assert nt.BASE_CODE[byte] == (position if position >= 0 else 4)
        assert nt.SCORED_CLASS[byte] == "ACGT\0".find(letter)
        assert nt.UPPER[byte] == (ord(letter.upper()) if byte < 128 else byte)
        assert nt.IS_REPEAT_MASKED[byte] == (letter.islower() and letter.upper() in IUPAC_SETS)
    for table in (nt.BASE_CODE, nt.SCORED_CLASS, nt.UPPER, nt.COMPLEMENT, nt.IS_REPEAT_MASKED):
        assert not table.flags.writeable


@pytest.mark.parametrize(
    ("document", "length"),
    [
        (b"", 0),
        (b"ACGT", 0),
        (b"|", 0),
        (b"|ACGT", 0),
        (b"||ACGT", 2),
        (b"|D__X|ACGT|G", 6),
        (b"A|X|C", 0),
        (b"|" + b"x" * 4095 + b"|A", 4097),
        (b"|" + b"x" * 4096 + b"|A", 4098),
        (b"|" + b"x" * 9000 + b"|", 9002),
        (b"|" + b"x" * 9000, 0),
    ],
)
def test_tag_length(document, length):
    assert nt.tag_length(array(document)) == length


@pytest.mark.parametrize(
    ("document", "reverse"),
    [
        (b"", b""),
        (b"\0", b"\0"),
        (b"AaCGTn", b"nACGtT"),
        (b"AACG\0", b"CGTT\0"),
        (b"|D__ACGT|AAC@G\0", b"|D__ACGT|C@GTT\0"),
        (b"|T|", b"|T|"),
        (b"|T|\0", b"|T|\0"),
        (b"|AACG\0", b"CGTT|\0"),
    ],
)
def test_reverse_complement_of_a_document(document, reverse):
    assert nt.reverse_complement_document(array(document)).tobytes() == reverse


letters = st.binary(max_size=40).map(
    lambda data: bytes((nt.BASES + nt.IUPAC + nt.BASES.lower() + b"@#")[byte % 21] for byte in data)
)


@given(tag=st.sampled_from([b"", b"||", b"|D__X;P__ACGT|"]), body=letters, end=st.sampled_from([b"", b"\0"]))
def test_reversing_twice_is_the_identity(tag, body, end):
    document = array(tag + body + end)
    reverse = nt.reverse_complement_document(document)
    assert reverse.tobytes() == tag + nt.reverse_complement(array(body)).tobytes() + end
    assert np.array_equal(nt.reverse_complement_document(reverse), document)
