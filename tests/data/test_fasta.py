"""FASTA reading against a line-by-line reference, and every complaint it makes."""

import gzip

import numpy as np
import pytest

from hyena_blt_savanna.data import gunzip
from hyena_blt_savanna.data.fasta import FastaError, read_fasta, read_region
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_fasta


def read_by_lines(text: bytes) -> list[tuple[str, str, bytes]]:
    """The plainest reader there is."""
    records = []
    for line in text.replace(b"\r\n", b"\n").split(b"\n"):
        if line.startswith(b">"):
            name, _, description = line[1:].decode().strip().partition(" ")
            records.append([name, description.strip(), b""])
        elif line.strip():
            records[-1][2] += line.replace(b" ", b"").replace(b"\t", b"").replace(b"U", b"T").replace(b"u", b"t")
    return [tuple(record) for record in records]


def as_tuples(path) -> list[tuple[str, str, bytes]]:
    return [(record.name, record.description, record.sequence.tobytes()) for record in read_fasta(path)]


@pytest.fixture
def records():
    return {
        "first with a description": random_genome(1000, 1, num_unknown_runs=2, num_iupac=5),
        "second": random_genome(1, 2),
        "third >looks like a header": random_genome(60, 3),
    }


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("final_newline", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 64, 1 << 20])
def test_equals_a_reader_by_lines(tmp_path, monkeypatch, records, newline, compress, final_newline, chunk_bytes):
    monkeypatch.setattr(gunzip, "CHUNK_BYTES", chunk_bytes)
    path = write_fasta(tmp_path / "genome.txt", records, 60, newline, compress, final_newline)
    text = gzip.decompress(path.read_bytes()) if compress else path.read_bytes()
    assert as_tuples(path) == read_by_lines(text)
    assert [sequence for _, _, sequence in as_tuples(path)] == [value.tobytes() for value in records.values()]


@pytest.mark.parametrize("chunk_bytes", [1, 3, 1 << 20])
def test_odd_but_valid_text(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(gunzip, "CHUNK_BYTES", chunk_bytes)
    text = b"\n\r\n>a  two  words \r\n\nACG uU\n\n\tnnRy\n>b\nacgt"
    path = tmp_path / "odd.fa"
    path.write_bytes(text)
    assert as_tuples(path) == [("a", "two  words", b"ACGtTnnRy"), ("b", "", b"acgt")]
    assert as_tuples(path) == read_by_lines(text.lstrip())


def test_gzip_of_several_members_is_known_by_its_content(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_bytes(gzip.compress(b">a\nAC") + gzip.compress(b"GT\n>b\nTT\n") + gzip.compress(b"GG\n"))
    assert as_tuples(path) == [("a", "", b"ACGT"), ("b", "", b"TTGG")]


@pytest.mark.parametrize(
    ("text", "record", "position", "says"),
    [
        (b"", None, None, "the file is empty"),
        (b"\n \r\n\n", None, None, "no records"),
        (b"ACGT\n>a\nACGT\n", None, None, "no '>' before 'ACGT'"),
        (b">a\nAC\n>b\n>c\nGT\n", "record 2 (b)", None, "no bases"),
        (b">a\nAC\n>b\n \n", "record 2 (b)", None, "no bases"),
        (b">", "record 1", None, "no bases"),
        (b">x\nACGT\nACGTMKVLE\n", "record 1 (x)", 12, "protein"),
        (b">x\nACGT\n>y z\nMKL*\n", "record 2 (y)", 3, "protein"),
        (b">x\nAC-GT\n", "record 1 (x)", 3, "gap"),
        (b">x\nACGT7\n", "record 1 (x)", 5, "'7' in 'ACGT7' is no nucleotide"),
        (b">x\nAC\xffGT\n", "record 1 (x)", 3, "no nucleotide"),
        (b">x\nAC>GT\n", "record 1 (x)", 3, "no nucleotide"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
def test_bad_text(tmp_path, monkeypatch, text, record, position, says, chunk_bytes):
    monkeypatch.setattr(gunzip, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "bad.fa"
    path.write_bytes(text)
    with pytest.raises(FastaError) as caught:
        list(read_fasta(path))
    error = caught.value
    assert (error.path, error.record, error.position) == (path, record, position)
    assert str(error).startswith(str(path))
    # A chunk of one byte shows less of what is around.
    assert says in str(error) or (chunk_bytes < 10 and "'" in says)
    if position is not None:
        assert f"base {position}" in str(error)


def test_missing_file(tmp_path):
    with pytest.raises(FastaError, match="no such file"):
        list(read_fasta(tmp_path / "none.fa"))
    with pytest.raises(FastaError, match="no such file"):
        read_region(tmp_path / "none.fa", "a", 0, 1)
    with pytest.raises(FastaError, match="a folder; give FASTA files"):
        list(read_fasta(tmp_path))


def test_truncated_gzip_names_record_and_position(tmp_path, monkeypatch):
    monkeypatch.setattr(gunzip, "CHUNK_BYTES", 1000)
    sequence = random_genome(100_000, 5)
    path = write_fasta(tmp_path / "cut.fa.gz", {"a": sequence[:100], "b": sequence}, compress=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FastaError, match="middle of the compressed data") as caught:
        list(read_fasta(path))
    assert caught.value.record == "record 2 (b)"
    assert 20_000 < caught.value.position < 80_000


def test_truncated_gzip_before_the_first_record(tmp_path):
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(gzip.compress(b">a\nACGT\n")[:11])
    with pytest.raises(FastaError, match="compressed data") as caught:
        list(read_fasta(path))
    assert caught.value.record is None


def test_broken_gzip(tmp_path):
    path = write_fasta(tmp_path / "broken.fa.gz", {"a": random_genome(50_000)}, compress=True)
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(FastaError, match="is broken"):
        list(read_fasta(path))


@pytest.mark.parametrize("compress", [False, True])
def test_region_equals_slice(tmp_path, records, compress):
    path = write_fasta(tmp_path / "genome.fa", records, compress=compress)
    whole = records["first with a description"]
    for start, stop in [(0, 1000), (59, 61), (999, 1000), (10, 10)]:
        assert np.array_equal(read_region(path, "first", start, stop), whole[start:stop])
    with pytest.raises(FastaError, match="no record named 'none'; its records: first, second, third"):
        read_region(path, "none", 0, 1)
    for start, stop in [(990, 1001), (5, 4), (-3, 2)]:
        with pytest.raises(FastaError, match=r"no region .* in it: it has [\d,]+ bases"):
            read_region(path, "first", start, stop)


def test_region_of_uneven_lines(tmp_path):
    path = tmp_path / "uneven.fa"
    path.write_bytes(b">a\nACGT\nAC\nACGT\n")
    with pytest.raises(FastaError, match="one length"):
        read_region(path, "a", 0, 4)
