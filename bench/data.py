"""python bench/data.py [--bases 64000000] [--fasta GENOME.fa] [--corpus ...]

Measures the way from FASTA to windows, single process, each from a warm page cache, and prints one table: preparing
plain and gzipped FASTA into the indexed dataset, entropies and boundaries (from bench/patching.py), and windows
with their boundaries. Without --fasta it makes a genome up. --corpus measures how sources of shards are made and opened
instead: bench/corpus.py, which takes the other arguments.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hyena_blt_savanna.data.batches import TrainingSamples
from hyena_blt_savanna.data.boundaries import BoundaryWriter, write_annotation_manifest
from hyena_blt_savanna.data.fasta import read_fasta
from hyena_blt_savanna.data.manifest import STRANDS, Strand, read_manifest
from hyena_blt_savanna.data.prepare import DataConfig, prepare_dataset
from hyena_blt_savanna.data.slices import read_slices
from hyena_blt_savanna.data.splits import SplitConfig
from hyena_blt_savanna.data.windows import WindowReader
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_fasta

WINDOWS = [8_192, 32_768, 131_072, 524_288, 1_048_576]
LEFT_PATCHES = 32
GOAL_PREPARING = 20e6
GOAL_WINDOWS = 100e6
_LEAST_SECONDS = 0.5
_PIECE_BASES = 1 << 20


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    bases_per_second: float
    goal: float | None = None

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"{self.goal / 1e6:>10,.0f}"
        met = "" if self.goal is None else ("  yes" if self.bases_per_second >= self.goal else "  NO")
        return f"{self.what:<58}{self.bases_per_second / 1e6:>14,.1f}{goal:>10}{met}"


def measure(work: Callable[[], int], repeats: int = 3) -> float:
    """Bases per second of the fastest of several runs; `work` returns the bases it went through."""
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        num_bases = work()
        rates.append(num_bases / (time.perf_counter() - start))
    return max(rates)


def prepare_rows(fasta: Path, folder: Path) -> list[Row]:
    """Reading alone, and preparing into the indexed dataset with all digests, from plain and gzipped FASTA."""
    compressed = folder / "genome.fa.gz"
    compressed.write_bytes(gzip.compress(fasta.read_bytes(), compresslevel=6))
    rows = []
    for name, path in (("plain FASTA", fasta), ("gzipped FASTA", compressed)):
        rows.append(Row(f"read {name}", measure(partial(_read, path), 2)))
        rows.append(Row(f"prepare {name}", measure(partial(_prepare, path, folder), 2), GOAL_PREPARING))
    return rows


def boundary_file_rows(prefix: Path) -> list[Row]:
    """Writing boundary files of both strands, for patches of 8 bases on average."""
    num_bytes = read_manifest(prefix).num_bytes
    lengths = _random_lengths(num_bytes)

    def work() -> int:
        writers = []
        for strand in STRANDS:
            with BoundaryWriter(prefix, "patches", strand, 16) as writer:
                for start in range(0, len(lengths), _PIECE_BASES // 8):
                    writer.add(lengths[start : start + _PIECE_BASES // 8])
            writers.append(writer)
        write_annotation_manifest(prefix, "patches", writers, {"kind": "random"})
        return 2 * num_bytes

    return [Row("write boundary files, patches of 8", measure(work, 1))]


def window_rows(prefix: Path) -> list[Row]:
    """Windows of both strands with their boundaries, at places drawn at random."""
    rows = []
    strands: tuple[Strand, ...] = STRANDS
    readers = {strand: WindowReader(prefix, "patches", strand) for strand in strands}
    for window_bases in WINDOWS:
        for strand, reader in readers.items():
            if reader.num_bytes < window_bases:
                continue
            rate = measure(partial(_read_windows, reader, window_bases))
            rows.append(Row(f"windows of {window_bases:,} bases, {strand} strand", rate, GOAL_WINDOWS))
    return rows


def batch_rows(prefix: Path) -> list[Row]:
    """Training samples in keyed order as tensors: int64 bases, patch lengths and weights; whole, and one of two slices.

    The rate of a slice is that of whole windows: while a rank reads its half, the other one reads the other half.
    """
    samples = TrainingSamples(prefix)
    rows = []
    for window_bases in WINDOWS:
        if samples.num_bytes < window_bases:
            continue
        for share, num_ranks in (("both strands", 1), ("one of 2 slices", 2)):
            rate = measure(partial(_read_batches, samples, window_bases, num_ranks))
            rows.append(Row(f"training batches of {window_bases:,} bases, {share}", rate))
    return rows


def _read(path: Path) -> int:
    return sum(len(record.sequence) for record in read_fasta(path))


def _prepare(path: Path, folder: Path) -> int:
    output = folder / "data"
    for manifest in output.glob("*.manifest.json"):
        manifest.unlink()
    manifests = prepare_dataset(DataConfig(inputs=[path], output=output, split=SplitConfig(validation=0.0, test=0.1)))
    return sum(manifest.num_bases for manifest in manifests.values())


def _random_lengths(num_bytes: int) -> np.ndarray:
    lengths = np.random.default_rng(0).integers(1, 16, size=num_bytes // 4, dtype=np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)
    last = int(np.searchsorted(ends, num_bytes))
    lengths[last] -= int(ends[last]) - num_bytes
    return lengths[: last + 1]


def _read_windows(reader: WindowReader, window_bases: int) -> int:
    rng = np.random.default_rng(0)
    num_windows = reader.num_bytes // window_bases
    num_bases = 0
    checksum = 0
    stop = time.perf_counter() + _LEAST_SECONDS
    while time.perf_counter() < stop:
        for index in rng.integers(0, num_windows, size=8).tolist():
            window = reader.window(index, window_bases).read()
            # A view of the file costs nothing until its bytes are looked at: copy them, as a batch does.
            checksum ^= int(window.bases.copy()[-1])
            num_bases += len(window.bases)
    return num_bases


def _read_batches(samples: TrainingSamples, window_bases: int, num_ranks: int) -> int:
    num_bases = index = 0
    stop = time.perf_counter() + _LEAST_SECONDS
    while time.perf_counter() < stop:
        for _ in range(4):
            batch = read_slices([samples.find(0, window_bases, index)], 1.0, num_ranks - 1, num_ranks, LEFT_PATCHES)
            num_bases += num_ranks * batch.num_bases
            index += 1
    return num_bases


def _load(name: str) -> Any:
    """Another script of this folder, as a module."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _patching_rows(fasta: Path) -> list[Row]:
    """The rows of bench/patching.py: what, bases per second, goal."""
    return [Row(*row) for row in _load("patching").rows(fasta)]


