"""The rules of cleaning, and the counts of what each of them did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.indexed import LONGEST_DOCUMENT


class CleaningConfig(Config):
    """The rules."""

    repeat_mask: Literal["keep", "drop"] = "keep"
    """Lower case, which marks repeats: kept, or written in upper case."""
    ambiguous: Literal["keep", "unknown"] = "keep"
    """Letters of more than one base (IUPAC): kept, or written as N. Neither is ever scored."""
    unknown_runs: Literal["keep", "cut", "split", "drop"] = "keep"
    """Runs of N: kept; cut out; the record is split there; or the whole record is dropped, as upstream does."""
    unknown_run_bases: int = Field(default=3, ge=1)
    """Fewer N in a row are no run."""
    min_bases: int = Field(default=100, ge=1)
    """Shorter documents are left out."""
    max_document_bytes: int = Field(default=LONGEST_DOCUMENT, ge=4096, le=LONGEST_DOCUMENT)
    """Longer ones, tag and end included, are cut, and go on as documents with the same tag."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Records with the same letters as another one, in either case and whatever the tag: the first stays, or all."""
    keep_tags: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the tagged records that keep their tag, chosen by a hash of seed, input and record."""


class CleaningCounts(Config):
    """What cleaning met, and what it did."""

    records: int = 0
    """In the input, bad ones included."""
    bad_records: int = 0
    """Left out because they can't be read."""
    letters: int = 0
    """Bases or amino acids in the good records."""
    u_to_t: int = 0
    """Letters U that became T."""
    unmasked: int = 0
    """Letters in lower case that were written in upper case."""
    ambiguous_to_unknown: int = 0
    """Letters of more than one base that became N."""
    unknown_runs: int = 0
    """Runs of N that were cut out, split their record or dropped it."""
    unknown_bases_left_out: int = 0
    """N in runs that were cut out or split at."""
    dropped_records: int = 0
    """For a run of N."""
    dropped_bases: int = 0
    """Letters in them."""
    short_documents: int = 0
    """Left out for their length."""
    short_bases: int = 0
    """Letters in them."""
    forced_cuts: int = 0
    """Where a document reached the longest there may be."""
    tagged_records: int = 0
    """With a tag."""
    tags_left_out: int = 0
    """Tagged records that lost theirs."""
    repeated_tags: int = 0
    """Tags inside a record that were those of the stretch before: left out."""
    changed_tags: int = 0
    """Tags inside a record that opened a new document."""
    clean_documents: int = 0
    """After splitting, duplicates included."""
    clean_bases: int = 0
    """Letters and join marks in them."""
    duplicates: int = 0
    """Documents left out because another one has their letters."""
    duplicate_bases: int = 0
    """Letters in them."""

    @classmethod
    def total(cls, counts: Iterable[CleaningCounts]) -> CleaningCounts:
        """The sum of several."""
        total: Counter[str] = Counter()
        for found in counts:
            total.update(found.to_dict())
        return cls.parse(dict(total))
