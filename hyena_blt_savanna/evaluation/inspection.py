"""The stretch that `tools/inspect_patches.py` shows: from a dataset with stored boundaries, or from a FASTA file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.boundaries import BoundaryReader
from hyena_blt_savanna.data.entropies import EntropyReader
from hyena_blt_savanna.data.fasta import Record, read_fasta, read_record
from hyena_blt_savanna.data.gff import Coding, coding_of, read_gff
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import manifest_path
from hyena_blt_savanna.data.regions import Region
from hyena_blt_savanna.data.splits import SPLIT_NAMES
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, Bytes
from hyena_blt_savanna.patching.annotate import patcher_folder
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.entropy_models import EntropyModel
from hyena_blt_savanna.patching.inspection_stretch import InspectionError, Stretch
from hyena_blt_savanna.patching.marks import START, place_after
from hyena_blt_savanna.patching.patcher import DEFAULT_PATCHER, PATCHER_FILE, Patcher

_LEAD_IN_BASES = 1 << 16
_LEARNING_BASES = 1 << 22
"""Read before a region by a model whose context is all of the document."""


def read_stretch(
    data: Path,
    region: str | None = None,
    patcher: Path | None = None,
    annotation: str | None = None,
    gff: Path | None = None,
) -> Stretch:
    """Reads a stretch, and the patches and entropies of its bases.

    Args:
        data: the folder of a dataset, the PREFIX of one of its splits, or a FASTA file.
        region: of a FASTA file RECORD:FROM-TO; of a dataset SPLIT:FROM-TO in bases of the split's stream, or
            SPLIT/NUMBER:FROM-TO in bases of a document, which are numbered from 1. Bases are counted from 1, both
            ends included. By default all of the file, or of the split: the one named by a PREFIX, else the test.
        patcher: folder of a patcher, a checkpoint or a run, that cuts the sequence anew. By default a dataset's
            stored boundaries are shown, and a FASTA file is cut by a patcher that learns as it reads.
        annotation: name of a dataset's boundaries; by default "patches".
        gff: GFF3 file with coding sequences; for a FASTA file.

    Raises:
        InspectionError: there are no such data or patcher, or what was given doesn't go together.
        DataError: a file is missing or broken, or there is no such region.
        PretrainedError: there is no whole checkpoint.
    """
    wanted = None if region is None else Region.parse(region)
    given = None if patcher is None else find_patcher(patcher)
    if data.is_file():
        if annotation is not None:
            raise InspectionError(f"{data} is a FASTA file: boundaries named {annotation!r} belong to a dataset")
        return _read_fasta_stretch(data, wanted, given, gff)
    if gff is not None:
        raise InspectionError(
            f"{data} is a dataset, which doesn't keep the names of its records: to see what is coding, give the FASTA "
            f"file, and --patcher {patcher_folder(data, annotation or 'patches')}"
        )
    return _read_dataset_stretch(data, wanted, given, annotation or "patches")


def find_patcher(path: Path) -> Patcher:
    """The patcher of a folder that holds one, of a checkpoint, or of a run's newest checkpoint.

    Raises:
        InspectionError: there is none.
        PretrainedError: there is no whole checkpoint.
        ConfigError, EntropyModelError: the patcher can't be read.
    """
    if not path.is_dir():
        raise InspectionError(f"{path}: no such folder; give that of a patcher (DATA/NAME.patcher), checkpoint or run")
    if (path / PATCHER_FILE).is_file():
        return Patcher.load(path)
    # Imported here because torch, which a checkpoint needs and a patcher doesn't, takes seconds.
    from hyena_blt_savanna.evaluation.native_checkpoint import PATCHER, find_native

    folder = find_native(path) / PATCHER
    if not folder.is_dir():
        raise InspectionError(f"{folder}: no such folder; a model of single bases cuts nothing into patches")
    return Patcher.load(folder)


def _calibrated_mean(patcher: Patcher) -> float | None:
    return None if patcher.calibration is None else patcher.calibration.mean_bases


def _read_fasta_stretch(path: Path, region: Region | None, patcher: Patcher | None, gff: Path | None) -> Stretch:
    records = [read_record(path, region.name)] if region else list(read_fasta(path))
    notes = []
    if patcher is None:
        patcher = DEFAULT_PATCHER
        notes.append("No patcher was given: cut by the default one, which learns from the sequence as it reads.")
    model = _model_of(patcher, notes)
    pieces = []
    for record in records:
        bases = (
            record.sequence if region or len(records) == 1 else np.append(record.sequence, np.uint8(END_OF_DOCUMENT))
        )
        start, stop = (region.start, region.stop) if region else (0, len(bases))
        _check_inside(f"{path}, record {record.name!r}", start, stop, len(record.sequence) if region else stop)
        pieces.append(_cut_piece(bases, start, stop, patcher, model))
    bases, entropies, starts, lengths = (np.concatenate(parts) for parts in zip(*_end_to_end(pieces), strict=True))
    first = region.start + 1 if region else 1
    return Stretch(
        title=f"{path.name}, {region.name}:{region.start + 1:,}-{region.stop:,}" if region else _title(path, records),
        first=first,
        bases=bases,
        entropies=entropies,
        starts=starts,
        lengths=lengths,
        rule=patcher.rule,
        calibrated_mean_bases=_calibrated_mean(patcher),
        coding=None if gff is None else _coding(gff, records, region, len(bases)),
        notes=tuple(notes),
    )


_Piece = tuple[Bytes, NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]]


def _cut_piece(document: Bytes, start: int, stop: int, patcher: Patcher, model: EntropyModel) -> _Piece:
    """Bases, entropies, starts and lengths of [start, stop), as if the document had been read from its start."""
    lead_in = max(_LEAD_IN_BASES, 2 * model.context_bases) if model.context_bases else _LEARNING_BASES
    begin, end = max(0, start - lead_in), min(len(document), stop + patcher.rule.max_patch_bases)
    read = document[begin:end]
    entropies = model.entropies(read)
    lengths = cut(read, entropies if patcher.rule.needs_entropies else None, patcher.rule)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths - (start - begin)
    inside = (starts >= 0) & (starts < stop - start)
    here = slice(start - begin, stop - begin)
    return read[here], entropies[here], starts[inside], lengths[inside]


def _end_to_end(pieces: list[_Piece]) -> list[_Piece]:
    offsets = np.cumsum([0, *(len(bases) for bases, *_ in pieces[:-1])])
    return [
        (bases, entropies, starts + offset, lengths)
        for (bases, entropies, starts, lengths), offset in zip(pieces, offsets, strict=True)
    ]


def _coding(gff: Path, records: list[Record], region: Region | None, num_bases: int) -> Coding:
    found = coding_of(gff, read_gff(gff), {record.name: len(record.sequence) for record in records})
    if region is not None:
        coding = found[region.name]
        return Coding(coding.strands[region.start : region.stop], coding.codon_places[region.start : region.stop])
    strands, places = np.zeros(num_bases, dtype=np.uint8), np.full(num_bases, -1, dtype=np.int8)
    begin = 0
    for record in records:
        end = begin + len(record.sequence)
        strands[begin:end], places[begin:end] = found[record.name].strands, found[record.name].codon_places
        # The end of a document lies between two records.
        begin = end + 1
    return Coding(strands, places)


def _read_dataset_stretch(data: Path, region: Region | None, given: Patcher | None, annotation: str) -> Stretch:
    prefix, start, stop, first, title = _find_in_dataset(data, region)
    reader = IndexedReader(prefix)
    notes: list[str] = []
    if given is not None:
        notes.append("Cut anew by the patcher that was given; the dataset's own boundaries are not shown.")
        model = _model_of(given, notes)
        edges = reader.document_starts
        inside = edges[np.searchsorted(edges, start, side="right") - 1 : np.searchsorted(edges, stop) + 1].tolist()
        pieces = [
            _cut_piece(reader.stream[begin:end], max(start, begin) - begin, min(stop, end) - begin, given, model)
            for begin, end in itertools.pairwise(inside)
        ]
        bases, entropies, starts, lengths = (np.concatenate(parts) for parts in zip(*_end_to_end(pieces), strict=True))
        patcher = given
    else:
        boundaries = BoundaryReader(prefix, annotation)
        patcher = Patcher.load(patcher_folder(prefix.parent, annotation))
        begin, lengths = boundaries.patches(start, stop)
        starts = begin - start + np.cumsum(lengths, dtype=np.int64) - lengths
        bases = np.asarray(reader.stream[start:stop])
        if "forward" in boundaries.manifest.entropies_sha256:
            entropies = EntropyReader(prefix, annotation, "forward").read(start, stop)
        else:
            if prefix.name == SPLIT_NAMES[0] and patcher.entropy_model is not None:
                notes.append(
                    "Entropies are those of the model of the whole training data; its cuts were found out of fold."
                )
            entropies = _entropies(reader, start, stop, _model_of(patcher, notes))
    return Stretch(
        title=title + ("" if given else f" ({annotation})"),
        first=first,
        bases=bases,
        entropies=entropies,
        starts=starts,
        lengths=lengths,
        rule=patcher.rule,
        calibrated_mean_bases=_calibrated_mean(patcher),
        notes=tuple(notes),
    )


def _find_in_dataset(data: Path, region: Region | None) -> tuple[Path, int, int, int, str]:
    """Prefix, [start, stop) of its stream, the number that the first base is given, and a title."""
    folder = data if data.is_dir() else data.parent
    splits = [name for name in SPLIT_NAMES if manifest_path(folder / name).is_file()]
    if not splits or (not data.is_dir() and data.name not in splits):
        raise InspectionError(
            f"{data}: neither a FASTA file nor a dataset; give the folder that tools/prepare_genomes.py filled, or "
            "the path of one of its splits, as in FOLDER/train"
        )
    name, _, number = (region.name if region else splits[-1] if data.is_dir() else data.name).partition("/")
    if name not in splits or (number and not number.isdecimal()) or (not data.is_dir() and name != data.name):
        known = ", ".join(splits) if data.is_dir() else data.name
        raise InspectionError(
            f"region of {region.name if region else name!r}: a dataset's regions are SPLIT:FROM-TO or "
            f"SPLIT/NUMBER:FROM-TO with the number of a document; splits here: {known}"
        )
    prefix = folder / name
    reader = IndexedReader(prefix)
    begin, end = 0, len(reader.stream)
    if number:
        if not 1 <= int(number) <= reader.num_documents:
            raise InspectionError(f"{prefix}: no document {number}; it has {reader.num_documents:,}, counted from 1")
        begin, end = (int(edge) for edge in reader.document_starts[int(number) - 1 : int(number) + 1])
    if region is None:
        return prefix, begin, end, 1, f"{folder.name}, {name}"
    what = f"{prefix}, document {number}" if number else str(prefix)
    _check_inside(what, region.start, region.stop, end - begin)
    title = f"{folder.name}, {region.name}:{region.start + 1:,}-{region.stop:,}"
    return prefix, begin + region.start, begin + region.stop, region.start + 1, title


def _entropies(reader: IndexedReader, start: int, stop: int, model: EntropyModel) -> NDArray[np.float32]:
    """Entropies of a stretch of a stream, as if each document had been read from its start."""
    document_start = int(reader.document_starts[np.searchsorted(reader.document_starts, start, side="right") - 1])
    lead_in = model.context_bases or _LEARNING_BASES
    begin = max(document_start, start - lead_in)
    state = START if begin == document_start else place_after([reader.stream[document_start:begin]])
    stepper = model.stepper(state)
    stepper.read(np.asarray(reader.stream[begin:start]))
    return stepper.read(np.asarray(reader.stream[start:stop]))


def _model_of(patcher: Patcher, notes: list[str]) -> EntropyModel:
    if patcher.entropy_model is not None:
        return patcher.entropy_model
    notes.append("The rule reads no entropies: those shown are of a model that learns from the sequence as it reads.")
    assert DEFAULT_PATCHER.entropy_model is not None
    return DEFAULT_PATCHER.entropy_model


def _check_inside(what: str, start: int, stop: int, num_bases: int) -> None:
    if stop > num_bases:
        raise InspectionError(f"{what}: no region {start + 1:,}-{stop:,} in it: it has {num_bases:,} bases")


def _title(path: Path, records: list[Record]) -> str:
    return f"{path.name}, {records[0].name}" if len(records) == 1 else f"{path.name}, {len(records):,} records"
