"""Cleans records as they stream by.

A record's letters go into a spool; its documents are stretches of it. So a record that turns out bad, or is to be
dropped, leaves nothing behind, whatever its length.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numba import njit

from hyena_blt_savanna.data.corpus.alphabets import Alphabet
from hyena_blt_savanna.data.corpus.cleaning import CleaningConfig, CleaningCounts
from hyena_blt_savanna.data.corpus.inputs import RecordError
from hyena_blt_savanna.data.corpus.raw_record import RawRecord
from hyena_blt_savanna.data.corpus.spool import Spool
from hyena_blt_savanna.data.corpus.tags import LONGEST_TAG_BYTES, keeps_tag
from hyena_blt_savanna.data.gunzip import CHUNK_BYTES
from hyena_blt_savanna.nucleotides import Bytes

_WHITE_SPACE = b"\r\n \t"
_MARK = b"|"
# What a byte is; the first bit says that it is written.
_WRITTEN, _UNKNOWN, _AMBIGUOUS, _U, _LOWER, _JOIN, _BAD = (1 << bit for bit in range(7))
_UPPER_BITS = np.uint8(0xDF)
_PLAIN_BYTES = 1 << 20


@dataclass(slots=True)
class CleanDocument:
    """One document of a record.

    Attributes:
        tag: with both its marks, in upper case; empty where it has none.
        start: where its letters begin in the spool.
        stop: where they end.
        digest: of its letters in upper case.
    """

    tag: bytes
    start: int
    stop: int
    digest: bytes


class Cleaner:
    """Cleans the records of one input.

    Args:
        config: the rules.
        alphabet: the letters that there may be.
        seed: of the source.
        input_path: of the input; its name and the seed draw which records keep their tags.
        spool: where the letters of one record at a time are put.
    """

    def __init__(self, config: CleaningConfig, alphabet: Alphabet, seed: int, input_path: Path, spool: Spool) -> None:
        self.config, self.alphabet, self.seed, self.path, self.spool = config, alphabet, seed, input_path, spool
        self.run = re.compile(b"[%b]{%d,}" % (re.escape(alphabet.unknown), config.unknown_run_bases))
        self.translation = _translation(config, alphabet)
        self.kinds = _kinds(config, alphabet)
        self.counted_kinds = _U | _JOIN | (_LOWER if config.repeat_mask == "drop" else 0)
        self.counted_kinds |= _AMBIGUOUS if config.ambiguous == "unknown" else 0
        self._unusual_kinds = _BAD | self.counted_kinds | (_UNKNOWN if config.unknown_runs != "keep" else 0)
        self._counts: Counter[str] = Counter()
        self._buffer = np.empty(CHUNK_BYTES, dtype=np.uint8)

    @property
    def counts(self) -> CleaningCounts:
        """Over all records so far."""
        return CleaningCounts.parse(dict(self._counts))

    def clean(self, record: RawRecord) -> list[CleanDocument]:
        """Puts the letters of one record into the spool, which is emptied first.

        Args:
            record: one of the input.

        Returns:
            Its documents, in order; none where it is dropped, or has nothing long enough.

        Raises:
            RecordError: a letter outside the alphabet, a tag without an end, or a row that is none. It is counted.
        """
        self.spool.clear()
        self._counts["records"] += 1
        try:
            pieces = iter(record.pieces)
            first, second = next(pieces, b""), next(pieces, None)
            if second is None and _MARK not in first:
                document = self._clean_plain(first)
                if document is not None:
                    return [document]
            cleaning = _Cleaning(self, record)
            for is_tag, text in _tags_and_letters(record, itertools.chain((first, second or b""), pieces), self.path):
                if is_tag:
                    cleaning.take_tag(text)
                else:
                    cleaning.take_letters(text)
        except RecordError:
            self._counts["bad_records"] += 1
            raise
        documents = cleaning.finish()
        self._counts.update(cleaning.counts)
        return documents

    def _clean_plain(self, text: bytes) -> CleanDocument | None:
        """The document of a record of one piece of which no rule has anything to say, as most are; else None."""
        letters, kinds = self.fold(text)
        num = len(letters)
        if kinds & self._unusual_kinds or not self.config.min_bases <= num < _PLAIN_BYTES:
            return None
        self.spool.write(letters)
        digest = letters_digest(letters).digest() if self.config.duplicates == "drop" else b""
        counts = self._counts
        counts["letters"] += num
        counts["clean_documents"] += 1
        counts["clean_bases"] += num
        return CleanDocument(b"", 0, num, digest)

    def fold(self, text: bytes) -> tuple[memoryview, int]:
        """Letters as they are written, without white space, and what there is among them.

        The letters lie in a buffer of this object's, until it folds again.
        """
        if len(text) > len(self._buffer):
            self._buffer = np.empty(len(text), dtype=np.uint8)
        num, kinds = _fold(np.frombuffer(text, dtype=np.uint8), self.translation, self.kinds, self._buffer)
        return self._buffer.data[:num], kinds


class _Cleaning:
    """One record while it is cleaned."""

    def __init__(self, cleaner: Cleaner, record: RawRecord) -> None:
        self.counts: Counter[str] = Counter()
        self._cleaner, self._record, self._config = cleaner, record, cleaner.config
        self._spool = cleaner.spool
        self._documents: list[CleanDocument] = []
        self._keeps_tag: bool | None = None
        self._tag = self._written_tag = b""
        self._start: int | None = None
        self._digest = hashlib.sha256()
        # Letters N at the end of a piece, of which it is not known yet whether they are a run.
        self._held = b""
        self._in_run = False
        self._is_dropped = False

    def take_tag(self, tag: bytes) -> None:
        """Goes on with a tag, which is given with its marks."""
        tag = tag.upper()
        if tag == self._tag:
            self.counts["repeated_tags"] += 1
            return
        self._append_held()
        if self._tag or self._start is not None or self._documents:
            self.counts["changed_tags"] += 1
        self._end_document()
        if self._keeps_tag is None:
            cleaner = self._cleaner
            self._keeps_tag = keeps_tag(self._config.keep_tags, cleaner.seed, cleaner.path.name, self._record.number)
            self.counts["tagged_records"] += 1
            self.counts["tags_left_out"] += not self._keeps_tag
        self._tag = tag
        self._written_tag = tag if self._keeps_tag else b""

    def take_letters(self, text: bytes) -> None:
        """Goes on with letters, among white space."""
        letters, kinds = self._cleaner.fold(text)
        if kinds & _BAD:
            raise self._bad_letter(text)
        if kinds & self._cleaner.counted_kinds:
            self._count(text, kinds)
        self.counts["letters"] += len(letters)
        if self._is_dropped:
            return
        if self._config.unknown_runs != "keep" and (kinds & _UNKNOWN or self._held or self._in_run):
            self._take_with_runs(bytes(letters))
        elif len(letters):
            self._append(letters)

    def finish(self) -> list[CleanDocument]:
        """Ends the record."""
        self._append_held()
        self._end_document()
        if self._is_dropped:
            self.counts["dropped_records"] = 1
            self.counts["dropped_bases"] = self.counts["letters"]
            for name in ("short_documents", "short_bases", "forced_cuts", "clean_documents", "clean_bases"):
                del self.counts[name]
            return []
        return self._documents

    def _take_with_runs(self, letters: bytes) -> None:
        unknown = self._cleaner.alphabet.unknown
        if self._in_run:
            after = letters.lstrip(unknown)
            self.counts["unknown_bases_left_out"] += len(letters) - len(after)
            if not after:
                return
            letters, self._in_run = after, False
        letters, self._held = self._held + letters, b""
        body = letters.rstrip(unknown)
        tail = letters[len(body) :]
        start = 0
        for run in self._cleaner.run.finditer(body):
            self._append(body[start : run.start()])
            self._leave_out(run.end() - run.start())
            start = run.end()
        self._append(body[start:])
        if len(tail) >= self._config.unknown_run_bases:
            self._leave_out(len(tail))
            self._in_run = True
        else:
            self._held = tail

    def _leave_out(self, num_unknown: int) -> None:
        self.counts["unknown_runs"] += 1
        self.counts["unknown_bases_left_out"] += num_unknown
        if self._config.unknown_runs == "split":
            self._end_document()
        self._is_dropped |= self._config.unknown_runs == "drop"

    def _append_held(self) -> None:
        held, self._held, self._in_run = self._held, b"", False
        self._append(held)

    def _append(self, letters: bytes | memoryview) -> None:
        """Adds letters to the document, and ends it where it is as long as one may be."""
        at = 0
        while at < len(letters):
            if self._start is None:
                self._start, self._digest = len(self._spool), hashlib.sha256()
            room = self._config.max_document_bytes - len(self._written_tag) - 1 - (len(self._spool) - self._start)
            piece = letters[at : at + room]
            self._spool.write(piece)
            if self._config.duplicates == "drop":
                letters_digest(piece, self._digest)
            at += len(piece)
            if at < len(letters):
                self.counts["forced_cuts"] += 1
                self._end_document()

    def _end_document(self) -> None:
        if self._start is None:
            return
        start, stop, self._start = self._start, len(self._spool), None
        if stop - start < self._config.min_bases:
            self.counts["short_documents"] += 1
            self.counts["short_bases"] += stop - start
            return
        self.counts["clean_documents"] += 1
        self.counts["clean_bases"] += stop - start
        self._documents.append(CleanDocument(self._written_tag, start, stop, self._digest.digest()))

    def _count(self, text: bytes, kinds: int) -> None:
        """Counts what is rare enough to be counted apart."""
        found = np.bincount(self._cleaner.kinds[np.frombuffer(text, dtype=np.uint8)], minlength=256)
        values = np.arange(256)
        self.counts["u_to_t"] += int(found[values & _U > 0].sum())
        self.counts["letters"] -= int(found[values & _JOIN > 0].sum())
        if self._config.repeat_mask == "drop":
            self.counts["unmasked"] += int(found[values & _LOWER > 0].sum())
        if self._config.ambiguous == "unknown":
            self.counts["ambiguous_to_unknown"] += int(found[values & _AMBIGUOUS > 0].sum())

    def _bad_letter(self, text: bytes) -> RecordError:
        alphabet = self._cleaner.alphabet
        index = int((self._cleaner.kinds[np.frombuffer(text, dtype=np.uint8)] & _BAD > 0).argmax())
        num_before = self.counts["letters"] + len(text[:index].translate(None, _WHITE_SPACE))
        around = text[max(0, index - 5) : index + 6].decode(errors="replace")
        return RecordError(
            self._cleaner.path,
            f"{self._record.place}, letter {num_before + 1:,}",
            f"{chr(text[index])!r} in {around!r} is no {alphabet.one_of_them}; allowed are {alphabet.allowed}",
        )


def letters_digest(letters: bytes | memoryview, digest: hashlib._Hash | None = None) -> hashlib._Hash:
    """Digest of letters in upper case; goes on with the one that is given."""
    upper = np.frombuffer(letters, dtype=np.uint8) & _UPPER_BITS
    if digest is None:
        return hashlib.sha256(upper.data)
    digest.update(upper.data)
    return digest


def _translation(config: CleaningConfig, alphabet: Alphabet) -> Bytes:
    table = alphabet.translation
    if config.repeat_mask == "drop":
        table = table.upper()
    if config.ambiguous == "unknown":
        upper, lower = alphabet.unknown
        letters = bytes(letter for letter in alphabet.ambiguous if chr(letter).isupper())
        unknown = (
            bytes([upper]) * len(letters),
            bytes([lower if config.repeat_mask == "keep" else upper]) * len(letters),
        )
        table = table.translate(bytes.maketrans(letters + letters.lower(), b"".join(unknown)))
    return np.frombuffer(table, dtype=np.uint8)


def _kinds(config: CleaningConfig, alphabet: Alphabet) -> Bytes:
    table = np.full(256, _BAD, dtype=np.uint8)
    table[list(_WHITE_SPACE)] = 0
    for byte in alphabet.plain + alphabet.ambiguous + alphabet.marks:
        table[byte] = _WRITTEN
        table[byte] |= _UNKNOWN if byte in alphabet.unknown else 0
        if byte in alphabet.ambiguous:
            # Where ambiguous letters are written as N, they are part of its runs.
            table[byte] |= _AMBIGUOUS | (_UNKNOWN if config.ambiguous == "unknown" else 0)
        table[byte] |= _JOIN if byte in alphabet.marks else 0
        table[byte] |= _LOWER if chr(byte).islower() else 0
    if alphabet.translation[ord("U")] == ord("T"):
        table[ord("U")], table[ord("u")] = _WRITTEN | _U, _WRITTEN | _U | _LOWER
    return table


def _tags_and_letters(record: RawRecord, pieces: Iterable[bytes], path: Path) -> Iterator[tuple[bool, bytes]]:
    """Cuts the pieces of a record into (True, tag with its marks) and (False, letters)."""
    tag: bytes | None = None
    for piece in pieces:
        if tag is None and _MARK not in piece:
            yield False, piece
            continue
        for index, part in enumerate(piece.split(_MARK)):
            if index and tag is not None:
                if not tag.isascii() or not tag.decode().isprintable():
                    raise RecordError(path, record.place, f"bytes that are no text in its tag {tag[:40]!r}")
                yield True, _MARK + tag + _MARK
                tag = None
            elif index:
                tag = b""
            if tag is not None:
                tag += part
            elif part:
                yield False, part
        if tag is not None and len(tag) > LONGEST_TAG_BYTES:
            break
    if tag is not None:
        what = f"a tag |{tag[:40].decode(errors='replace')}... that has no second | within {LONGEST_TAG_BYTES:,} bytes"
        raise RecordError(path, record.place, what)


@njit(cache=True, nogil=True)
def _fold(text: Bytes, translation: Bytes, kinds: Bytes, out: Bytes) -> tuple[int, int]:
    num = 0
    found = 0
    for byte in text:
        out[num] = translation[byte]
        kind = kinds[byte]
        num += kind & 1
        found |= kind
    return num, found
