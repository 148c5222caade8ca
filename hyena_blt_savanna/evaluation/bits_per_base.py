"""Bits per base on held-out sequence: each base scored once, in overlapping windows."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.boundaries import BoundaryReader
from hyena_blt_savanna.data.fasta import read_fasta, read_region
from hyena_blt_savanna.data.indexed import IndexedReader, index_path
from hyena_blt_savanna.data.regions import Region
from hyena_blt_savanna.evaluation.native_checkpoint import patch_places
from hyena_blt_savanna.evaluation.scoring import patch_lengths_of, reads_patches, score_windows
from hyena_blt_savanna.evaluation.sequences import scored_bases, without_end
from hyena_blt_savanna.evaluation.windows import ScoredWindow, check_window, overlapping_windows
from hyena_blt_savanna.nucleotides import IS_REPEAT_MASKED, Bytes
from hyena_blt_savanna.patching.ngram import NgramModel

if TYPE_CHECKING:
    from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel

WINDOW_BASES = 8192
"""Window of a model that does not know what it was trained on."""


class EvaluationError(ValueError):
    """Data that no figure can be given for."""


@dataclass(frozen=True)
class BaseClass:
    """One class of bases.

    Attributes:
        bits_per_base: None where the class has no bases.
        num_bases: that are scored.
    """

    bits_per_base: float | None
    num_bases: int


@dataclass(frozen=True)
class BitsPerBase:
    """How well a model predicts sequence.

    Attributes:
        bits_per_base: mean over all bases that are scored.
        num_bases: that are scored: A, C, G and T of either case.
        repeat_masked: those in lower case.
        not_repeat_masked: those in upper case.
        num_unscored_letters: other letters, marks and tags.
        num_records: sequences.
        num_patches: of all sequences; None for a model that is not patched.
        mean_patch_bases: likewise.
        window_bases: of a window; None where there are none.
        overlap_bases: least context of each base behind the first window's; None where there are no windows.
        seconds: spent.
    """

    bits_per_base: float
    num_bases: int
    repeat_masked: BaseClass
    not_repeat_masked: BaseClass
    num_unscored_letters: int
    num_records: int
    num_patches: int | None
    mean_patch_bases: float | None
    window_bases: int | None
    overlap_bases: int | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The plain values, ready for JSON."""
        return asdict(self)


class _Sums:
    """Nats and bases by class, in float64; documents come in pieces, each base once."""

    def __init__(self) -> None:
        self.nats = np.zeros(2)
        self.num_bases = np.zeros(2, dtype=np.int64)
        self.num_letters = 0
        self.num_records = 0
        self.num_patches = 0
        self._began = time.perf_counter()

    def add(self, bases: Bytes, scored: NDArray[np.bool_], log_likelihoods: NDArray[np.float32]) -> None:
        """Takes in some bases: uint8, bool and float32 [L]."""
        lower = IS_REPEAT_MASKED[bases[scored]].astype(np.int64)
        self.nats -= np.bincount(lower, log_likelihoods[scored].astype(np.float64), minlength=2)
        self.num_bases += np.bincount(lower, minlength=2)
        self.num_letters += len(bases)

    def result(self, is_patched: bool, window_bases: int | None, overlap_bases: int | None) -> BitsPerBase:
        """The figures.

        Raises:
            EvaluationError: there were no bases to score.
        """
        total = int(self.num_bases.sum())
        if not total:
            raise EvaluationError(
                f"no base A, C, G, T among the {self.num_letters:,} letters of {self.num_records:,} record(s): "
                "there is nothing to score"
            )
        unmasked, masked = (
            BaseClass(float(nats) / math.log(2) / int(num) if num else None, int(num))
            for nats, num in zip(self.nats, self.num_bases, strict=True)
        )
        return BitsPerBase(
            bits_per_base=float(self.nats.sum()) / math.log(2) / total,
            num_bases=total,
            repeat_masked=masked,
            not_repeat_masked=unmasked,
            num_unscored_letters=self.num_letters - total,
            num_records=self.num_records,
            num_patches=self.num_patches if is_patched else None,
            mean_patch_bases=self.num_letters / self.num_patches if is_patched else None,
            window_bases=window_bases,
            overlap_bases=overlap_bases,
            seconds=time.perf_counter() - self._began,
        )


