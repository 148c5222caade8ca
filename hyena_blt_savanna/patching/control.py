"""The control of a set of patch boundaries: the same lengths in another order.

Does it matter where patches are cut, or how long they are on average, or how much their lengths differ? A permuted
annotation has as many patches of each length as its source, on the same bases, and its cuts know nothing of the bases
next to them. What the source's rule must cut stays cut: after the end of a document, a tag, a join mark, the first
letter of a run of unknown ones (see `marks`). Patches inside such a run stay as they are too, or their many longest
patches would come to lie on known sequence.

Nothing but boundaries differs, so training draws the same windows in the same order. A window holds the patches that
start in it: at each of its two ends it may have other bases, fewer than the longest patch has.

A permuted annotation has no patcher. New sequence can't be cut as it was.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.data.boundaries import BoundaryReader, BoundaryWriter, boundary_prefix, write_annotation_manifest
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader, data_path
from hyena_blt_savanna.data.manifest import (
    AnnotationManifest,
    Strand,
    annotation_prefix,
    manifest_path,
    read_annotation_manifest,
)
from hyena_blt_savanna.data.splits import SPLIT_NAMES
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import OTHER_CODE, Bytes
from hyena_blt_savanna.patching.annotate import patcher_folder
from hyena_blt_savanna.patching.marks import (
    BYTE_CLASS,
    FORCED,
    IN_UNKNOWN_RUN,
    PLACE,
    START,
    state_after,
    states_before,
)

logger = logging.getLogger(__name__)

BLOCK_BASES = 1 << 25
"""Lengths are exchanged within blocks of so many bases: 250 MB of memory at 8 bases a patch. The first boundary of each
block stays where it is."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def permute_annotation(data: Path, source: str, name: str, seed: int) -> dict[str, AnnotationManifest]:
    """Writes an annotation whose patches are those of another one in another order; does nothing where that is done.

    Args:
        data: folder of the dataset.
        source: name of the annotation whose lengths are permuted, on all splits and strands that it has.
        name: of the new annotation.
        seed: the same seed gives the same boundaries; each split and strand has an order of its own.

    Returns:
        The manifest of each split's new annotation. Its rule says `permuted`, of what, and the seed.

    Raises:
        DataError: there is no such annotation, it is of other data than these, or the name is another annotation's.
        DiskFullError: the disk is full; what is there is whole, and permuting again finishes the rest.
    """
    splits = [split for split in SPLIT_NAMES if manifest_path(annotation_prefix(data / split, source)).is_file()]
    if not splits:
        raise DataError(
            f"{manifest_path(annotation_prefix(data / SPLIT_NAMES[0], source))}: no such file; there are no boundaries "
            f"{source!r} to permute: annotate the data (tools/annotate_patches.py name={source})"
        )
    if not _NAME.fullmatch(name):
        raise DataError(f"name {name!r}: letters, digits, _ and - are allowed")
    if name == source or patcher_folder(data, name).exists():
        raise DataError(f"{data} has boundaries {name!r} that are no permutation: choose another name")
    rules = {split: _rule(read_annotation_manifest(data / split, source), seed) for split in splits}
    manifests = {split: _find_permuted(data / split, name, rule) for split, rule in rules.items()}
    if all(manifests.values()):
        logger.info("%s: %s is permuted already", data, source)
    written: dict[str, AnnotationManifest] = {}
    for split, found in manifests.items():
        written[split] = found or _permute(data / split, source, name, seed, rules[split])
    return written


def _rule(source: AnnotationManifest, seed: int) -> dict[str, Any]:
    return {
        "kind": "permuted",
        "annotation": source.name,
        "seed": seed,
        "sha256": {"forward": source.forward_sha256, "reverse": source.reverse_sha256},
        "rule": source.rule,
    }


def _find_permuted(prefix: Path, name: str, rule: dict[str, Any]) -> AnnotationManifest | None:
    """An earlier permutation of the same boundaries, if all of it is there."""
    try:
        found = read_annotation_manifest(prefix, name)
    except DataError as error:
        logger.debug("%s: to be permuted: %s", prefix, error)
        return None
    whole = all(data_path(boundary_prefix(prefix, name, strand)).is_file() for strand in found.statistics)
    return found if whole and found.rule == rule else None


def _permute(prefix: Path, source: str, name: str, seed: int, rule: dict[str, Any]) -> AnnotationManifest:
    data = IndexedReader(prefix)
    writers = []
    for strand in read_annotation_manifest(prefix, source).statistics:
        boundaries = BoundaryReader(prefix, source, strand)
        writer = BoundaryWriter(prefix, name, strand, boundaries.longest_patch_bases)
        with writer:
            _permute_strand(StrandReader(data, strand), boundaries, writer, _key(seed, prefix.name, strand))
        writers.append(writer)
        logger.info("%s, %s strand: %s patches permuted", prefix, strand, f"{writer.statistics.num_patches:,}")
    return write_annotation_manifest(prefix, name, writers, rule)


def _permute_strand(stream: StrandReader, boundaries: BoundaryReader, writer: BoundaryWriter, key: int) -> None:
    state = START
    for block in range(0, stream.num_bytes, BLOCK_BASES):
        first, lengths = boundaries.patches(block, block + BLOCK_BASES)
        # None starts in a block that is shorter than a patch.
        if len(lengths):
            bases = stream.read(first, first + int(lengths.sum(dtype=np.int64)))
            states = states_before(bases, state)
            writer.add(permute_lengths(bases, states, lengths, key ^ block))
            state = state_after(bases[-1:], int(states[-1]))


def permute_lengths(bases: Bytes, states: NDArray[np.uint8], lengths: NDArray[np.int32], key: int) -> NDArray[np.int32]:
    """Patches in another order, within each stretch between two boundaries that stay.

    Args:
        bases: uint8 [L], either case.
        states: uint8 [L], before each base (see `marks`).
        lengths: int32 [P], in bases; they sum to L.
        key: of 64 bits; decides the order.

    Returns:
        int32 [P]: the multiset of the lengths between two forced boundaries is the same.
    """
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    states = states[starts]
    # A patch that begins with an unknown letter behind the first of its run stays, between two borders.
    stays = (states & PLACE == IN_UNKNOWN_RUN) & (BYTE_CLASS[bases[starts]] == OTHER_CODE)
    is_border = (states & FORCED > 0) | stays
    is_border[1:] |= stays[:-1]
    permuted = lengths.copy()
    _shuffle(permuted, np.append(np.flatnonzero(is_border), len(lengths)), np.uint64(key))
    return permuted


def _key(seed: int, split: str, strand: Strand) -> int:
    digest = hashlib.sha256(f"permuted {seed} {split} {strand}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


@njit(cache=True, nogil=True)
def _shuffle(lengths: NDArray[np.int32], borders: NDArray[np.int64], key: np.uint64) -> None:
    """Shuffles each [border, next border) and what lies before the first, by Fisher and Yates.

    Source: Knuth, The Art of Computer Programming 2, algorithm 3.4.2P; numbers from SplitMix64 (Steele et al. 2014).
    """
    state = key
    start = 0
    for stop in borders:
        for last in range(stop - 1, start, -1):
            state += np.uint64(0x9E3779B97F4A7C15)
            mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed ^= mixed >> np.uint64(31)
            # The upper 32 bits as a fraction of the places from `start` to `last`.
            place = start + np.int64(((mixed >> np.uint64(32)) * np.uint64(last - start + 1)) >> np.uint64(32))
            lengths[last], lengths[place] = lengths[place], lengths[last]
        start = stop
