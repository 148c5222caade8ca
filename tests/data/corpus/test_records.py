"""Records of every kind of input against the plainest readers there are, however the bytes are cut."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hyena_blt_savanna.data import gunzip
from hyena_blt_savanna.data.corpus import rows
from hyena_blt_savanna.data.corpus.byte_streams import DigestedFile
from hyena_blt_savanna.data.corpus.fastq import QualityRule
from hyena_blt_savanna.data.corpus.inputs import InputError, RecordError, find_inputs
from hyena_blt_savanna.data.corpus.records import Reading, read_records
from hyena_blt_savanna.data.corpus.row_scanner import RowError, RowScanner
from hyena_blt_savanna.data.corpus.rows import read_rows
from hyena_blt_savanna.testing.toy_corpus import as_fasta, sequence, write_parts, write_rows, write_tar

RECORDS = {"one a description": sequence(1000, 1), "two": sequence(61, 2), "three": sequence(120, 3)}


def read(*paths, rule=None):
    (found,) = find_inputs([str(path) for path in paths])
    reading = Reading("text", rule or QualityRule())
    records = read_records(found, DigestedFile(found.paths), reading)
    return [(record.member, record.name, joined(record)) for record in records]


def joined(record) -> str:
    return "".join(b"".join(record.pieces).decode().split())


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


EXPECTED = [("", header.split()[0], letters) for header, letters in RECORDS.items()]


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64, 1 << 20])
def test_fasta(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(gunzip, "CHUNK_BYTES", chunk_bytes)
    data = as_fasta(RECORDS)
    for name in ("a.fa", "b.fasta.gz"):
        assert read(write(tmp_path / name, data)) == EXPECTED
    parts = write_parts(tmp_path / "c.fna.gz", gzip.compress(data), 5)
    assert read(*parts) == EXPECTED


def test_records_that_are_not_looked_at_are_passed_over(tmp_path):
    (found,) = find_inputs([str(write(tmp_path / "a.fa", as_fasta(RECORDS)))])
    records = read_records(found, DigestedFile(found.paths), Reading("text", QualityRule()))
    assert [(record.number, record.name) for record in records] == [(1, "one"), (2, "two"), (3, "three")]


def test_archives(tmp_path):
    data = as_fasta(RECORDS)
    members = {"d/x.fna": data, "d/readme.md": b"text", "d/y.fa.gz": gzip.compress(data)}
    expected = [(name, record, letters) for name in ("d/x.fna", "d/y.fa.gz") for _, record, letters in EXPECTED]
    assert read(write_tar(tmp_path / "a.tar", members)) == expected
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert read(packed) == expected


class TestFastq:
    TEXT = b"@read_1 lane\nACGTN\n+\n!+5?I\n@read_2\r\nacg\r\n+read_2\r\nIII\r\n"

    @pytest.mark.parametrize("chunk_bytes", [1, 5, 1 << 20])
    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            (QualityRule(), "ACGTN"),
            # Qualities 0, 10, 20, 30, 40.
            (QualityRule(rule="lower", least=20), "acGTN"),
            (QualityRule(rule="unknown", least=21), "NNNTN"),
        ],
    )
    def test_quality(self, tmp_path, monkeypatch, rule, expected, chunk_bytes):
        monkeypatch.setattr(gunzip, "CHUNK_BYTES", chunk_bytes)
        for name in ("a.fq", "b.fastq.gz"):
            path = write(tmp_path / name, self.TEXT)
            assert read(path, rule=rule) == [("", "read_1", expected), ("", "read_2", "acg")]

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (TEXT[:-9], r"a\.fq, record 2: ends in the middle of a read"),
            (b"@a\nACG\n+\nII\n", "record 1: 3 bases with 2 qualities"),
            (b">a\nACG\n+\nIII\n", "the first opens with '@'"),
            (b"@a\nACG\n-\nIII\n", r"the third with '\+'"),
        ],
    )
    def test_refuses(self, tmp_path, text, says):
        with pytest.raises(InputError, match=says):
            read(write(tmp_path / "a.fq", text))

    def test_refuses_a_line_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hyena_blt_savanna.data.corpus.fastq._LONGEST_READ_BASES", 50)
        monkeypatch.setattr(gunzip, "CHUNK_BYTES", 30)
        with pytest.raises(InputError, match="a line of more than 50 bytes"):
            read(write(tmp_path / "a.fq", b"A" * 200))


BAD_ROWS = {
    '{"text": "AC': "line 2: no row of JSON",
    "ACGT": "no row of JSON",
    '["ACGT"]': "line 2: (a row must be an object|no row of JSON)",
    '{"txt": "ACGT", "b": 1}': "no key 'text', its keys: 'txt', 'b'; name another with text_key",
    "{}": "its keys: none",
    '{"text": 5}': "'text' is no text",
    '{"text": "ACé"}': "bytes that are no text of letters",
    '{"text": "AC\\u00e9"}': "bytes that are no text of letters",
    '{"text": "ACGT"} x': "no row of JSON",
    '{"text": "ACGT",}': "no row of JSON",
    '{"text" "ACGT"}': "no row of JSON",
    '{"text": "A\\x"}': "no (row of JSON|text of letters)",
}


class TestRows:
    @pytest.mark.parametrize("chunk_bytes", [1, 10, 100, 1 << 20])
    @pytest.mark.parametrize("long_row_bytes", [20, 500, 1 << 24])
    def test_every_cut_of_the_bytes(self, tmp_path, monkeypatch, chunk_bytes, long_row_bytes):
        monkeypatch.setattr(gunzip, "CHUNK_BYTES", chunk_bytes)
        monkeypatch.setattr(rows, "_LONG_ROW_BYTES", long_row_bytes)
        texts = ["ACGT", sequence(900, 1), "", "|d__x y;s__z|ACG@T#"]
        extra = [{}, {"record": "r", "n": [1, {"text": "no"}]}, {"a": '"}\\'}, {"z": None}]
        lines = [json.dumps({**more, "text": text}) for text, more in zip(texts, extra, strict=True)]
        lines += ["", '{"text" : "AC\\u0047T" , "b": {}}', "  "]
        for name in ("a.jsonl", "b.jsonl.gz"):
            path = write_rows(tmp_path / name, lines)
            found = [letters for _, _, letters in read(path)]
            assert found == [*("".join(text.split()) for text in texts), "ACGT"]
        without_end = write(tmp_path / "c.jsonl", "\n".join(lines[:2]).encode())
        assert [letters for _, _, letters in read(without_end)] == texts[:2]

    @pytest.mark.parametrize(("line", "says"), BAD_ROWS.items())
    @pytest.mark.parametrize("long_row_bytes", [2, 1 << 24])
    def test_a_bad_row_is_named_and_those_after_it_are_read(self, monkeypatch, line, says, long_row_bytes):
        monkeypatch.setattr(rows, "_LONG_ROW_BYTES", long_row_bytes)
        text = f'{{"text": "AC"}}\n{line}\n{{"text": "GT"}}\n'.encode()
        chunks = [text[at : at + 5] for at in range(0, len(text), 5)]
        found = []
        for record in read_rows(Path("x.jsonl"), iter(chunks), "text"):
            if record.line == 2:
                with pytest.raises(RecordError, match=rf"^x\.jsonl, .*{says}"):
                    joined(record)
            else:
                found.append(joined(record))
        assert found == ["AC", "GT"]

    def test_bytes_that_are_no_text_at_all(self):
        (record,) = read_rows(Path("x.jsonl"), iter([b"\xff\xfe\x00\x01"]), "text")
        with pytest.raises(RecordError, match=r"x\.jsonl, line 1: (no row of JSON|bytes)"):
            joined(record)

    VALUES = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
        max_leaves=8,
    )

    @given(
        st.dictionaries(st.text(max_size=5).filter(lambda key: key != "text"), VALUES, max_size=4),
        st.text(st.characters(max_codepoint=127)),
        st.integers(0, 4),
        st.integers(1, 9),
        st.booleans(),
    )
    @example({}, "", 0, 1, True)
    def test_the_scanner_reads_what_json_reads(self, others, text, place, piece_bytes, is_ascii):
        items = list(others.items())
        items.insert(min(place, len(items)), ("text", text))
        row = json.dumps(dict(items), ensure_ascii=is_ascii).encode()
        pieces = (row[at : at + piece_bytes] for at in range(0, len(row), piece_bytes))
        assert b"".join(RowScanner(pieces).text("text")).decode() == json.loads(row)["text"]

    def test_a_key_without_end(self):
        with pytest.raises(RowError, match="a key of more than 1,024 bytes"):
            list(RowScanner(iter([b'{"' + b"k" * 2000])).text("text"))


class TestRefuses:
    def refused(self, says, *paths):
        with pytest.raises(InputError, match=says):
            read(*paths)

    def test_gzip_that_is_cut_off(self, tmp_path):
        data = gzip.compress(as_fasta(RECORDS))
        (tmp_path / "a.fa.gz").write_bytes(data[: len(data) // 2])
        self.refused(r"a\.fa\.gz: the gzip file ends in the middle", tmp_path / "a.fa.gz")

    def test_a_last_part_that_is_missing(self, tmp_path):
        parts = write_parts(tmp_path / "a.fa.gz", gzip.compress(as_fasta(RECORDS)), 3)
        self.refused(r"a\.fa\.gz: the gzip file ends in the middle", *parts[:2])

    def test_gzip_that_is_broken(self, tmp_path):
        data = bytearray(gzip.compress(as_fasta(RECORDS)))
        data[-7] ^= 255
        (tmp_path / "a.fa.gz").write_bytes(data)
        self.refused(r"a\.fa\.gz: the gzip file is broken", tmp_path / "a.fa.gz")

    def test_a_member_that_is_cut_off(self, tmp_path):
        data = gzip.compress(as_fasta(RECORDS))
        path = write_tar(tmp_path / "a.tar", {"x.fa.gz": data[:-9]})
        self.refused(r"a\.tar, member x\.fa\.gz: the gzip file ends in the middle", path)

    @pytest.mark.parametrize("keep", [0.3, 0.6])
    def test_an_archive_that_is_cut_off(self, tmp_path, keep):
        path = write_tar(tmp_path / "a.tar", {f"{i}.fa": as_fasta(RECORDS) for i in range(20)})
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
        self.refused(r"a\.tar.*: the archive (is cut off|ends without its end mark)", path)

    def test_an_archive_that_is_cut_off_between_two_members(self, tmp_path):
        path = write_tar(tmp_path / "a.tar", {f"{i}.fa": b">x\n" + b"A" * 1021 for i in range(3)})
        path.write_bytes(path.read_bytes()[: 2 * (512 + 1024)])
        self.refused(r"a\.tar: the archive ends without its end mark", path)

    def test_no_archive(self, tmp_path):
        self.refused(r"a\.tar: the archive is cut off or none", write(tmp_path / "a.tar", b"x" * 2000))

    @pytest.mark.parametrize("name", ["../x.fa", "/etc/x.fa", "a/../../x.fa"])
    def test_a_path_outside(self, tmp_path, name):
        path = write_tar(tmp_path / "a.tar", {name: as_fasta(RECORDS)})
        self.refused(r"a\.tar, member '.*x\.fa': a path outside the archive", path)

    def test_links_in_archives_are_passed_over(self, tmp_path):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w") as archive:
            link = tarfile.TarInfo("x.fa")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
            data = as_fasta(RECORDS)
            real = tarfile.TarInfo("y.fa")
            real.size = len(data)
            archive.addfile(real, io.BytesIO(data))
        assert [member for member, _, _ in read(path)] == ["y.fa"] * 3

    @pytest.mark.parametrize(("name", "data"), [("a.fa", b""), ("a.jsonl", b"\n\n"), ("a.fq", b"\n")])
    def test_nothing_in_it(self, tmp_path, name, data):
        self.refused(rf"{name}: no records in it", write(tmp_path / name, data))

    def test_no_fasta(self, tmp_path):
        self.refused(r"a\.fa: no '>' before '.nACGT.n'", write(tmp_path / "a.fa", b"\nACGT\n"))
