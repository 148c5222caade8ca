"""A run that stands still is ended, and leaves behind where each rank stood."""

from __future__ import annotations

import faulthandler
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

STALLED = 76
"""The exit code of a rank that has made no progress for too long."""
_OTHERS_SECONDS = 10.0


class Watchdog:
    """Ends this process when nobody has called `beat` for too long, after it has written down where all threads stand.

    The ranks of a run wait for each other, so that all of them stand still when one does, and each writes a file. A
    context manager.

    Args:
        seconds: without a beat; None never ends anything.
        path: file for the stack traces; those that an earlier start left there are renamed.
        say: called before the end, such as to leave a line of metrics.
        others_seconds: between the stack traces and the end, so that no rank is ended before it has written its own.
    """

    def __init__(
        self,
        seconds: float | None,
        path: Path,
        say: Callable[[], None] = lambda: None,
        others_seconds: float = _OTHERS_SECONDS,
    ) -> None:
        self.seconds = seconds
        self.path = path
        self._say = say
        self._others_seconds = others_seconds
        self._last = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self) -> None:
        """There was progress."""
        self._last = time.monotonic()
        if self._thread is not None:
            self._arm()

    def __enter__(self) -> Self:
        if self.seconds is not None:
            self._keep_earlier()
            self._file = self.path.open("w")
            self._last = time.monotonic()
            self._arm()
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        faulthandler.cancel_dump_traceback_later()
        self._stop.set()
        self._thread.join()
        self._thread = None
        self._file.close()
        self.path.unlink()

    def _keep_earlier(self) -> None:
        """Stacks of an earlier start get a number: the run that goes on would write over them."""
        if self.path.exists() and self.path.stat().st_size:
            names = (self.path.with_stem(f"{self.path.stem}_{number}") for number in itertools.count(1))
            self.path.rename(next(name for name in names if not name.exists()))

    def _arm(self) -> None:
        assert self.seconds is not None
        # Written by a thread that needs no Python, and so by a rank that hangs inside of a library, too.
        faulthandler.dump_traceback_later(self.seconds, file=self._file)

    def _watch(self) -> None:
        assert self.seconds is not None
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                break
        else:
            return
        logger.error(
            "no progress for %.0f s: the stacks of this rank's threads are in %s; it ends with exit code %d",
            self.seconds,
            self.path,
            STALLED,
        )
        self._say()
        time.sleep(self._others_seconds)
        os._exit(STALLED)
