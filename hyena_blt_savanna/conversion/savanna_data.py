"""Savanna's datasets as ours, and the order in which Savanna reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.dataset_writer import DatasetWriter
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader, data_path, index_path
from hyena_blt_savanna.data.manifest import DatasetManifest, InputFile
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, PADDING, UPPER, tag_length

_PIECE = 1 << 22
_LEGACY = b"TNTIDX"


def import_dataset(source: Path, target: Path) -> DatasetManifest:
    """Writes a dataset of ours from one of Savanna's, whose tokens are bytes in uint16 or uint8.

    A tag in front of a document stays one; an end-of-document byte is added where there is none.

    Args:
        source: path of Savanna's files without their suffixes.
        target: likewise, of ours.

    Returns:
        The manifest, which is written last.

    Raises:
        DataError: it is no indexed dataset of version 1, or its tokens are no bytes.
        DiskFullError: the disk is full.
    """
    if index_path(source).is_file() and index_path(source).open("rb").read(len(_LEGACY)) == _LEGACY:
        raise DataError(
            f"{index_path(source)} is of Savanna's older formats (lazy, cached): write it anew with --dataset-impl mmap"
        )
    reader = IndexedReader(source)
    letters, num_letters = hashlib.sha256(), 0
    with DatasetWriter(target) as writer:
        for index in range(reader.num_documents):
            tag, body = _tag_and_body(source, reader, index)
            writer.add_in_pieces(_pieces(body), tag)
            for piece in _pieces(body):
                letters.update(UPPER[np.frombuffer(piece, np.uint8)].tobytes())
            num_letters += len(body)
        writer.close()
        digest = hashlib.sha256()
        with data_path(source).open("rb") as file:
            while block := file.read(_PIECE):
                digest.update(block)
        made_from = InputFile(
            name=data_path(source).name,
            file_sha256=digest.hexdigest(),
            sequence_sha256=letters.hexdigest(),
            num_records=reader.num_documents,
            num_bases=num_letters,
        )
        return writer.write_manifest([made_from], None, {target.name: writer.num_bytes})


def _tag_and_body(source: Path, reader: IndexedReader, index: int) -> tuple[bytes, NDArray[Any]]:
    """A document's tag, and what follows it up to the end-of-document byte."""
    tokens = reader.document(index)
    if len(tokens) and tokens[-1] == END_OF_DOCUMENT:
        tokens = tokens[:-1]
    for begin in range(0, len(tokens), _PIECE):
        piece = tokens[begin : begin + _PIECE]
        wrong = (piece > 255) | (piece == END_OF_DOCUMENT) | (piece == PADDING)
        if wrong.any():
            place = begin + int(wrong.argmax())
            raise DataError(
                f"{data_path(source)}: document {index} has token {int(tokens[place])} at {place:,}: documents of "
                "bytes are read, each with at most one end-of-document byte (0), at its end, and no padding (1)"
            )
    length = tag_length(tokens)
    return tokens[:length].astype(np.uint8).tobytes(), tokens[length:]


def _pieces(body: NDArray[Any]) -> Iterator[bytes]:
    for begin in range(0, len(body), _PIECE):
        yield body[begin : begin + _PIECE].astype(np.uint8).tobytes()


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a document."""

    document: int
    start: int
    stop: int


class IndexMaps:
    """The windows that Savanna cuts a dataset into, and their order, from the files that it keeps beside the data.

    Documents lie end to end in a shuffled order, as often as are needed; a sample is `seq_length` + 1 tokens of them,
    of which the last is the next one's first; samples come in a shuffled order, too.

    Args:
        prefix: path of the dataset without its suffix.
        name: of the part, as Savanna numbers it: train_0, valid_0, ...
        num_samples: that the maps were made for.
        seq_length: of a sample.
        seed: of the run.

    Raises:
        DataError: the files are missing or broken.

    Source: Savanna's `data/sequence_dataset.py`.
    """

    def __init__(self, prefix: Path, name: str, num_samples: int, seq_length: int, seed: int) -> None:
        stem = f"{prefix.name}_{name}_indexmap_{num_samples}ns_{seq_length}sl_{seed}s"
        self._documents, self._samples, self._order = (
            _load(prefix.with_name(f"{stem}_{kind}_idx.npy")) for kind in ("doc", "sample", "shuffle")
        )
        self._lengths = np.diff(IndexedReader(prefix).document_starts)
        fit = self._samples.ndim == 2 and len(self._order) <= len(self._samples)
        if not fit or self._documents.max() >= len(self._lengths):
            raise DataError(
                f"{prefix.with_name(stem)}_*_idx.npy are not the maps of {data_path(prefix)}: let Savanna make them "
                "anew"
            )

    def __len__(self) -> int:
        # Savanna leaves the last one out.
        return min(len(self._order), len(self._samples)) - 1

    def pieces(self, index: int) -> list[Piece]:
        """Where the tokens of a sample lie.

        Args:
            index: in the order in which they are trained on.
        """
        place = int(self._order[index])
        (first, start), (last, stop) = self._samples[place].tolist(), self._samples[place + 1].tolist()
        found = []
        for at in range(first, last + 1):
            document = int(self._documents[at])
            begin = start if at == first else 0
            end = stop + 1 if at == last else int(self._lengths[document])
            found.append(Piece(document, begin, end))
        return found


def _load(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; Savanna makes it when it first reads the data with these settings")
    try:
        # Savanna writes them with pickling allowed, and none is in them.
        array: NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not an index map: {error}") from error
    return array
