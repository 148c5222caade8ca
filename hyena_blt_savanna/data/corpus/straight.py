"""The shards of a source that is not shuffled: each input in its order, into shards of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.corpus.inputs import CorpusInput
from hyena_blt_savanna.data.corpus.plan import SourcePlan
from hyena_blt_savanna.data.corpus.reading_inputs import read_input
from hyena_blt_savanna.data.corpus.shards import ShardWriter, find_shard
from hyena_blt_savanna.data.corpus.source import InputReport, ShardEntry
from hyena_blt_savanna.data.splits import SplitName
from hyena_blt_savanna.data.whole_files import write_whole

_SMALL_BYTES = 1 << 20
_END = b"\0"


class WrittenInput(Config):
    """WORK/INPUT.json: an input whose shards are written, written last."""

    settings_sha256: str
    report: InputReport


def write_input(plan: SourcePlan, number: int) -> InputReport:
    """Writes an input's shards, but for those that are finished already.

    The input is read from its start; where a shard is there, its documents are counted and not written.

    Args:
        plan: of the source.
        number: of the input in the plan.

    Raises:
        InputError: the input can't be read.
        DiskFullError: the disk is full.
    """
    given = plan.inputs[number]
    found = _find_written(plan, given)
    if found is not None:
        return found
    with ExitStack() as stack:
        sink = _ShardSink(plan, number, stack)
        report = read_input(plan, given, sink)
        report = report.model_copy(update={"shards": sink.finish()})
    write_report(plan, given, report)
    return report


def write_report(plan: SourcePlan, given: CorpusInput, report: InputReport) -> None:
    """Notes that an input's shards are written."""
    written = WrittenInput(settings_sha256=plan.settings_sha256, report=report)
    write_whole(plan.report_path(given), json.dumps(written.to_dict()).encode())


def _find_written(plan: SourcePlan, given: CorpusInput) -> InputReport | None:
    path = plan.report_path(given)
    if not path.is_file() or path.stat().st_mtime < plan.newest(given):
        return None
    found = WrittenInput.parse(json.loads(path.read_bytes()), str(path))
    if found.settings_sha256 != plan.settings_sha256:
        return None
    return found.report if all(shard.is_whole(plan.output) for shard in found.report.shards) else None


class _ShardSink:
    """Writes documents into shards, a row of them for each split."""

    def __init__(self, plan: SourcePlan, number: int, stack: ExitStack) -> None:
        self._rows: dict[SplitName, _ShardRow] = {}
        self._plan, self._number, self._stack = plan, number, stack

    def add(
        self, split: SplitName, identity: tuple[int, int, bytes], tag: bytes, pieces: Iterator[bytes], num_bases: int
    ) -> None:
        """See `DocumentSink.add`."""
        row = self._rows.get(split)
        if row is None:
            row = self._rows[split] = _ShardRow(self._plan, self._number, split, self._stack)
        row.add(tag, pieces, num_bases)

    def finish(self) -> list[ShardEntry]:
        """Completes the last shards."""
        return [entry for row in self._rows.values() for entry in row.finish()]


class _ShardRow:
    """The shards of one input and split, one after the other."""

    def __init__(self, plan: SourcePlan, number: int, split: SplitName, stack: ExitStack) -> None:
        self._plan, self._number, self._split, self._stack = plan, number, split, stack
        self._newest = plan.newest(plan.inputs[number])
        self._done: list[ShardEntry] = []
        self._found: ShardEntry | None = None
        self._writer: ShardWriter | None = None
        self._num_bytes = 0

    def add(self, tag: bytes, pieces: Iterator[bytes], num_bases: int) -> None:
        """Takes one document."""
        if not self._num_bytes:
            self._begin()
        num_bytes = len(tag) + num_bases + len(_END)
        self._num_bytes += num_bytes
        if self._writer is not None and num_bytes <= _SMALL_BYTES:
            self._writer.add(b"".join((tag, *pieces, _END)))
        elif self._writer is not None:
            self._writer.add_in_pieces(tag, pieces, num_bases)
        if self._num_bytes >= self._plan.config.shard_bases:
            self._end()

    def finish(self) -> list[ShardEntry]:
        """Completes the last shard; returns all of them."""
        if self._num_bytes:
            self._end()
        return self._done

    def _begin(self) -> None:
        plan = self._plan
        prefix = plan.shard_prefix(self._split, len(self._done), self._number)
        self._found = find_shard(prefix, plan.settings_sha256, self._newest)
        if self._found is None:
            writer = ShardWriter(prefix, plan.config.source, self._split, plan.settings_sha256)
            self._writer = self._stack.enter_context(writer)

    def _end(self) -> None:
        if self._found is not None:
            self._done.append(self._found)
        else:
            assert self._writer is not None
            self._done.append(self._writer.finish())
        self._writer, self._num_bytes = None, 0
