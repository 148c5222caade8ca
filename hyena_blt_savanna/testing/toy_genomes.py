"""Small made-up genomes and datasets for tests: seeded, with all that real ones have."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.boundaries import BoundaryWriter, write_annotation_manifest
from hyena_blt_savanna.data.dataset_writer import DatasetWriter
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import STRANDS, AnnotationManifest, DatasetManifest, SplitDescription
from hyena_blt_savanna.data.strands import StrandReader
from hyena_blt_savanna.nucleotides import BASES, END_OF_DOCUMENT, IUPAC, Bytes, reverse_complement


def random_genome(
    num_bases: int,
    seed: int = 0,
    repeat_fraction: float = 0.3,
    lower_fraction: float = 0.2,
    num_unknown_runs: int = 0,
    num_iupac: int = 0,
) -> Bytes:
    """A sequence with uneven composition, repeats on both strands, a soft mask and runs of N.

    Args:
        num_bases: its length.
        seed: the same seed gives the same sequence.
        repeat_fraction: share of the sequence that is copied from before, on either strand, with 2% of mutations.
        lower_fraction: share of the sequence in lower case, in stretches.
        num_unknown_runs: runs of N, of 1 to 200 bases each.
        num_iupac: single letters of more than one base.

    Returns:
        uint8 [num_bases].
    """
    rng = np.random.default_rng(seed)
    letters = np.frombuffer(BASES, dtype=np.uint8)
    genome = rng.choice(letters, size=num_bases, p=[0.3, 0.2, 0.2, 0.3])
    copied = 0
    while num_bases > 100 and copied < repeat_fraction * num_bases:
        length = int(rng.integers(20, max(21, min(2000, num_bases // 4))))
        source = int(rng.integers(0, num_bases - length))
        target = int(rng.integers(0, num_bases - length))
        piece = genome[source : source + length].copy()
        if rng.random() < 0.5:
            piece = reverse_complement(piece)
        mutated = rng.random(length) < 0.02
        piece[mutated] = rng.choice(letters, size=int(mutated.sum()))
        genome[target : target + length] = piece
        copied += length
    for _ in range(num_iupac):
        genome[rng.integers(0, num_bases)] = rng.choice(np.frombuffer(IUPAC, dtype=np.uint8))
    for start, stop in _stretches(rng, num_bases, num_unknown_runs, 200):
        genome[start:stop] = ord("N")
    masked = 0
    while num_bases and masked < lower_fraction * num_bases:
        ((start, stop),) = _stretches(rng, num_bases, 1, 300)
        genome[start:stop] |= 0x20
        masked += stop - start
    return genome


def toy_documents(seed: int = 0, num_documents: int = 5, mean_bases: int = 2000) -> list[tuple[bytes, Bytes]]:
    """Documents of very different lengths as (tag, sequence): some with tags, join marks, N runs, other letters."""
    rng = np.random.default_rng(seed)
    documents = []
    for number in range(num_documents):
        num_bases = max(1, int(rng.exponential(mean_bases)))
        sequence = random_genome(num_bases, int(rng.integers(1 << 31)), num_unknown_runs=number % 3, num_iupac=number)
        if number % 3 == 1 and num_bases > 3:
            sequence[rng.integers(1, num_bases - 1)] = ord("@#"[number % 2])
        tag = b"|D__TOY;P__ACGT;S__Number_%d|" % number if number % 2 else b""
        documents.append((tag, sequence))
    return documents


def write_fasta(
    path: Path,
    records: Mapping[str, Bytes | bytes],
    width: int = 60,
    newline: str = "\n",
    compress: bool = False,
    final_newline: bool = True,
) -> Path:
    """Writes records as FASTA.

    Args:
        path: the file.
        records: header (name and description) to sequence.
        width: bases of a line.
        newline: "\\n" or "\\r\\n".
        compress: gzip, whatever the file's name.
        final_newline: whether the last line is ended.
    """
    lines: list[bytes] = []
    for header, sequence in records.items():
        text = sequence if isinstance(sequence, bytes) else sequence.tobytes()
        lines.append(b">" + header.encode())
        lines.extend(text[start : start + width] for start in range(0, len(text), width))
    data = newline.encode().join(lines) + (newline.encode() if final_newline else b"")
    path.write_bytes(gzip.compress(data) if compress else data)
    return path


def write_dataset(prefix: Path, documents: Iterable[Bytes | tuple[bytes, Bytes]]) -> DatasetManifest:
    """Writes a dataset from sequences, or from (tag, sequence) pairs."""
    split = SplitDescription(name="train", by="stretch", validation=0.0, test=0.0, min_bases=1)
    with DatasetWriter(prefix) as writer:
        for document in documents:
            tag, sequence = document if isinstance(document, tuple) else (b"", document)
            writer.add(sequence, tag)
        writer.close()
        return writer.write_manifest([], split, {"train": writer.num_bytes})


def random_patches(stream: Bytes, longest_patch_bases: int, seed: int = 0) -> NDArray[np.int32]:
    """Random patch lengths that cover a stream, int32 [P]; a patch ends with each end-of-document byte."""
    rng = np.random.default_rng(seed)
    cuts = np.cumsum(rng.integers(1, longest_patch_bases + 1, size=len(stream)))
    ends = np.union1d(cuts[cuts < len(stream)], np.flatnonzero(stream == END_OF_DOCUMENT) + 1)
    return np.diff(np.union1d(ends, [len(stream)]), prepend=0).astype(np.int32)


def write_random_boundaries(
    prefix: Path, name: str = "patches", longest_patch_bases: int = 16, seed: int = 0
) -> AnnotationManifest:
    """Annotates both strands of a dataset with `random_patches`; the reverse strand's are of seed + 1."""
    reader = IndexedReader(prefix)
    writers = []
    for number, strand in enumerate(STRANDS):
        stream = StrandReader(reader, strand).read(0, len(reader.stream))
        with BoundaryWriter(prefix, name, strand, longest_patch_bases) as writer:
            writer.add(random_patches(stream, longest_patch_bases, seed + number))
        writers.append(writer)
    return write_annotation_manifest(prefix, name, writers, {"kind": "random", "longest": longest_patch_bases})


def write_toy_data(folder: Path, **num_bases: int) -> Path:
    """A folder of annotated data.

    Args:
        folder: of the data.
        num_bases: of each part (train, validation, test), whose one random genome has no other's seed.

    Returns:
        The folder.
    """
    for name, num in num_bases.items():
        write_dataset(folder / name, [random_genome(num, seed=num)])
        write_random_boundaries(folder / name, longest_patch_bases=8)
    return folder


def _stretches(rng: np.random.Generator, num_bases: int, num: int, longest: int) -> list[tuple[int, int]]:
    starts = rng.integers(0, max(1, num_bases), size=num)
    return [(int(start), min(num_bases, int(start + rng.integers(1, longest + 1)))) for start in starts]
