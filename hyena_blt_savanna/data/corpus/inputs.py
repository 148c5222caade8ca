"""The inputs of a source: which files there are, what they hold, and to which split their names assign them."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.gunzip import is_gzip
from hyena_blt_savanna.data.splits import SplitName

InputKind = Literal["fasta", "fastq", "rows", "tar"]
_ENDINGS: dict[str, InputKind] = {
    ".fa": "fasta",
    ".fasta": "fasta",
    ".fna": "fasta",
    ".fq": "fastq",
    ".fastq": "fastq",
    ".jsonl": "rows",
    ".tar": "tar",
}
_PART = re.compile(r"^(?P<whole>.+\.[a-z.]+)\.(?P<part>[a-z]{2})$")
# The hub's data_<source>_<split>_chunk<N>.jsonl.gz, and the like.
_SPLIT = re.compile(r"(?:^|[_.-])(?P<split>train|valid|validation|test)(?=[_.-])")
_UNPACKED_RATIO = 3.6
"""Letters of sequence in a byte of gzip, about; only the number of shards depends on it."""


class InputError(DataError):
    """An input that can't be read: the message names the file and the place.

    Args:
        path: the file, or what its parts are of.
        place: line or record; empty where none is to blame.
        what: what is wrong, and what to change.
    """

    def __init__(self, path: Path | str, place: str, what: str) -> None:
        super().__init__(f"{path}{', ' if place else ''}{place}: {what}")


class RecordError(InputError):
    """A record that can't be used; those after it may be."""


@dataclass(frozen=True)
class CorpusInput:
    """One input: a file, or the parts of one that was split.

    Attributes:
        name: file name, without the letters of a part; no other input of the source has it.
        paths: the file, or its parts in order.
        kind: what it holds.
        num_bytes: as it lies on the disk.
        num_bases: about how many letters it holds; exact for nothing but sharing out.
        split: train, validation or test, if the name says.
    """

    name: str
    paths: tuple[Path, ...]
    kind: InputKind
    num_bytes: int
    num_bases: int
    split: SplitName | None

    @property
    def path(self) -> Path:
        """The file's path, or that which the parts would have together: for messages."""
        return self.paths[0].with_name(self.name)


def find_inputs(patterns: Sequence[str]) -> list[CorpusInput]:
    """The inputs that paths and patterns name, ordered by name.

    Args:
        patterns: paths, or patterns with * and ** as in a shell; parts such as x.fasta.gz.aa, .ab, ... are put
            together.

    Raises:
        InputError: nothing is there, a name has no known ending or is there twice, or a part is missing.
    """
    groups: dict[Path, list[Path]] = {}
    for pattern in patterns:
        found = sorted(path for path in _matching(pattern) if path.is_file())
        if not found:
            what = "a folder; give its files, as in FOLDER/*.jsonl.gz" if Path(pattern).is_dir() else "no such file"
            raise InputError(pattern, "", what)
        for path in found:
            part = _PART.match(path.name) if _kind(path.name) is None else None
            whole = path.with_name(part["whole"]) if part and _kind(part["whole"]) else path
            if path not in groups.setdefault(whole, []):
                groups[whole].append(path)
    inputs = sorted((_describe(whole, sorted(paths)) for whole, paths in groups.items()), key=lambda found: found.name)
    for before, after in itertools.pairwise(inputs):
        if before.name == after.name:
            raise InputError(
                after.path, "", f"{before.path} has the same name; a source's inputs need names of their own"
            )
    return inputs


def _matching(pattern: str) -> Iterator[Path]:
    # A path may have brackets in it; pathlib's own glob takes no absolute patterns.
    if Path(pattern).exists():
        yield Path(pattern)
    else:
        yield from map(Path, glob.iglob(pattern, recursive=True))  # noqa: PTH207


def _describe(whole: Path, paths: list[Path]) -> CorpusInput:
    kind = _kind(whole.name)
    if kind is None:
        known = " ".join(_ENDINGS)
        raise InputError(whole, "", f"an unknown kind of file; names end in one of {known}, or in that and .gz")
    if paths != [whole]:
        names = {path.name for path in paths}
        for index, path in enumerate(paths):
            expected = f"{whole.name}.{chr(97 + index // 26)}{chr(97 + index % 26)}"
            if expected not in names:
                raise InputError(path, "", f"the part {expected} is missing: parts are read from .aa on, without gaps")
    num_bytes = sum(path.stat().st_size for path in paths)
    name = _SPLIT.search(whole.name)
    split: dict[str, SplitName] = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}
    return CorpusInput(
        name=whole.name,
        paths=tuple(paths),
        kind=kind,
        num_bytes=num_bytes,
        num_bases=round(num_bytes * (_UNPACKED_RATIO if _is_packed(paths[0], kind) else 1.0)),
        split=split[name["split"]] if name else None,
    )


def _kind(name: str) -> InputKind | None:
    return _ENDINGS.get(Path(name.removesuffix(".gz")).suffix)


def kind_of_member(name: str) -> InputKind | None:
    """What a file in an archive holds, by its name; None for one that holds no sequence."""
    kind = _kind(name)
    return None if kind == "tar" else kind


def _is_packed(path: Path, kind: InputKind) -> bool:
    if is_gzip(path):
        return True
    if kind != "tar":
        return False
    with path.open("rb") as file:
        # An archive opens with the name of its first member.
        return file.read(100).rstrip(b"\0").endswith(b".gz")
