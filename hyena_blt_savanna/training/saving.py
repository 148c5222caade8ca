"""Saving while training goes on: one checkpoint at a time on its way, and a failed one stops nothing."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from hyena_blt_savanna.training.background_writing import BackgroundWriting
from hyena_blt_savanna.training.checkpoints import CheckpointError, Checkpoints, Progress
from hyena_blt_savanna.training.durations import readable_seconds
from hyena_blt_savanna.training.engine import TrainingEngine
from hyena_blt_savanna.training.metrics import Reporter

logger = logging.getLogger(__name__)


class Saver:
    """Begins checkpoints and ends them. Every rank calls all methods alike, but for `is_written` and `abandon`.

    Args:
        checkpoints: of the run.
        engine: whose states are saved.
        reporter: is told of each checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, engine: TrainingEngine, reporter: Reporter) -> None:
        self.checkpoints = checkpoints
        self.engine = engine
        self.reporter = reporter
        self._writing: BackgroundWriting | None = None
        self._began = 0.0
        self._blocked_seconds = 0.0

    @property
    def is_written(self) -> bool:
        """Whether this rank has written its part of the checkpoint on its way; all of them have to."""
        return self._writing is not None and self._writing.is_over

    def begin(self, progress: Progress) -> None:
        """Copies the states and lets them be written; waits for the checkpoint before, if it is not done."""
        if self._writing is not None:
            logger.warning(
                "step %d: the checkpoint of step %d is still being written: training waits; save less often "
                "(training.checkpoints.every_steps), or to a faster disk (training.checkpoints.local_folder)",
                progress.step,
                self._writing.step,
            )
            self.settle()
        self._start(progress)
        if not self.checkpoints.config.in_background:
            self.settle()

    def settle(self) -> Path | None:
        """Seals the checkpoint on its way, and waits until it is written; says so loudly if it can't be.

        Returns:
            Its folder; None if there is none.
        """
        try:
            return self._finish()
        except CheckpointError as error:
            logger.error("%s; training goes on without it", error)
            return None

    def save(self, progress: Progress) -> Path:
        """Saves, and waits until the checkpoint is whole.

        Raises:
            CheckpointError: it can't be written.
        """
        self.settle()
        self._start(progress)
        path = self._finish()
        assert path is not None, "it has just been started"
        return path

    def abandon(self) -> None:
        """Waits for this rank's own thread, where the other ranks can't be asked any more."""
        if self._writing is not None:
            self._writing.wait()
            self._writing = None

    def _start(self, progress: Progress) -> None:
        self._began = time.perf_counter()
        self._writing = self.checkpoints.begin(self.engine, progress)
        self._blocked_seconds = time.perf_counter() - self._began

    def _finish(self) -> Path | None:
        writing, self._writing = self._writing, None
        if writing is None:
            return None
        began = time.perf_counter()
        about = {"step": writing.step}
        try:
            path = self.checkpoints.finish(writing)
        except CheckpointError as error:
            self.reporter.event("checkpoint_failed", {**about, "error": str(error)})
            raise
        ended = time.perf_counter()
        took, blocked = ended - self._began, self._blocked_seconds + ended - began
        self.reporter.event(
            "checkpoint", {**about, "name": path.name, "save_seconds": took, "blocked_seconds": blocked}
        )
        logger.info(
            "step %d: saved %s in %s, of which training waited %.2f s",
            writing.step,
            path.name,
            readable_seconds(took),
            blocked,
        )
        return path