def main(arguments: list[str]) -> None:
    """Measures everything and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, default=64_000_000, help="length of the made-up genome")
    parser.add_argument("--fasta", type=Path, help="a genome of yours")
    parser.add_argument("--corpus", action="store_true", help="bench/corpus.py instead, with the other arguments")
    options, others = parser.parse_known_args(arguments)
    if options.corpus:
        _load("corpus").main([argument for argument in arguments if argument != "--corpus"])
        return
    if others:
        parser.error(f"unknown arguments: {' '.join(others)}")
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        fasta = options.fasta or write_fasta(folder / "genome.fa", {"toy": random_genome(options.bases)})
        print(f"{'single process':<58}{'Mbases/s':>14}{'goal':>10}")
        # Compiles or loads the kernels, and megatron-core.
        warm = write_fasta(folder / "warm.fa", {"toy": random_genome(2_000_000)})
        _prepare(warm, folder / "warm")
        boundary_file_rows(folder / "warm" / "data" / "train")
        window_rows(folder / "warm" / "data" / "train")
        prefix = folder / "data" / "train"
        parts = [
            partial(prepare_rows, fasta, folder),
            partial(_patching_rows, fasta),
            partial(boundary_file_rows, prefix),
            partial(window_rows, prefix),
            partial(batch_rows, prefix),
        ]
        for part in parts:
            for row in part():
                print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
