"""GFF3 files: what a line says, what is coding base by base, and every complaint."""

import gzip

import numpy as np
import pytest

from hyena_blt_savanna.data.gff import Feature, GffError, coding_of, read_gff

HEADER = "##gff-version 3.1.26\n##sequence-region chr 1 40\n"
GENES = (
    "chr\thand%20made\tgene\t3\t20\t.\t+\t.\tID=gene1;Name=dnaA%3B1\n"
    "chr\thand%20made\tCDS\t3\t11\t0.5\t+\t0\tID=cds1;Parent=gene1;Dbxref=a:1,b:2;\n"
    "chr\thand%20made\tCDS\t15\t20\t.\t+\t1\tParent=gene1\n"
    "\n"
    "# a reverse gene that overlaps its end\n"
    "chr\tother\tCDS\t18\t29\t-1e-3\t-\t2\t.\n"
    "###\n"
    "plasmid\tother\tCDS\t1\t3\t.\t?\t0\t.\n".replace("?", "-")
)


def write(path, text, compress=False):
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_become_features(tmp_path, compress, newline):
    text = (HEADER + GENES + "##FASTA\n>chr\nACGT\n").replace("\n", newline)
    features = list(read_gff(write(tmp_path / "genes.gff", text, compress)))
    assert features[0] == Feature(
        "chr", "hand made", "gene", 2, 20, None, "+", None, {"ID": "gene1", "Name": "dnaA;1"}, line=3
    )
    assert features[1].attributes == {"ID": "cds1", "Parent": "gene1", "Dbxref": "a:1,b:2"}
    assert (features[1].score, features[1].phase) == (0.5, 0)
    assert (features[3].line, features[3].score, features[3].attributes) == (8, -1e-3, {})
    assert [feature.sequence for feature in features] == ["chr"] * 4 + ["plasmid"]


def test_a_last_line_without_end_and_tiny_chunks_change_nothing(tmp_path, monkeypatch):
    whole = list(read_gff(write(tmp_path / "a.gff", GENES)))
    monkeypatch.setattr("hyena_blt_savanna.data.gunzip.CHUNK_BYTES", 3)
    assert list(read_gff(write(tmp_path / "b.gff", GENES.rstrip()))) == whole


def coding_by_hand(genes, length):
    """Base by base: strands on which a base is coding, and the places in codons that it is given."""
    strands, places = [set() for _ in range(length)], [set() for _ in range(length)]
    for first, last, strand, phase in genes:
        bases = range(first - 1, last) if strand == "+" else range(last - 1, first - 2, -1)
        for number, base in enumerate(bases):
            strands[base].add(strand)
            places[base].add((strand, (number - phase) % 3))
    codes = [1 * ("+" in each) + 2 * ("-" in each) for each in strands]
    return codes, [next(iter(each))[1] if len(each) == 1 else -1 for each in places]


def test_coding_equals_a_count_base_by_base(tmp_path):
    genes = [(3, 11, "+", 0), (15, 20, "+", 1), (18, 29, "-", 2), (31, 40, "+", 0), (33, 40, "+", 1), (31, 36, "+", 0)]
    lines = "".join(f"chr\t.\tCDS\t{a}\t{b}\t.\t{strand}\t{phase}\t.\n" for a, b, strand, phase in genes)
    path = write(tmp_path / "genes.gff", lines)
    coding = coding_of(path, read_gff(path), {"chr": 41, "empty": 5})
    strands, places = coding_by_hand(genes, 41)
    assert coding["chr"].strands.tolist() == strands
    assert coding["chr"].codon_places.tolist() == places
    assert not coding["empty"].strands.any()
    assert set(places) == {-1, 0, 1, 2}
    assert 3 in strands


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("chr\t.\tCDS\t1\t9\t.\t+\n", 1, "7 columns instead of 9"),
        ("chr . CDS 1 9 . + 0 .\n", 1, "separated by tabs"),
        ("#\n\t.\tCDS\t1\t9\t.\t+\t0\t.\n", 2, "seqid is empty"),
        ("chr\t.\tCDS\t0\t9\t.\t+\t0\t.\n", 1, "start '0' and end '9'"),
        ("chr\t.\tCDS\t10\t9\t.\t+\t0\t.\n", 1, "start before end"),
        ("chr\t.\tCDS\t1\tx\t.\t+\t0\t.\n", 1, "end 'x'"),
        ("chr\t.\tCDS\t1\t9\thigh\t+\t0\t.\n", 1, "score 'high'"),
        ("chr\t.\tCDS\t1\t9\t.\tforward\t0\t.\n", 1, "strand 'forward' is none of"),
        ("chr\t.\tgene\t1\t9\t.\t+\t3\t.\n", 1, "phase '3' is none of"),
        ("chr\t.\tCDS\t1\t9\t.\t+\t.\t.\n", 1, "a CDS needs a strand and a phase"),
        ("chr\t.\tCDS\t1\t9\t.\t.\t0\t.\n", 1, "a CDS needs a strand and a phase"),
        ('chr\t.\tCDS\t1\t9\t.\t+\t0\tgene_id "b1"; x "y"\n', 1, "GTF and GFF 2 must be converted"),
        ("##gff-version 2\n", 1, "only version 3"),
    ],
)
def test_a_line_that_is_no_feature_is_named(tmp_path, text, line, message):
    path = write(tmp_path / "bad.gff", text)
    with pytest.raises(GffError, match=message) as caught:
        list(read_gff(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(GffError, match="no such file"):
        list(read_gff(tmp_path / "none.gff"))
    path = tmp_path / "cut.gff.gz"
    path.write_bytes(gzip.compress(GENES.encode() * 50)[:-12])
    with pytest.raises(GffError, match="cut off or broken"):
        list(read_gff(path))
    path.write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(GffError, match="no UTF-8 text"):
        list(read_gff(path))


def test_features_must_suit_the_sequence(tmp_path):
    path = write(tmp_path / "genes.gff", GENES)
    with pytest.raises(GffError, match=r"no feature lies on chr1, chr2; its sequences: chr, plasmid"):
        coding_of(path, read_gff(path), {"chr1": 40, "chr2": 3})
    with pytest.raises(GffError, match=r"genes.gff:6: ends at base 29, but chr has 28"):
        coding_of(path, read_gff(path), {"chr": 28})
    with pytest.raises(GffError, match="no feature of type CDS lies on chr"):
        coding_of(path, list(read_gff(path))[:1], {"chr": 40})
    many = {f"contig{number}": 9 for number in range(10)}
    with pytest.raises(GffError, match="contig7 and 2 more"):
        coding_of(path, read_gff(path), many)
    assert np.array_equal(coding_of(path, read_gff(path), {"plasmid": 3})["plasmid"].codon_places, [2, 1, 0])
