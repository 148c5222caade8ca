"""Phylogenetic tags, |D__BACTERIA;P__...;S__...|: read in either case, kept by a stable hash, and counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hyena_blt_savanna.data.order import order_key
from hyena_blt_savanna.data.whole_files import WholeFile

LONGEST_TAG_BYTES = 2048
_HEADER = "tag\tspecies\tnum_documents\tnum_bases\n"


class TagCount(NamedTuple):
    """How much of a source has a tag.

    Attributes:
        num_documents: documents that it opens.
        num_bases: letters in them.
    """

    num_documents: int
    num_bases: int


def species_of(tag: str) -> str:
    """What a tag says after S__, in either case; empty where it says nothing."""
    for level in tag.strip("|").split(";"):
        rank, _, name = level.partition("__")
        if rank.strip().upper() == "S":
            return name.strip()
    return ""


def keeps_tag(share: float, seed: int, input_name: str, number: int) -> bool:
    """Whether a record keeps its tag: a pure function of seed, input and record, the same in every process.

    Args:
        share: of the records that keep it.
        seed: of the source.
        input_name: of the record's input.
        number: of the record in it.
    """
    if share in (0.0, 1.0):
        return share == 1.0
    place = int.from_bytes(order_key("keeps its tag", seed, input_name, number)[:8], "little")
    return place < share * 2.0**64


def tags_path(prefix: Path) -> Path:
    """PREFIX.tags.tsv: the tags of a shard or of a source's split, in order, where there are any."""
    return prefix.with_name(prefix.name + ".tags.tsv")


def write_tags(path: Path, counts: Mapping[str, TagCount]) -> None:
    """Writes how often each tag occurs, by its text with marks, in order."""
    with WholeFile(path) as file:
        file.write(_HEADER.encode())
        for tag in sorted(counts):
            num_documents, num_bases = counts[tag]
            file.write(f"{tag}\t{species_of(tag)}\t{num_documents}\t{num_bases}\n".encode())


def read_tags(path: Path) -> dict[str, TagCount]:
    """How often each tag occurs, as `write_tags` wrote it."""
    with path.open(encoding="utf-8") as file:
        next(file)
        rows = (line.rstrip("\n").split("\t") for line in file)
        return {tag: TagCount(int(num_documents), int(num_bases)) for tag, _, num_documents, num_bases in rows}


def add_tags(total: dict[str, TagCount], counts: Mapping[str, TagCount]) -> None:
    """Adds counts to those so far."""
    for tag, (num_documents, num_bases) in counts.items():
        before = total.get(tag, TagCount(0, 0))
        total[tag] = TagCount(before.num_documents + num_documents, before.num_bases + num_bases)
