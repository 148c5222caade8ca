"""Stored entropies: what a stream was cut by, beside its boundaries, so that windows can be cut anew.

Entropies are float32 multiples of 2 ** -15 nats, so that 16 bits hold one without loss, sums of them are exact in
any order, and a stream that is cut anew from stored entropies gets the very boundaries that were stored.

PREFIX.NAME.entropies.{bin,idx} of the forward strand and PREFIX.NAME.entropies.reverse.{bin,idx} are indexed datasets
of uint16, one value a base, in items of 65,536 bases; the annotation's manifest holds their digests.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.boundaries import BLOCK_BASES
from hyena_blt_savanna.data.entropy_grid import ENTROPY_STEP_NATS
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader, IndexedWriter, data_path
from hyena_blt_savanna.data.manifest import (
    Strand,
    annotation_prefix,
    manifest_path,
    read_annotation_manifest,
    read_manifest,
)
from hyena_blt_savanna.data.whole_files import WholeWriter


def entropies_prefix(prefix: Path, name: str, strand: Strand) -> Path:
    """Path without suffix of one strand's stored entropies."""
    forward = annotation_prefix(prefix, name)
    return forward.with_name(forward.name + (".entropies" if strand == "forward" else ".entropies.reverse"))


class EntropyWriter(WholeWriter):
    """Writes one strand's entropies in stream order, in constant memory.

    A context manager: the file appears when the block ends well, else nothing does.

    Args:
        prefix: path of the dataset, whose manifest must be there.
        name: name of the annotation.
        strand: whose entropies these are.

    Raises:
        DataError: the dataset has no manifest.
        DiskFullError: from any method, when the disk is full.
    """

    def __init__(self, prefix: Path, name: str, strand: Strand) -> None:
        self.prefix, self.strand = prefix, strand
        self.num_bytes = read_manifest(prefix).num_bytes
        self._writer = IndexedWriter(entropies_prefix(prefix, name, strand), np.uint16)
        self._pending = np.zeros(0, dtype=np.uint16)
        self._position = 0

    @property
    def sha256(self) -> str:
        """Digest of the file so far, in hexadecimal."""
        return self._writer.sha256

    def add(self, nats: NDArray[np.float32]) -> None:
        """Appends entropies, float32 [L], on the grid."""
        steps = nats.astype(np.float64) / ENTROPY_STEP_NATS
        stored = steps.astype(np.uint16)
        assert (stored == steps).all(), "entropies off the grid"
        self._position += len(stored)
        self._pending = np.concatenate([self._pending, stored])
        while len(self._pending) >= BLOCK_BASES:
            self._writer.add(self._pending[:BLOCK_BASES])
            self._pending = self._pending[BLOCK_BASES:]

    def close(self) -> None:
        """Writes the index and gives the files their names.

        Raises:
            DataError: there are more or fewer entropies than bases.
        """
        if self._position != self.num_bytes:
            raise DataError(
                f"{data_path(self._writer.prefix)}: {self._position:,} entropies, "
                f"but {data_path(self.prefix)} has {self.num_bytes:,} bases"
            )
        if len(self._pending):
            self._writer.add(self._pending)
        self._writer.close()

    def discard(self) -> None:
        """Removes what was written so far."""
        self._writer.discard()


class EntropyReader:
    """Reads stored entropies.

    Args:
        prefix: path of the dataset.
        name: name of the annotation.
        strand: whose entropies.

    Raises:
        DataError: none were stored, they belong to other data, or there are not as many as bases.
    """

    def __init__(self, prefix: Path, name: str, strand: Strand) -> None:
        manifest = read_annotation_manifest(prefix, name)
        if strand not in manifest.entropies_sha256:
            raise DataError(
                f"{manifest_path(annotation_prefix(prefix, name))}: no stored entropies of the {strand} strand; "
                "annotate the data again with store_entropies=true"
            )
        path = entropies_prefix(prefix, name, strand)
        self._steps = IndexedReader(path).stream
        if len(self._steps) != manifest.data_num_bytes:
            raise DataError(
                f"{data_path(path)} has {len(self._steps):,} entropies, but {data_path(prefix)} has "
                f"{manifest.data_num_bytes:,} bases: annotate the data again"
            )

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Entropies of bases [start, stop), float32, nats."""
        return self._steps[start:stop] * np.float32(ENTROPY_STEP_NATS)
