"""Where log lines go: the first rank's to the terminal, each rank's to a file of its own, with DeepSpeed's."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

PACKAGE = "hyena_blt_savanna"


class _ForgivingHandler(logging.Handler):
    """Leaves out a line that can't be written, as on a full disk: a log stops no run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignores the operating system's errors; `logging` would put a traceback on the terminal."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


class TerminalHandler(_ForgivingHandler):
    """Writes to standard error, which a cluster has sent to a file, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class LogFile(_ForgivingHandler, logging.FileHandler):
    """A file of log lines."""


def log_to_terminal(is_first: bool) -> None:
    """Sends this package's log lines, and errors of all others, to the terminal; other ranks only warn.

    Args:
        is_first: whether this is the first rank.
    """
    handler = TerminalHandler()
    handler.setFormatter(logging.Formatter("%(message)s" if is_first else "rank: %(message)s"))
    own_level = logging.INFO if is_first else logging.WARNING

    def shown(record: logging.LogRecord) -> bool:
        return record.levelno >= (own_level if record.name.partition(".")[0] == PACKAGE else logging.ERROR)

    handler.addFilter(shown)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # Python's warnings become log lines, and so don't reach the terminal.
    logging.captureWarnings(True)


def log_to_file(folder: Path, rank: int) -> None:
    """Sends all log lines of this rank, DeepSpeed's and Python's warnings too, to `FOLDER/rank_00000.log`.

    Args:
        folder: made if need be.
        rank: names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handler = LogFile(folder / f"rank_{rank:05d}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    deepspeed = logging.getLogger("DeepSpeed")
    # It comes with a handler of its own, to standard output.
    deepspeed.handlers[:] = []
    deepspeed.propagate = True
    deepspeed.setLevel(logging.INFO)
