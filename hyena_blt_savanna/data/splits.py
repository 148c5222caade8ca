"""Train, validation and test: which part of each record goes where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, SplitName, SplitName] = ("train", "validation", "test")


class SplitConfig(Config):
    """How records are divided."""

    by: Literal["stretch", "record"] = "stretch"
    """stretch: the end of each record is held out; record: whole records, chosen by a hash of their names."""
    validation: float = Field(default=0.02, ge=0.0, lt=1.0)
    """Share of the bases (stretch) or of the records (record) for validation."""
    test: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share for the test: the last of each record, after validation's."""

    @model_validator(mode="after")
    def _leaves_training_data(self) -> SplitConfig:
        if self.validation + self.test >= 1.0:
            raise ValueError(f"validation {self.validation} and test {self.test} leave nothing to train on")
        return self


def split_record(name: str, num_bases: int, config: SplitConfig, min_bases: int) -> Iterator[tuple[SplitName, slice]]:
    """The pieces of one record, in order.

    By stretch the record's last `test` share is the test, the `validation` share before it validation, the rest
    training data; a record with a stretch shorter than `min_bases` goes to training whole. By record it goes whole
    where a hash of its name says.

    Args:
        name: the record's name.
        num_bases: its length.
        config: how to divide.
        min_bases: least length of a stretch.

    Yields:
        Name of the split, and the piece of the record.
    """
    if config.by == "record":
        yield _split_of_name(name, config), slice(0, num_bases)
        return
    test_start = round(num_bases * (1.0 - config.test))
    validation_start = round(num_bases * (1.0 - config.test - config.validation))
    pieces: list[tuple[SplitName, slice]] = [("train", slice(0, validation_start))]
    if config.validation > 0.0:
        pieces.append(("validation", slice(validation_start, test_start)))
    if config.test > 0.0:
        pieces.append(("test", slice(test_start, num_bases)))
    if min(piece.stop - piece.start for _, piece in pieces) < min_bases:
        yield "train", slice(0, num_bases)
        return
    yield from pieces


def _split_of_name(name: str, config: SplitConfig) -> SplitName:
    digest = hashlib.blake2b(name.encode(), digest_size=8, key=b"split by record").digest()
    place = int.from_bytes(digest, "little") / 2.0**64
    if place < config.test:
        return "test"
    return "validation" if place < config.test + config.validation else "train"
