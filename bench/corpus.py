"""python bench/corpus.py [--fasta GENOME.fa] [--gigabase] [--ranks] [--only ROWS]

Measures how sources are made, each figure in one run beside what it is compared with: from gzipped FASTA and rows of
JSON to shards against `gzip -dc` alone; patch boundaries by an n-gram model; opening a source of 10,000 shards, and a
mixture of 300 sources; with --gigabase the peak memory for one record of a billion bases; with --ranks two ranks of
MPI against one. Without --fasta it makes a genome up. --only takes some of these.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from hyena_blt_savanna.data.corpus.cleaning import CleaningCounts
from hyena_blt_savanna.data.corpus.pipeline import prepare_source
from hyena_blt_savanna.data.corpus.plan import SourceConfig
from hyena_blt_savanna.data.corpus.source import ShardEntry, SourceManifest, write_source
from hyena_blt_savanna.data.corpus.source_annotation import SourceAnnotation, shards_sha256, write_source_annotation
from hyena_blt_savanna.data.fasta import read_fasta
from hyena_blt_savanna.data.manifest import StrandStatistics
from hyena_blt_savanna.patching.annotate_source import annotate_source
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig
from hyena_blt_savanna.testing.toy_genomes import random_genome

REPOSITORY = Path(__file__).parents[1]
GOAL_OF_GZIP, GOAL_OF_ONE_RANK, GOAL_MEGABYTES, GOAL_OPEN_SECONDS, GOAL_ANNOTATION = 0.6, 1.8, 500, 10, 2
_REPEATS = 3
_MEAN_SHORT_BASES = 2000
_OPEN = """
import sys, time
from hyena_blt_savanna.training.data_config import DataSourceConfig
from hyena_blt_savanna.training.run_sources import find_sources
start = time.time()
config = DataSourceConfig.parse({"sources": [{"path": path, "weight": 1} for path in sys.argv[1:]]})
samples = find_sources(config).samples(seed=0, cutter=None, with_entropies=False)
samples.check_share(8192, 1, 1)
print(time.time() - start)
"""


def config_for(path: Path, output: Path, **changes: object) -> SourceConfig:
    """A source of one input."""
    tree = {"source": "bench", "inputs": [str(path)], "output": output, "split": {"by": "record"}}
    return SourceConfig.parse(tree | changes)


def speed_rows(fasta: Path, folder: Path) -> Iterator[str]:
    """Making a source against `gzip -dc` on the same file, by wall clock and by processor time."""
    letters = b"".join(record.sequence.tobytes() for record in read_fasta(fasta))
    short = list(_short_records(letters.replace(b"N", b"")[: 1 << 25]))
    files = {
        "one long record of FASTA": (fasta.read_bytes(), "long.fa.gz"),
        "short records of FASTA": (b"".join(b">%d\n%s\n" % pair for pair in enumerate(short)), "short.fa.gz"),
        "short rows of JSON": (b"".join(b'{"text": "%s"}\n' % text for text in short), "short.jsonl.gz"),
    }
    yield f"{'':<52}{'of gzip -dc':>14}{'by CPU':>10}{'Mbases/s CPU':>14}{'goal':>8}"
    for what, (data, name) in files.items():
        path = folder / name
        path.write_bytes(gzip.compress(data, compresslevel=6))
        for shuffle in (False, True):
            wall, processor, rate = _against_gzip(config_for(path, folder / "out", shuffle=shuffle), path)
            how = "shuffled" if shuffle else "in order"
            yield f"{what + ', ' + how:<52}{wall:>14.2f}{processor:>10.2f}{rate / 1e6:>14.0f}{GOAL_OF_GZIP:>8}"


def _short_records(letters: bytes) -> Iterator[bytes]:
    lengths = np.random.default_rng(0).integers(500, 2 * _MEAN_SHORT_BASES, size=len(letters) // 500)
    start = 0
    for length in lengths.tolist():
        if start >= len(letters):
            return
        yield letters[start : start + length]
        start += length


def _against_gzip(config: SourceConfig, path: Path) -> tuple[float, float, float]:
    """Best of some runs, each beside one of gzip: its time over ours, by wall and CPU; and our bases a CPU second."""
    walls, processors, rates = [], [], []
    for _ in range(_REPEATS + 1):
        before, start = _children_seconds(), time.perf_counter()
        subprocess.run(["gzip", "-dc", path], stdout=subprocess.DEVNULL, check=True)
        gzip_wall, gzip_processor = time.perf_counter() - start, _children_seconds() - before
        shutil.rmtree(config.output, ignore_errors=True)
        start, processor = time.perf_counter(), time.process_time()
        manifest = prepare_source(config)
        wall, processor = time.perf_counter() - start, time.process_time() - processor
        walls.append(gzip_wall / wall)
        processors.append(gzip_processor / processor)
        rates.append(manifest.counts.letters / processor)
    # The first run compiles, or loads, the kernels.
    return max(walls[1:]), max(processors[1:]), max(rates[1:])


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def annotation_row(fasta: Path, folder: Path) -> str:
    """Boundaries of both strands of a source by an n-gram of order 8 and patches of equal information, out of fold."""
    config = config_for(fasta, folder / "annotated", shuffle=False)
    num_bases = prepare_source(config).counts.clean_bases
    settings = {"data": config.output, "entropy_model": {"kind": "ngram", "order": 8}, "rule": {"kind": "budget"}}
    settings |= {"calibrate_to": {"mean_patch_bases": 8}}
    rates = []
    for number in range(2):
        # The first one compiles, or loads, the kernels.
        processor = time.process_time()
        annotate_source(AnnotationConfig.parse(settings | {"name": f"patches{number}"}))
        rates.append(num_bases / (time.process_time() - processor) / 1e6)
    return (
        f"boundaries of both strands, fitting and calibration included: {rates[-1]:.1f} million bases a second and "
        f"core (goal {GOAL_ANNOTATION})"
    )


def open_rows(folder: Path, num_shards: int = 10_000, num_sources: int = 300) -> Iterator[str]:
    """Opening a source of many shards, and a mixture of many sources of one, each in a process of its own."""
    _write_many(folder / "many", num_shards)
    for number in range(num_sources):
        _write_many(folder / f"one{number}", 1)
    rows = {
        f"a source of {num_shards:,} shards": [str(folder / "many")],
        f"a mixture of {num_sources} sources": [str(folder / f"one{number}") for number in range(num_sources)],
    }
    for what, paths in rows.items():
        seconds, megabytes = _measured([sys.executable, "-c", _OPEN, *paths])
        yield (
            f"opening {what}, with its boundaries, to its first sample's place: {float(seconds):.2f} s "
            f"(goal {GOAL_OPEN_SECONDS}), {megabytes:.0f} MB with all imports (goal 1,000)"
        )


def _write_many(folder: Path, num_shards: int) -> None:
    """The manifests of a source, and of its boundaries; there is nothing else of it."""
    shards = [
        ShardEntry(
            name=f"train-{i:05d}",
            num_documents=10**6,
            num_bases=10**9,
            num_bytes=10**9,
            longest_document_bytes=10**6,
            data_sha256=f"{i:064d}",
        )
        for i in range(num_shards)
    ]
    manifest = SourceManifest(
        source=folder.name,
        alphabet="dna",
        settings={},
        settings_sha256="",
        inputs=[],
        counts=CleaningCounts(),
        splits={"train": shards},
        num_tags={"train": 0},
        versions={},
    )
    folder.mkdir()
    write_source(folder, manifest)
    lengths = StrandStatistics(num_patches=1, mean_bases=8.0, min_bases=8, max_bases=8, histogram={8: 1})
    annotation = SourceAnnotation(
        name="patches",
        source=folder.name,
        data_sha256=shards_sha256(shards),
        num_shards=num_shards,
        rule={"kind": "byte"},
        calibration={},
        entropy_model=None,
        statistics={"forward": lengths, "reverse": lengths},
        versions={},
    )
    write_source_annotation(folder, annotation)


def gigabase_rows(folder: Path, num_bases: int = 10**9) -> Iterator[str]:
    """Peak resident set for one record of a billion bases, in FASTA and in a row of JSON."""
    block = random_genome(1 << 22).tobytes()
    lines = b"\n".join(block[at : at + 60] for at in range(0, len(block) - 60, 60)) + b"\n"
    for what, name, opening, piece, closing in (
        ("FASTA", "big.fa.gz", b">big\n", lines, b""),
        ("a row of JSON", "big.jsonl.gz", b'{"text": "', block, b'"}\n'),
    ):
        path = folder / name
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(opening)
            for _ in range(num_bases // len(block)):
                file.write(piece)
            file.write(closing)
        config = folder / "big.yaml"
        shuffled: list[str] = []
        for shuffle in ("true", "false"):
            shutil.rmtree(folder / "big", ignore_errors=True)
            config.write_text(json.dumps(config_for(path, folder / "big").to_dict()))
            tool = REPOSITORY / "tools" / "prepare_genomes.py"
            _, megabytes = _measured([sys.executable, tool, config, f"shuffle={shuffle}"])
            shuffled.append(f"{megabytes:.0f} MB {'shuffled' if shuffle == 'true' else 'in order'}")
        path.unlink()
        shutil.rmtree(folder / "big")
        yield f"one record of {num_bases:,} bases in {what}: {', '.join(shuffled)} (goal {GOAL_MEGABYTES})"


def _measured(command: list[object]) -> tuple[str, float]:
    """Output of a command, and the peak resident set of its process in megabytes."""
    code = (
        "import json, resource, subprocess, sys; "
        "r = subprocess.run(sys.argv[1:], capture_output=True, text=True, check=True); "
        "print(json.dumps([r.stdout, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3]))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-c", code, *map(str, command)]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    output, megabytes = json.loads(result.stdout)
    return output, megabytes


def ranks_row(fasta: Path, folder: Path, num_bases: int = 4 * 10**9) -> str:
    """Two ranks against one, both started by mpirun, on so many equal inputs that starting hardly counts."""
    data = fasta.read_bytes()
    first = folder / "part0.fa.gz"
    first.write_bytes(gzip.compress(data, compresslevel=6))
    num_inputs = max(2, 2 * round(num_bases / 2 / len(data)))
    for number in range(1, num_inputs):
        os.link(first, folder / f"part{number}.fa.gz")
    config = folder / "ranks.yaml"
    tree = config_for(folder / "part*.fa.gz", folder / "ranks", shuffle=False).to_dict()
    config.write_text(json.dumps(tree))
    seconds: dict[int, float] = {}
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMPI_ALLOW_RUN_AS_ROOT": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    tool = REPOSITORY / "tools" / "prepare_genomes.py"
    for num_ranks in (1, 2):
        shutil.rmtree(folder / "ranks", ignore_errors=True)
        start = time.perf_counter()
        command = ["mpirun", "--oversubscribe", "-n", str(num_ranks), sys.executable, str(tool), str(config)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        seconds[num_ranks] = time.perf_counter() - start
    return (
        f"{num_inputs} inputs, {num_inputs * len(data):,} bytes: one rank {seconds[1]:.1f} s, two {seconds[2]:.1f} s, "
        f"{seconds[1] / seconds[2]:.2f} times as fast (goal {GOAL_OF_ONE_RANK})"
    )


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, help="a genome of yours")
    parser.add_argument("--bases", type=int, default=64_000_000, help="length of the made-up genome")
    parser.add_argument("--gigabase", action="store_true", help="one record of a billion bases: minutes, 3 GB")
    parser.add_argument("--ranks", action="store_true", help="two ranks against one: needs two quiet cores")
    parser.add_argument(
        "--only", nargs="+", choices=("speed", "annotation", "opening", "gigabase", "ranks"), default=()
    )
    options = parser.parse_args(arguments)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        fasta = options.fasta
        if fasta is None:
            fasta = folder / "genome.fa"
            letters = random_genome(options.bases).tobytes()
            fasta.write_bytes(b">toy\n" + b"\n".join(letters[at : at + 60] for at in range(0, len(letters), 60)))
        parts: dict[str, Callable[[], Iterable[str]]] = {
            "speed": lambda: speed_rows(fasta, folder),
            "annotation": lambda: [annotation_row(fasta, folder)],
            "opening": lambda: open_rows(folder),
            "gigabase": lambda: gigabase_rows(folder),
            "ranks": lambda: [ranks_row(fasta, folder)],
        }
        asked = {"gigabase": options.gigabase, "ranks": options.ranks}
        for name, rows in parts.items():
            if name in options.only if options.only else asked.get(name, True):
                for row in rows():
                    print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
