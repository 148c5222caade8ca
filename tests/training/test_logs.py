"""Log files: what is written, and what a disk that is full does to a run."""

import logging

from hyena_blt_savanna.training.logs import LogFile


def record_of(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("toy", logging.INFO, __file__, 1, message, arguments, None)


def test_a_full_disk_does_not_reach_the_terminal(capsys):
    handler = LogFile("/dev/full")
    handler.emit(record_of("a line"))
    assert capsys.readouterr().err == ""


def test_other_mistakes_in_logging_are_told(tmp_path, capsys):
    handler = LogFile(tmp_path / "log")
    handler.emit(record_of("%d lines", "many"))
    assert "TypeError" in capsys.readouterr().err