def evaluate_bits_per_base(
    model: HyenaBLTModel,
    documents: Iterable[Bytes],
    window_bases: int | None = None,
    overlap_bases: int | None = None,
    batch_windows: int = 4,
    patches: Iterable[NDArray[np.int32]] | None = None,
) -> BitsPerBase:
    """Scores documents in overlapping windows (see `windows`), each base of A, C, G, T once.

    Boundaries are found over each whole document by the model's own patcher, unless they are given. The end of a
    document is not part of the figures, and neither are tags, marks and other letters.

    Args:
        model: the model.
        documents: uint8 [L] each, case kept; an end-of-document byte is left out.
        window_bases: of a window; by default the longest that the model was trained on, if it knows.
        overlap_bases: least context of each base behind the first window's; by default half of a window.
        batch_windows: windows in one pass; a matter of speed and memory only.
        patches: int32 [P] for each document, lengths of its patches without an end-of-document byte (see
            `stored_patches`): for a model without a patcher; not read for a model that reads no boundaries.

    Raises:
        EvaluationError: there is nothing to score, no window in a pass, or a given patch is longer than the model has
            places for.
        WindowError: the overlap doesn't fit the window.
        NoPatcherError: the model needs a patcher and has none.
    """
    if window_bases is None:
        window_bases = model.window_bases or WINDOW_BASES
    overlap_bases = window_bases // 2 if overlap_bases is None else overlap_bases
    check_window(window_bases, overlap_bases)
    if batch_windows < 1:
        raise EvaluationError(f"batch_windows is {batch_windows}: give at least 1")
    sums = _Sums()

    def windows() -> Iterator[ScoredWindow]:
        given = None if patches is None or not reads_patches(model) else iter(patches)
        for document in documents:
            bases = without_end(document)
            lengths = patch_lengths_of(model, bases) if given is None else _fitting(model, next(given))
            sums.num_records += 1
            sums.num_patches += len(lengths)
            yield from overlapping_windows(bases, lengths, window_bases, overlap_bases)

    for window, log_likelihoods in score_windows(model, windows(), batch_windows):
        sums.add(window.bases[window.first_scored :], window.counts, log_likelihoods)
    return sums.result(reads_patches(model), window_bases, overlap_bases)


def _fitting(model: HyenaBLTModel, lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    places = patch_places(model.config)
    assert places is not None
    if lengths.max(initial=0) > places[1]:
        raise EvaluationError(
            f"the stored boundaries have a patch of {lengths.max()} bases, and the model has places for {places[1]}: "
            "name the annotation that it was trained on, or one with shorter patches"
        )
    return lengths


def ngram_bits_per_base(ngram: NgramModel, documents: Iterable[Bytes]) -> BitsPerBase:
    """What a model of counts makes of the same bases: the baseline.

    Args:
        ngram: fitted on training data.
        documents: as in `evaluate_bits_per_base`.

    Raises:
        EvaluationError: there is nothing to score.
    """
    sums = _Sums()
    for document in documents:
        bases = without_end(document)
        sums.num_records += 1
        sums.add(bases, scored_bases(bases), ngram.log_probabilities(bases))
    return sums.result(is_patched=False, window_bases=None, overlap_bases=None)


def documents_of(data: Path, region: str | None = None) -> Iterator[Bytes]:
    """Sequences of a FASTA file or an indexed dataset, uint8 [L] each, case kept.

    Args:
        data: the file, or the path of a dataset without its suffix.
        region: of a FASTA file, see `fasta_documents`.

    Raises:
        EvaluationError: a region of a dataset, whose documents have no names.
        RegionError: the region can't be understood.
        DataError: there is no such region, or the data are missing or broken.
    """
    if not index_path(data).is_file():
        return fasta_documents(data, region)
    if region is not None:
        raise EvaluationError(f"{data} is a dataset, and region {region!r} needs a FASTA file: a dataset has no names")
    return dataset_documents(data)


def fasta_documents(path: Path, region: str | None = None) -> Iterator[Bytes]:
    """Sequences of a FASTA file, uint8 [L] each, case kept.

    Args:
        path: the file.
        region: RECORD:FROM-TO, counted from 1, both ends included: this stretch alone, as a sequence of its own.

    Raises:
        RegionError: the region can't be understood.
        FastaError: there is no such region, or the file can't be read.
    """
    if region is None:
        return (record.sequence for record in read_fasta(path))
    return iter([read_region(path, *Region.parse(region))])


def dataset_documents(prefix: Path) -> Iterator[Bytes]:
    """Documents of an indexed dataset, uint8 [L] each, as on disk.

    Args:
        prefix: path of the dataset without its suffix.

    Raises:
        DataError: the data are missing or broken.
    """
    reader = IndexedReader(prefix)
    return (reader.document(index) for index in range(reader.num_documents))


def stored_patches(prefix: Path, annotation: str) -> Iterator[NDArray[np.int32]]:
    """Lengths of the patches of each document of a dataset, forward strand, as they are stored beside it.

    Args:
        prefix: path of the dataset without its suffix.
        annotation: name of the patch boundaries.

    Yields:
        int32 [P]; they sum to the document's bases without its end-of-document byte.

    Raises:
        DataError: the boundaries are missing, broken, or of other data.
    """
    reader, boundaries = IndexedReader(prefix), BoundaryReader(prefix, annotation)
    for start, stop in itertools.pairwise(reader.document_starts.tolist()):
        _, lengths = boundaries.patches(start, stop)
        # The end of a document is the last base of its last patch, and may be alone in it.
        lengths[-1] -= stop - start - len(without_end(reader.stream[start:stop]))
        yield lengths[lengths > 0]
