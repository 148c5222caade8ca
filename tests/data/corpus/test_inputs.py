"""Which files are inputs, what they hold, and what is refused."""

import gzip

import pytest

from hyena_blt_savanna.data.corpus.inputs import InputError, find_inputs
from hyena_blt_savanna.testing.toy_corpus import write_hub, write_parts


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_hub(tmp_path_factory.mktemp("hub"))


def test_every_file_of_the_hub_is_known(hub):
    # Two archives have one name, in folders of their own.
    folders = [
        path for path in sorted(hub.rglob("*")) if path.is_dir() and any(child.is_file() for child in path.iterdir())
    ]
    found = [given for folder in folders for given in find_inputs([f"{folder}/*"])]
    inputs = {given.path.relative_to(hub).as_posix(): given for given in found}
    files = [path for path in hub.rglob("*") if path.is_file()]
    assert sum(len(found.paths) for found in inputs.values()) == len(files)
    assert sum(found.num_bytes for found in inputs.values()) == sum(path.stat().st_size for path in files)
    parts = inputs["fasta/eukaryotic_genic_windows/windows_5kb.fasta.gz"]
    assert [path.name[-3:] for path in parts.paths] == [f".a{letter}" for letter in "abcdefg"]
    assert parts.kind == "fasta"
    row = inputs["json/pretraining_or_both_phases/mrna/data_mrna_valid_chunk1.jsonl.gz"]
    assert (row.kind, row.split) == ("rows", "validation")
    assert {found.split for found in inputs.values() if found.kind == "rows"} == {"train", "validation", "test"}
    assert {found.split for found in inputs.values() if found.kind != "rows"} == {None}
    assert inputs["fasta/gtdb_v220/v220_update.tar"].kind == "tar"


def test_sizes_tell_packed_from_plain(tmp_path):
    plain, packed = tmp_path / "a.fa", tmp_path / "b.fa"
    plain.write_bytes(b">x\n" + b"ACGT" * 1000)
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    a, b = find_inputs([str(tmp_path / "*.fa")])
    assert a.num_bases == plain.stat().st_size
    assert b.num_bases > 2 * packed.stat().st_size


def test_a_path_with_brackets_is_no_pattern(tmp_path):
    path = tmp_path / "a[1].fa"
    path.write_bytes(b">x\nA\n")
    assert [found.paths for found in find_inputs([str(path)])] == [(path,)]


def test_one_file_by_two_patterns_is_one_input(tmp_path):
    (tmp_path / "a.fa").write_bytes(b">x\nA\n")
    assert len(find_inputs([str(tmp_path / "*"), str(tmp_path / "a.fa")])) == 1


class TestRefuses:
    def refused(self, says, *patterns):
        with pytest.raises(InputError, match=says):
            find_inputs([str(pattern) for pattern in patterns])

    def test_nothing(self, tmp_path):
        self.refused(r"none\*\.fa: no such file", tmp_path / "none*.fa")

    def test_a_folder(self, tmp_path):
        self.refused(r"a folder; give its files", tmp_path)

    def test_an_unknown_kind(self, tmp_path):
        (tmp_path / "x.parquet").write_bytes(b"x")
        self.refused(r"x\.parquet: an unknown kind of file; names end in one of \.fa \.fasta", tmp_path / "x.parquet")

    def test_two_of_one_name(self, tmp_path):
        for folder in "ab":
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "x.fa").write_bytes(b">x\nA\n")
        self.refused(r"b/x\.fa: .*a/x\.fa has the same name", tmp_path / "*" / "x.fa")

    @pytest.mark.parametrize(("gone", "missing"), [(0, "aa"), (2, "ac")])
    def test_a_missing_part(self, tmp_path, gone, missing):
        parts = write_parts(tmp_path / "x.fasta.gz", b"0123456789", 4)
        parts[gone].unlink()
        self.refused(rf"the part x\.fasta\.gz\.{missing} is missing", tmp_path / "x.fasta.gz.*")
