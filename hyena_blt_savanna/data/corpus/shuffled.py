"""The shards of a shuffled source, in two steps: inputs into spills, then each bucket of them into a shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.corpus.inputs import CorpusInput
from hyena_blt_savanna.data.corpus.plan import SourcePlan
from hyena_blt_savanna.data.corpus.reading_inputs import read_input
from hyena_blt_savanna.data.corpus.shards import ShardWriter
from hyena_blt_savanna.data.corpus.source import InputReport, ShardEntry
from hyena_blt_savanna.data.corpus.spill import Entries, SpillReader, SpillWriter, read_bucket, spill_path
from hyena_blt_savanna.data.corpus.tags import LONGEST_TAG_BYTES
from hyena_blt_savanna.data.order import order_key
from hyena_blt_savanna.data.splits import SplitName
from hyena_blt_savanna.data.whole_files import write_whole

_PIECE_BYTES = 1 << 22
_TAG_MARK = b"|"

Wanted = Mapping[SplitName, frozenset[int]]


class SpilledInput(Config):
    """WORK/INPUT.json: an input that lies in spills, written last."""

    settings_sha256: str
    report: InputReport
    run_starts: dict[SplitName, list[int]]
    """For each split that it has documents of, `SpillWriter.run_starts`."""
    wanted: dict[SplitName, list[int]]
    """The buckets that were written."""


def spill_input(plan: SourcePlan, given: CorpusInput, wanted: Wanted) -> SpilledInput:
    """Reads an input into spills, unless that was done before.

    Args:
        plan: of the source.
        given: the input.
        wanted: buckets of each split that are to be made into shards.

    Raises:
        InputError: the input can't be read.
        DiskFullError: the disk is full.
    """
    found = _find_spilled(plan, given, wanted)
    if found is not None:
        return found
    plan.report_path(given).unlink(missing_ok=True)
    with ExitStack() as stack:
        sink = _SpillSink(plan, given, wanted, stack)
        report = read_input(plan, given, sink)
    spilled = SpilledInput(
        settings_sha256=plan.settings_sha256,
        report=report,
        run_starts={split: writer.run_starts for split, writer in sink.writers.items()},
        wanted={split: sorted(buckets) for split, buckets in wanted.items()},
    )
    write_whole(plan.report_path(given), json.dumps(spilled.to_dict()).encode())
    return spilled


def _find_spilled(plan: SourcePlan, given: CorpusInput, wanted: Wanted) -> SpilledInput | None:
    path = plan.report_path(given)
    if not path.is_file() or path.stat().st_mtime < plan.newest(given):
        return None
    found = SpilledInput.parse(json.loads(path.read_bytes()), str(path))
    is_enough = all(buckets <= set(found.wanted.get(split, ())) for split, buckets in wanted.items())
    is_there = all(spill_path(plan.work_prefix(given, split)).is_file() for split in found.run_starts)
    return found if found.settings_sha256 == plan.settings_sha256 and is_enough and is_there else None


class _SpillSink:
    """Writes documents into one spill a split."""

    def __init__(self, plan: SourcePlan, given: CorpusInput, wanted: Wanted, stack: ExitStack) -> None:
        self.writers: dict[SplitName, SpillWriter] = {}
        self._plan, self._given, self._wanted, self._stack = plan, given, wanted, stack
        self._key = order_key("order of a source", plan.config.seed)
        self._by_letters = plan.config.cleaning.duplicates == "drop"

    def add(
        self, split: SplitName, identity: tuple[int, int, bytes], tag: bytes, pieces: Iterator[bytes], num_bases: int
    ) -> None:
        """See `DocumentSink.add`."""
        writer = self.writers.get(split)
        if writer is None:
            prefix, num_buckets = self._plan.work_prefix(self._given, split), self._plan.num_buckets.get(split, 1)
            writer = SpillWriter(prefix, num_buckets, self._wanted.get(split, frozenset()))
            self.writers[split] = self._stack.enter_context(writer)
        record, part, letters = identity
        # Documents with the same letters get the same key, and so come together.
        text = letters if self._by_letters else f"{self._given.name}/{record}/{part}".encode()
        hashed = hashlib.blake2b(text, digest_size=8, key=self._key).digest()
        writer.add(int.from_bytes(hashed, "little"), tag, pieces, num_bases)


def write_bucket(plan: SourcePlan, split: SplitName, number: int, spilled: Sequence[SpilledInput]) -> ShardEntry | None:
    """Writes the shard of one bucket.

    Args:
        plan: of the source.
        split: of the shard.
        number: of the bucket.
        spilled: all inputs, in the order of the plan.

    Returns:
        The shard's entry; None where no document fell into the bucket.

    Raises:
        DiskFullError: the disk is full.
    """
    prefixes = [plan.work_prefix(given, split) for given in plan.inputs]
    by_input = [
        read_bucket(prefix, found.run_starts.get(split, []), number, plan.num_buckets[split])
        for prefix, found in zip(prefixes, spilled, strict=True)
    ]
    inputs = np.repeat(np.arange(len(by_input), dtype=np.int32), [len(entries) for entries in by_input])
    entries = np.concatenate(by_input)
    if not len(entries):
        return None
    prefix = plan.shard_prefix(split, number)
    with (
        closing(SpillReader(prefixes)) as reader,
        ShardWriter(prefix, plan.config.source, split, plan.settings_sha256) as writer,
    ):
        bucket = _Bucket(entries, inputs, reader)
        order = np.lexsort((entries["offset"], inputs, entries["key"]))
        for index in bucket.without_duplicates(order) if plan.config.cleaning.duplicates == "drop" else order:
            bucket.copy(index, writer)
        return writer.finish(bucket.num_duplicates, bucket.duplicate_bases)


class _Bucket:
    """The documents of a bucket, where they lie."""

    def __init__(self, entries: Entries, inputs: NDArray[np.int32], reader: SpillReader) -> None:
        self._keys, self._offsets, self._lengths = entries["key"], entries["offset"], entries["num_bytes"]
        self._inputs, self._reader = inputs, reader
        self.num_duplicates = self.duplicate_bases = 0

    def copy(self, index: np.int64, writer: ShardWriter) -> None:
        """Appends a document to a shard."""
        num_bytes = int(self._lengths[index])
        if num_bytes <= _PIECE_BYTES:
            writer.add(self._read(index, 0, num_bytes))
            return
        tag = self._tag(index)
        writer.add_in_pieces(tag, self._pieces(index, len(tag)), num_bytes - len(tag) - 1)

    def without_duplicates(self, order: NDArray[np.int64]) -> Iterator[np.int64]:
        """The documents in an order by keys, but for those that have the letters of an earlier one."""
        kept: list[np.int64] = []
        for index in order:
            if kept and self._keys[index] != self._keys[kept[-1]]:
                kept = []
            if any(self._same_letters(index, other) for other in kept):
                self.num_duplicates += 1
                self.duplicate_bases += int(self._lengths[index]) - len(self._tag(index)) - 1
                continue
            kept.append(index)
            yield index

    def _same_letters(self, index: np.int64, other: np.int64) -> bool:
        """Whether two documents have the same letters, in either case; a key says so too, but for chance."""
        tags = len(self._tag(index)), len(self._tag(other))
        if self._lengths[index] - tags[0] != self._lengths[other] - tags[1]:
            return False
        pairs = zip(self._pieces(index, tags[0]), self._pieces(other, tags[1]), strict=True)
        return all(piece.upper() == others.upper() for piece, others in pairs)

    def _tag(self, index: np.int64) -> bytes:
        front = self._read(index, 0, min(int(self._lengths[index]), LONGEST_TAG_BYTES + 2))
        return front[: front.index(_TAG_MARK, 1) + 1] if front.startswith(_TAG_MARK) else b""

    def _pieces(self, index: np.int64, start: int) -> Iterator[bytes]:
        """A document's letters, which begin at `start`, without its end."""
        stop = int(self._lengths[index]) - 1
        for begin in range(start, stop, _PIECE_BYTES):
            yield self._read(index, begin, min(begin + _PIECE_BYTES, stop))

    def _read(self, index: np.int64, start: int, stop: int) -> bytes:
        return self._reader.read(int(self._inputs[index]), int(self._offsets[index]) + start, stop - start)
