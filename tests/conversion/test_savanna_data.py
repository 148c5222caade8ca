"""Savanna's data as ours; what Savanna's own code makes of data is in tests/savanna_plugin."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.conversion.savanna_data import IndexMaps, Piece, import_dataset
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader, IndexedWriter
from hyena_blt_savanna.data.manifest import read_manifest


def write_tokens(prefix: Path, *documents: list[int]) -> Path:
    with IndexedWriter(prefix, np.uint16) as writer:
        for document in documents:
            writer.add(np.array(document, np.uint16))
        writer.close()
    return prefix


def test_an_end_of_document_is_added_where_there_is_none(tmp_path: Path) -> None:
    import_dataset(write_tokens(tmp_path / "theirs", [65, 67], [71, 0]), tmp_path / "ours")
    assert IndexedReader(tmp_path / "ours").stream.tolist() == [65, 67, 0, 71, 0]


@pytest.mark.parametrize(("token", "place"), [(300, 1), (0, 2), (1, 0)])
def test_tokens_that_are_no_bytes_are_refused(tmp_path: Path, token: int, place: int) -> None:
    document = [65, 67, 71, 84]
    document[place] = token
    source = write_tokens(tmp_path / "theirs", [65], document)
    with pytest.raises(DataError, match=f"document 1 has token {token} at {place}: documents of bytes are read"):
        import_dataset(source, tmp_path / "ours")
    assert not list(tmp_path.glob("ours*"))


def test_older_formats_and_missing_maps_are_named(tmp_path: Path) -> None:
    (tmp_path / "old.idx").write_bytes(b"TNTIDX\x00\x00")
    with pytest.raises(DataError, match=r"older formats .* write it anew with --dataset-impl mmap"):
        import_dataset(tmp_path / "old", tmp_path / "ours")
    prefix = write_tokens(tmp_path / "theirs", [65, 67, 0])
    with pytest.raises(DataError, match="no such file; Savanna makes it when it first reads"):
        IndexMaps(prefix, "train_0", 4, 2, 1)
    stem = "theirs_train_0_indexmap_4ns_2sl_1s"
    for kind, array in (("doc", [0, 9]), ("sample", [[0, 0], [0, 1]]), ("shuffle", [0])):
        np.save(tmp_path / f"{stem}_{kind}_idx.npy", np.array(array))
    with pytest.raises(DataError, match="are not the maps of"):
        IndexMaps(prefix, "train_0", 4, 2, 1)
    (tmp_path / f"{stem}_doc_idx.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not an index map"):
        IndexMaps(prefix, "train_0", 4, 2, 1)


def test_samples_are_pieces_of_documents(tmp_path: Path) -> None:
    prefix = write_tokens(tmp_path / "theirs", [65, 67, 0], [71, 0], [84, 84, 84, 0])
    # Documents 2, 0, 1 end to end; samples of 3 tokens and the next one's first: TTT0, 0AC0, 0G0.
    arrays = {"doc": [2, 0, 1], "sample": [[0, 0], [0, 3], [1, 2], [2, 1]], "shuffle": [1, 0, 2]}
    for kind, array in arrays.items():
        np.save(tmp_path / f"theirs_valid_0_indexmap_3ns_3sl_5s_{kind}_idx.npy", np.array(array))
    maps = IndexMaps(prefix, "valid_0", 3, 3, 5)
    assert len(maps) == 2
    assert maps.pieces(0) == [Piece(2, 3, 4), Piece(0, 0, 3)]
    assert maps.pieces(1) == [Piece(2, 0, 4)]


def test_the_tool_prints_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokens(tmp_path / "theirs", [65, 67, 0])
    tool = str(Path(__file__).parents[2] / "tools" / "import_savanna_data.py")
    for source, code in (("theirs", 0), ("nowhere", 1)):
        monkeypatch.setattr(sys, "argv", [tool, str(tmp_path / source), str(tmp_path / "ours" / "train")])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(tool, run_name="__main__")
        assert ended.value.code == code
    printed = capsys.readouterr()
    assert json.loads(printed.out) == read_manifest(tmp_path / "ours" / "train").to_dict()
    assert "nowhere" in printed.err
