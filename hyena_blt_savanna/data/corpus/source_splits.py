"""Train, validation and test of a source: by file, by record, by stretch or by a list of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.corpus.inputs import CorpusInput, InputError
from hyena_blt_savanna.data.corpus.raw_record import RawRecord
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.splits import SplitConfig, SplitName, split_record


class SourceSplitConfig(Config):
    """How a source is divided."""

    by: Literal["file", "record", "stretch", "list"] = "file"
    """file: as the inputs' names say (..._train_..., _valid_, _validation_ or _test_); record: whole records, chosen by
    a hash of their names, a row's being INPUT:LINE, and all records of an archive's file together; stretch: the end of
    each document is held out; list: by names."""
    validation: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the records (record) or of the letters (stretch) for validation."""
    test: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share for the test."""
    validation_names: Path | None = None
    """list: a file with a name a line: records, inputs, or members of archives that are for validation."""
    test_names: Path | None = None
    """list: those for the test; all others are for training."""

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        shares, lists = self.validation + self.test, (self.validation_names, self.test_names)
        if self.by in ("record", "stretch"):
            SplitConfig(by=self.by, validation=self.validation, test=self.test)
            if lists != (None, None):
                raise ValueError(f"by {self.by} takes shares, not validation_names and test_names: set by to list")
        elif shares:
            raise ValueError(f"by {self.by} takes no shares: leave validation and test out, or set by to record")
        elif self.by == "list" and lists == (None, None):
            raise ValueError("by list needs validation_names or test_names, or both")
        elif self.by == "file" and lists != (None, None):
            raise ValueError("by file reads the inputs' names: leave validation_names and test_names out")
        return self

    def shares(self, given: CorpusInput) -> dict[SplitName, float]:
        """About how an input is divided; only the number of shards depends on it."""
        if self.by == "file":
            return {given.split or "train": 1.0}
        held_out: dict[SplitName, float] = {"validation": self.validation, "test": self.test}
        return {"train": 1.0, **held_out}

    def open(self) -> Splitter:
        """Reads the lists, where there are any.

        Raises:
            DataError: a list is missing or empty, or a name is in both.
        """
        names: dict[str, SplitName] = {}
        lists: list[tuple[SplitName, Path | None]]
        lists = [("validation", self.validation_names), ("test", self.test_names)]
        for split, path in lists:
            for name in _read_names(path) if path is not None else ():
                if names.setdefault(name, split) != split:
                    raise DataError(f"{path}: {name!r} is in both lists; a record is for validation or for the test")
        return Splitter(self, names)


class Splitter:
    """Divides documents.

    Args:
        config: how.
        names: split of each name in the lists.
    """

    def __init__(self, config: SourceSplitConfig, names: Mapping[str, SplitName]) -> None:
        self._config, self._names = config, names
        self._by_share = None
        if config.by in ("record", "stretch"):
            self._by_share = SplitConfig(by=config.by, validation=config.validation, test=config.test)

    def pieces(
        self, given: CorpusInput, record: RawRecord, num_bases: int, min_bases: int
    ) -> Iterator[tuple[SplitName, int, int]]:
        """The parts of a document, in order.

        Args:
            given: its input.
            record: its record.
            num_bases: its length.
            min_bases: least length of a stretch.

        Yields:
            The split, and where the part begins and ends in the document.

        Raises:
            InputError: the split is by file, and the input's name names none.
        """
        if self._by_share is not None:
            name = record.member or record.name or f"{given.name}:{record.line}"
            for split, piece in split_record(name, num_bases, self._by_share, min_bases):
                yield split, piece.start, piece.stop
        elif self._config.by == "list":
            names = (record.name, record.member, given.name)
            found = [self._names[name] for name in names if name in self._names]
            yield found[0] if found else "train", 0, num_bases
        elif given.split is None:
            raise InputError(
                given.path, "", "its name says no split (_train_, _valid_ or _test_): set split.by to record or stretch"
            )
        else:
            yield given.split, 0, num_bases


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; it should hold a name a line")
    names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path}: no names in it")
    return names
