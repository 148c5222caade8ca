"""Batches: windows as tensors, in a keyed order that neither ranks nor restarts change."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.folds import LeftOut
from hyena_blt_savanna.data.indexed import IndexedReader, data_path
from hyena_blt_savanna.data.manifest import Strand
from hyena_blt_savanna.data.order import keyed_integer, keyed_permutation, order_key
from hyena_blt_savanna.data.shards import OpenShards, ShardList, ShardRing
from hyena_blt_savanna.data.weights import fold_and_weigh, weight_table
from hyena_blt_savanna.data.windows import FoundWindow, Window, WindowCutter, WindowReader
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, PADDING, UPPER

POOL_BASES = 1 << 36
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Batch:
    """Windows side by side.

    Attributes:
        bases: int64 [B, L], upper case; each row starts with an end-of-document byte and ends in padding bytes.
        patch_lengths: int32 [B, P]; the first patch of a row is the byte in front, zeros follow the last.
        loss_weights: float32 [B, L], weight of each base as a target; 0 for the byte in front and for padding.
        num_cut_patches: patches that were left out of the windows because there were too many.
        entropies: float32 [B, L], nats, of each base given those before it: a target, which no input may be made of;
            0 for the byte in front and for padding, as their weights are. None where the windows hold none.
        left_patches: patches at the start of each row that belong to the slice on the left; 0 where rows are windows,
            or their first slices.
        first_positions: int64 [B], bases of its window that precede each row; None: rows begin with their windows.
    """

    bases: torch.Tensor
    patch_lengths: torch.Tensor
    loss_weights: torch.Tensor
    num_cut_patches: int = 0
    entropies: torch.Tensor | None = None
    left_patches: int = 0
    first_positions: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)

    @property
    def num_scored_bases(self) -> int:
        """Targets with a weight above zero."""
        return int((self.loss_weights > 0).sum())

    @property
    def num_bases(self) -> int:
        """Bases from the windows: without the bytes in front, the padding, and what the slice on the left has."""
        num_front = 0 if self.left_patches else len(self.patch_lengths)
        return int(self.patch_lengths[:, self.left_patches :].sum()) - num_front


def collate(
    windows: Sequence[Window],
    repeat_weight: float = 1.0,
    pad_bases_to: int | None = None,
    pad_patches_to: int | None = None,
    has_front: bool = True,
) -> Batch:
    """Lays windows side by side, each behind an end-of-document byte that is a patch of its own.

    Args:
        windows: at least one; all of them hold entropies, or none does.
        repeat_weight: weight of repeat-masked bases as targets.
        pad_bases_to: least L, the byte in front included; the longest window decides if it needs more.
        pad_patches_to: least P, likewise.
        has_front: False leaves the byte in front out: rows begin with the windows' own bases.
    """
    front = int(has_front)
    num_bases = max(front + max(len(window.bases) for window in windows), pad_bases_to or 0)
    num_patches = max(front + max(len(window.patch_lengths) for window in windows), pad_patches_to or 0)
    bases = np.full((len(windows), num_bases), PADDING, dtype=np.int64)
    patch_lengths = np.zeros((len(windows), num_patches), dtype=np.int32)
    loss_weights = np.zeros((len(windows), num_bases), dtype=np.float32)
    entropies = None if windows[0].entropies is None else np.zeros((len(windows), num_bases), dtype=np.float32)
    table = weight_table(repeat_weight)
    bases[:, :front] = END_OF_DOCUMENT
    patch_lengths[:, :front] = 1
    for row, window in enumerate(windows):
        row_bases, row_weights = bases[row, front:], loss_weights[row, front:]
        for piece, num_tag_bytes in window.pieces():
            fold_and_weigh(window.bases[piece], UPPER, table, num_tag_bytes, row_bases[piece], row_weights[piece])
        patch_lengths[row, front : front + len(window.patch_lengths)] = window.patch_lengths
        if entropies is not None:
            entropies[row, front : front + len(window.bases)] = window.entropies
    return Batch(
        torch.from_numpy(bases),
        torch.from_numpy(patch_lengths),
        torch.from_numpy(loss_weights),
        sum(window.num_cut_patches for window in windows),
        None if entropies is None else torch.from_numpy(entropies),
    )


def read_batch(windows: Sequence[FoundWindow], repeat_weight: float = 1.0) -> Batch:
    """Reads windows and lays them side by side, as `collate` does."""
    return collate([window.read() for window in windows], repeat_weight)


class TrainingSamples:
    """An endless sequence of training windows, each a pure function of its place in it.

    An epoch goes once through all windows of the strands, in an order and with an offset of the grid that are keyed
    by seed, stage and epoch (see `windows` for the ring). Windows of a source larger than `POOL_BASES` are permuted
    that many bases at a time, in shards that are themselves in a keyed order, so that few of these are open at once.

    Args:
        source: path of a dataset without its suffix, or the shards of a source.
        annotation: name of the patch boundaries; None: each base a patch. Shards know theirs.
        strands: "both" or "forward".
        seed: decides the order and the offsets.
        repeat_weight: weight of repeat-masked bases as targets.
        window_patches: more patches than this are cut off a window; None never cuts.
        left_out: the fold of a dataset that is left out; None: nothing is.
        cutter: cuts each window anew; None: they are cut as stored.
        with_entropies: whether windows hold the stored entropies of their bases.
        opened: holds the shards of a source open, with their entropies where these are needed.

    Attributes:
        path: of the data, for messages.

    Raises:
        DataError: the data or the boundaries are missing, broken, or don't belong together; or entropies are asked
            for, and none were stored.
    """

    def __init__(
        self,
        source: Path | ShardList,
        annotation: str | None = "patches",
        strands: Literal["both", "forward"] = "both",
        seed: int = 0,
        repeat_weight: float = 1.0,
        window_patches: int | None = None,
        left_out: LeftOut | None = None,
        cutter: WindowCutter | None = None,
        with_entropies: bool = False,
        opened: OpenShards | None = None,
    ) -> None:
        self.seed = seed
        self.repeat_weight = repeat_weight
        self.window_patches = window_patches
        self.cutter = cutter
        names: tuple[Strand, ...] = ("forward", "reverse") if strands == "both" else ("forward",)
        self._readers: Sequence[WindowReader | ShardRing]
        if isinstance(source, ShardList):
            assert left_out is None
            assert opened is not None
            self.path = source.path
            shuffled = source.shuffled(order_key(seed, "shards"))
            self._readers = [ShardRing(shuffled, name, opened) for name in names]
            return
        self.path = data_path(source)
        reader = IndexedReader(source)
        readers = [WindowReader(source, annotation, name, reader, left_out) for name in names]
        if with_entropies or (cutter is not None and cutter.needs_entropies):
            for strand in readers:
                strand.open_entropies(in_windows=with_entropies)
        self._readers = readers

    @property
    def num_bytes(self) -> int:
        """Bases of an epoch on one strand: the stream's, less what is left out."""
        return min(reader.ring.num_bytes for reader in self._readers)

    @property
    def longest_patch_bases(self) -> int:
        """No window has a longer patch."""
        if self.cutter is not None:
            return self.cutter.longest_patch_bases
        return max(reader.longest_patch_bases for reader in self._readers)

    def num_windows(self, window_bases: int) -> int:
        """Windows of an epoch, over all strands.

        Raises:
            DataError: the stream is shorter than a window, or a patch is longer than one.
        """
        if self.num_bytes < window_bases:
            raise DataError(
                f"{self.path} has {self.num_bytes:,} bases, fewer than one window of {window_bases:,}: "
                "take a smaller window_bases or more data"
            )
        longest = self.longest_patch_bases
        if longest > window_bases:
            raise DataError(
                f"{self.path}: the longest patch has {longest:,} bases, more than a window of "
                f"{window_bases:,}: take a larger window_bases or a smaller max_patch_bases"
            )
        return -(-self.num_bytes // window_bases) * len(self._readers)

    def check_share(self, window_bases: int, num_ranks: int, micro_batch_windows: int) -> None:
        """Refuses more ranks than there are windows for.

        Raises:
            DataError: so it is; or as `num_windows`.
        """
        num_windows = self.num_windows(window_bases)
        if num_windows < num_ranks * micro_batch_windows:
            raise DataError(
                f"{self.path} has {num_windows:,} windows of {window_bases:,} bases, but {num_ranks} "
                f"ranks with micro batches of {micro_batch_windows} need {num_ranks * micro_batch_windows:,}: "
                "use fewer ranks, a smaller micro_batch_windows or window_bases, or more data"
            )

    def find(self, stage: int | str, window_bases: int, global_index: int, progress: float = 1.0) -> FoundWindow:
        """One window of training, with its patches known and its bases still to be read.

        Args:
            stage: index of the training stage, or name of a part of one; each has its own order.
            window_bases: the stage's window.
            global_index: place of the window in the stage, counted over all ranks, from 0.
            progress: how much of the training is behind it, from 0 to 1; only a cutter looks at it.

        Raises:
            DataError: as `num_windows`.
        """
        num_windows = self.num_windows(window_bases)
        epoch, place = divmod(global_index, num_windows)
        offset = keyed_integer(window_bases, order_key(self.seed, stage, epoch, "offset"))
        index, strand = divmod(self._chosen(place, num_windows, window_bases, stage, epoch), len(self._readers))
        reader = self._readers[strand]
        if self.cutter is None:
            return reader.ring_window(index, window_bases, offset, self.window_patches)
        key = order_key(self.seed, stage, global_index, "cuts")
        return reader.cut_window(index, window_bases, offset, self.cutter, key, progress, self.window_patches)

    def _chosen(self, place: int, num_windows: int, window_bases: int, stage: int | str, epoch: int) -> int:
        """Which window of an epoch comes at a place of its order: one of the pool that the place lies in."""
        pool_windows = max(1, POOL_BASES // window_bases) * len(self._readers)
        pool, place_in_pool = divmod(place, pool_windows)
        first = pool * pool_windows
        key = order_key(self.seed, stage, epoch, "order", *([pool] if pool else []))
        return first + keyed_permutation(place_in_pool, min(pool_windows, num_windows - first), key)

    def sample(self, stage: int | str, window_bases: int, global_index: int, progress: float = 1.0) -> Window:
        """As `find`, with all of its bases."""
        return self.find(stage, window_bases, global_index, progress).read()


class Samples(Protocol):
    """Training windows by their place; see `TrainingSamples`."""

    @property
    def repeat_weight(self) -> float:
        """Weight of repeat-masked bases as targets."""

    @property
    def longest_patch_bases(self) -> int:
        """No window has a longer patch."""

    def check_share(self, window_bases: int, num_ranks: int, micro_batch_windows: int) -> None:
        """See `TrainingSamples.check_share`."""

    def find(self, stage: int | str, window_bases: int, global_index: int, progress: float = 1.0) -> FoundWindow:
        """See `TrainingSamples.find`."""


class BatchLoader:
    """Micro batches of one rank, step after step without end, prepared by one thread ahead of their use.

    Step s of the stage takes the samples s * batch_windows to (s + 1) * batch_windows - 1; rank r takes the r-th of
    `num_ranks` equal runs of them, cut into micro batches. So the samples of a step and their order over the ranks
    depend on neither the number of ranks nor where the loader was started. `close` it, or use it as a context
    manager.

    Args:
        samples: where windows come from.
        stage: index of the training stage, or name of a part of one.
        window_bases: the stage's window.
        batch_windows: windows of a step, over all ranks.
        rank: this rank, in [0, num_ranks).
        num_ranks: ranks that share a step's windows.
        micro_batch_windows: windows of one micro batch; a step has batch_windows / num_ranks / micro_batch_windows.
        start_step: the first step to give, where training resumes.
        num_prefetched: micro batches that may wait.
        progress_of: how much of the training, from 0 to 1, is behind a step of this stage; 1 if left out.
        batch_of: reads the windows of a micro batch, or what this rank needs of them; all of them if left out.

    Raises:
        DataError: there are fewer windows than the ranks need, the stream is shorter than a window, or a step can't
            be divided evenly.
    """

    def __init__(
        self,
        samples: Samples,
        stage: int | str,
        window_bases: int,
        batch_windows: int,
        rank: int = 0,
        num_ranks: int = 1,
        micro_batch_windows: int = 1,
        start_step: int = 0,
        num_prefetched: int = 2,
        progress_of: Callable[[int], float] = lambda step: 1.0,
        batch_of: Callable[[Sequence[FoundWindow]], Batch] | None = None,
    ) -> None:
        assert 0 <= rank < num_ranks
        samples.check_share(window_bases, num_ranks, micro_batch_windows)
        if batch_windows % (num_ranks * micro_batch_windows):
            raise DataError(
                f"batch_windows {batch_windows} can't be divided among {num_ranks} ranks in micro batches of "
                f"{micro_batch_windows}: make it a multiple of {num_ranks * micro_batch_windows}"
            )
        self.samples, self.stage, self.window_bases = samples, stage, window_bases
        self.batch_windows, self.micro_batch_windows = batch_windows, micro_batch_windows
        self.rank, self.num_ranks = rank, num_ranks
        self._step = start_step
        self._progress_of = progress_of
        self._batch_of = batch_of or (lambda windows: read_batch(windows, samples.repeat_weight))
        self._queue: queue.Queue[Batch | Exception] = queue.Queue(maxsize=num_prefetched)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._prepare, name="batches", daemon=True)
        self._thread.start()

    @property
    def micro_batches_per_step(self) -> int:
        """Micro batches that this rank has in a step."""
        return self.batch_windows // self.num_ranks // self.micro_batch_windows

    def global_indices(self, step: int) -> list[range]:
        """Samples of each of this rank's micro batches in a step."""
        share = self.batch_windows // self.num_ranks
        begin = step * self.batch_windows + self.rank * share
        return [
            range(first, first + self.micro_batch_windows)
            for first in range(begin, begin + share, self.micro_batch_windows)
        ]

    def close(self) -> None:
        """Ends the thread; the loader gives nothing afterwards."""
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while not self._closed.is_set():
            try:
                item = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, Exception):
                self.close()
                raise item
            return item
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        try:
            while not self._closed.is_set():
                progress = self._progress_of(self._step)
                for indices in self.global_indices(self._step):
                    windows = [self.samples.find(self.stage, self.window_bases, index, progress) for index in indices]
                    if not self._put(self._batch_of(windows)):
                        return
                self._step += 1
        except Exception as error:
            # Raised again in the thread that asks for the next batch.
            self._put(error)

    def _put(self, item: Batch | Exception) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False


class EvaluationWindows(Sequence[Window]):
    """All windows of one strand in stream order: offset 0, never cut, every base exactly once.

    Args:
        prefix: path of the dataset without its suffix.
        annotation: name of the patch boundaries; None: each base a patch.
        strand: "forward" or "reverse".
        window_bases: bases in which a window's patches start.

    Raises:
        DataError: the data or the boundaries are missing, broken, or don't belong together.
    """

    def __init__(
        self, prefix: Path, annotation: str | None = "patches", strand: Strand = "forward", window_bases: int = 8192
    ) -> None:
        self.window_bases = window_bases
        self._reader = WindowReader(prefix, annotation, strand)
        self._num_windows = self._reader.num_windows(window_bases)

    def __len__(self) -> int:
        return self._num_windows

    def __getitem__(self, index: int) -> Window:  # type: ignore[override]
        return self.find(index).read()

    def find(self, index: int) -> FoundWindow:
        """A window, with its patches known and its bases still to be read."""
        if not 0 <= index < self._num_windows:
            raise IndexError(f"window {index} of {self._num_windows}")
        return self._reader.window(index, self.window_bases)
