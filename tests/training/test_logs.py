"""Log files: what is written, and what a disk that is full does to a run."""

import logging
import sys
from pathlib import Path

import pytest

from hyena_blt_savanna.training.logs import LogFile, TerminalHandler


def record_of(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("toy", logging.INFO, __file__, 1, message, arguments, None)


def test_a_full_disk_does_not_reach_the_terminal(capsys):
    handler = LogFile("/dev/full")
    handler.emit(record_of("a line"))
    assert capsys.readouterr().err == ""


def test_a_terminal_on_a_full_disk_stops_nothing(monkeypatch):
    # As with sbatch's --output on a disk that is full.
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", full)
    with pytest.raises(OSError, match="No space left"):
        print("a line", file=full)
    TerminalHandler().emit(record_of("a line"))
    with pytest.raises(OSError, match="No space left"):
        full.close()


@pytest.mark.parametrize("where", ["file", "terminal"])
def test_other_mistakes_in_logging_are_told(tmp_path, capsys, where):
    handler = LogFile(tmp_path / "log") if where == "file" else TerminalHandler()
    handler.emit(record_of("%d lines", "many"))
    assert "TypeError" in capsys.readouterr().err
