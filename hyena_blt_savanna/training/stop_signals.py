"""Signals that ask a run to save and leave: what Slurm sends before it takes the nodes away.

Nothing heavy is imported here: a signal that comes while torch is being loaded must be heard too.
"""

from __future__ import annotations

import signal
from types import FrameType

ASKING = (signal.SIGUSR1, signal.SIGTERM)
"""Slurm sends SIGUSR1 when `--signal` says so, and SIGTERM when it preempts or cancels."""


class StopSignals:
    """Remembers that a signal of ASKING has come; the training loop looks whenever a step ends.

    A second signal changes nothing, so that it can't cut off the saving that the first one has asked for.

    Attributes:
        received: name of the first signal; None while there was none.
    """

    def __init__(self) -> None:
        self.received: str | None = None

    def listen(self) -> None:
        """From now on the signals ask, and no longer end the process. Called in the main thread."""
        for asking in ASKING:
            signal.signal(asking, self._hear)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number).name
