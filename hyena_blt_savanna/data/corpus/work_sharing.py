"""Work that is shared out among processes: by one alone, or by ranks of MPI, the largest piece first.

Who does a piece of work never changes what comes out: results are given back in the order of the pieces.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from hyena_blt_savanna.data.errors import DataError

Result = TypeVar("Result")
_ASK, _ANSWER = 1, 2
_PAUSE_SECONDS = 0.005


class Workers(Protocol):
    """Processes that do the same work together; each of them makes every call."""

    @property
    def rank(self) -> int:
        """Which of them this is; rank 0 writes what is written once."""

    def share(self, sizes: Sequence[int], work: Callable[[int], Result]) -> list[Result]:
        """Does pieces of work, each once.

        Args:
            sizes: about how long each piece takes, in any unit; the longest are begun first.
            work: does the piece of an index.

        Returns:
            What `work` returned for each piece, in order, on every rank.

        Raises:
            Exception: a piece failed; nothing new was begun after that. On the rank that did it its own error, on the
                others a DataError with the same message.
        """


class Alone:
    """One process."""

    rank = 0

    def share(self, sizes: Sequence[int], work: Callable[[int], Result]) -> list[Result]:
        """See `Workers.share`."""
        results = {index: work(index) for index in _largest_first(sizes)}
        return [results[index] for index in range(len(sizes))]


class Ranks:
    """The ranks of an MPI job. Rank 0 hands work out in a thread beside its own.

    Args:
        comm: an mpi4py communicator, in a program that was started with MPI_THREAD_MULTIPLE, mpi4py's default.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm

    @property
    def rank(self) -> int:
        """Which rank this is."""
        return int(self._comm.Get_rank())

    def share(self, sizes: Sequence[int], work: Callable[[int], Result]) -> list[Result]:
        """See `Workers.share`."""
        comm = self._comm
        done: dict[int, Result] = {}
        failed: tuple[int, Exception] | None = None
        queue = _Queue(_largest_first(sizes)) if self.rank == 0 else None
        server = threading.Thread(target=self._serve, args=(queue,), daemon=True)
        if queue is not None:
            server.start()
        while (index := queue.take(failed is not None) if queue else self._ask(failed is not None)) is not None:
            try:
                done[index] = work(index)
            except Exception as error:
                failed = index, error
        if queue is not None:
            server.join()
        self._wait_for_all()
        everything = comm.allgather((done, failed and (failed[0], self.rank, str(failed[1]))))
        failures = [failure for _, failure in everything if failure]
        if failures:
            _, rank, message = min(failures)
            if failed is not None and rank == self.rank:
                raise failed[1]
            raise DataError(message)
        results = {index: result for found, _ in everything for index, result in found.items()}
        return [results[index] for index in range(len(sizes))]

    def _ask(self, stop: bool) -> int | None:
        self._comm.send(stop, dest=0, tag=_ASK)
        while not self._comm.iprobe(source=0, tag=_ANSWER):
            time.sleep(_PAUSE_SECONDS)
        index: int | None = self._comm.recv(source=0, tag=_ANSWER)
        return index

    def _wait_for_all(self) -> None:
        """Waits until every rank is here; MPI itself would keep a core busy meanwhile."""
        request = self._comm.Ibarrier()
        while not request.Test():
            time.sleep(_PAUSE_SECONDS)

    def _serve(self, queue: _Queue) -> None:
        """Answers the other ranks until each of them has been told that nothing is left."""
        num_asking = self._comm.Get_size() - 1
        while num_asking:
            asking = [rank for rank in range(1, self._comm.Get_size()) if self._comm.iprobe(source=rank, tag=_ASK)]
            for rank in asking:
                index = queue.take(self._comm.recv(source=rank, tag=_ASK))
                num_asking -= index is None
                self._comm.send(index, dest=rank, tag=_ANSWER)
            if not asking:
                # A blocking receive would keep a core busy.
                time.sleep(_PAUSE_SECONDS)


class _Queue:
    """Pieces that nobody has begun, for one thread at a time."""

    def __init__(self, indices: Sequence[int]) -> None:
        self._indices = list(indices)[::-1]
        self._lock = threading.Lock()

    def take(self, stop: bool) -> int | None:
        """The next piece; None where none is left, as after a stop."""
        with self._lock:
            if stop:
                self._indices.clear()
            return self._indices.pop() if self._indices else None


def _largest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
