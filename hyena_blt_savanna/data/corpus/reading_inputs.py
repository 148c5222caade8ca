"""Reads one input of a source: its cleaned, divided documents go where they are wanted, its counts into a report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Protocol

from hyena_blt_savanna.data.corpus.byte_streams import DigestedFile
from hyena_blt_savanna.data.corpus.cleaner import Cleaner
from hyena_blt_savanna.data.corpus.inputs import CorpusInput, RecordError
from hyena_blt_savanna.data.corpus.plan import SourcePlan
from hyena_blt_savanna.data.corpus.records import read_records
from hyena_blt_savanna.data.corpus.source import InputReport
from hyena_blt_savanna.data.corpus.spool import Spool
from hyena_blt_savanna.data.splits import SplitName

logger = logging.getLogger(__name__)


class DocumentSink(Protocol):
    """Where documents go."""

    def add(
        self,
        split: SplitName,
        identity: tuple[int, int, bytes],
        tag: bytes,
        pieces: Iterator[bytes],
        num_bases: int,
    ) -> None:
        """Takes one document.

        Args:
            split: that it is of.
            identity: number of its record in the input, its place among the record's documents, and bytes that are the
                same for documents with the same letters.
            tag: with its marks, or empty.
            pieces: its letters.
            num_bases: how many they are.
        """


def read_input(plan: SourcePlan, given: CorpusInput, sink: DocumentSink) -> InputReport:
    """Reads an input from its start to its end.

    Args:
        plan: of the source.
        given: the input.
        sink: takes its documents.

    Returns:
        What it was, and what cleaning did to it.

    Raises:
        InputError: the input can't be read, or more records than max_bad_records are bad.
        DiskFullError: the disk is full.
    """
    config = plan.config
    splitter = config.split.open()
    plan.work.mkdir(parents=True, exist_ok=True)
    num_bad = 0
    with closing(DigestedFile(given.paths)) as file, Spool(plan.work) as spool:
        cleaner = Cleaner(config.cleaning, plan.alphabet, config.seed, given.path, spool)
        for record in read_records(given, file, plan.reading):
            try:
                documents = cleaner.clean(record)
            except RecordError as error:
                num_bad += 1
                if num_bad > config.max_bad_records:
                    raise
                logger.warning("%s; left out", error)
                continue
            part = 0
            for document in documents:
                length = document.stop - document.start
                stretches = splitter.pieces(given, record, length, config.cleaning.min_bases)
                for number, (split, start, stop) in enumerate(stretches):
                    pieces = spool.read(document.start + start, document.start + stop)
                    identity = (record.number, part, document.digest + bytes([number]))
                    sink.add(split, identity, document.tag, pieces, stop - start)
                    part += 1
        counts, sha256 = cleaner.counts, file.sha256()
    logger.info("%s: %s records, %s letters", given.path, f"{counts.records:,}", f"{counts.letters:,}")
    return InputReport(name=given.name, num_bytes=given.num_bytes, sha256=sha256, counts=counts)
