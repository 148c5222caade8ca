"""A miniature of the hub's OpenGenome2: every folder and every quirk, made up."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyena_blt_savanna.testing.toy_genomes import random_genome

BOTH = "json/pretraining_or_both_phases"
MID = "json/midtraining_specific"


def sequence(num_bases: int, seed: int, **settings: Any) -> str:
    """A made-up sequence as text; see `random_genome`."""
    return random_genome(num_bases, seed, **settings).tobytes().decode()


def write_rows(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """Writes rows of JSON, gzipped where the name ends in .gz; a text is a line as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def as_fasta(records: Mapping[str, str], width: int = 60) -> bytes:
    """Records by header as text of FASTA."""
    lines: list[str] = []
    for header, letters in records.items():
        lines += [f">{header}", *(letters[at : at + width] for at in range(0, len(letters), width))]
    return "\n".join([*lines, ""]).encode()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """Writes an archive of files by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_parts(path: Path, data: bytes, num_parts: int) -> list[Path]:
    """Writes data as split(1) does: PATH.aa, PATH.ab, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, len(data), num_parts + 1).astype(int)
    paths = [path.with_name(f"{path.name}.a{chr(97 + number)}") for number in range(num_parts)]
    for part, start, stop in zip(paths, edges[:-1], edges[1:], strict=True):
        part.write_bytes(data[start:stop])
    return paths


def write_hub(folder: Path, scale: int = 1) -> Path:
    """Writes the whole tree.

    Args:
        folder: where it goes.
        scale: multiplies the number of records.

    Returns:
        The folder.
    """
    for number, name in enumerate(
        ("mrna", "mrna_splice_promoter", "ncrna", "promoters", "organelle", "imgvr_untagged")
    ):
        _write_chunks(folder / BOTH / name, name, 100 * number, scale)
    _write_metagenomes(folder, scale)
    _write_chunks(folder / BOTH / "eukaryotic_genic_windows", "windows_5kb", 700, scale, lower_fraction=0.5, join="@")
    _write_chunks(folder / BOTH / "gtdb_v220_imgpr", "gtdb_imgpr", 800, scale)
    tag = "|D__BACTERIA;P__PROTEOBACTERIA;C__;O__;F__;G__;S__ESCHERICHIA COLI|"
    _write_chunks(folder / MID / "gtdb_v220_stitched", "gtdb_v220_stitched", 900, scale, tags=(tag,), join="#")
    other = "|d__Bacteria;p__Firmicutes;c__;o__;f__;g__;s__Bacillus subtilis|"
    _write_chunks(folder / MID / "imgpr", "imgpr", 1000, scale, tags=(tag, other), extra={"record": "IMGPR_plasmid"})
    _write_chunks(folder / MID / "ncbi_eukaryotic_genomes", "animalia", 1100, scale, lower_fraction=0.5, tags=(other,))
    _write_fasta_tree(folder / "fasta", scale)
    return folder


def _write_chunks(
    folder: Path,
    name: str,
    seed: int,
    scale: int,
    lower_fraction: float = 0.2,
    join: str = "",
    tags: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
) -> None:
    for split, chunks, num_rows in (("train", 2, 12 * scale), ("valid", 1, 3), ("test", 1, 3)):
        for chunk in range(1, chunks + 1):
            rows = []
            for row in range(num_rows):
                seed += 1
                text = sequence(200 + 37 * (seed % 23), seed, lower_fraction=lower_fraction, num_unknown_runs=row % 2)
                text = f"{text[:150]}{join}{text[150:]}"
                if tags:
                    # As upstream: the tag stands in front, and again inside what is long.
                    tag = tags[row % len(tags)]
                    text = f"{tag}{text[:180]}{tag}{text[180:]}" if row % 3 == 0 else tag + text
                rows.append({"text": text, **(extra or {})})
            write_rows(folder / f"data_{name}_{split}_chunk{chunk}.jsonl.gz", rows)


def _write_metagenomes(folder: Path, scale: int) -> None:
    for split, num_chunks in (("train", 3), ("valid", 1), ("test", 1)):
        for chunk in range(1, num_chunks + 1):
            # Sorted by length, longest first.
            lengths = sorted((150 + 53 * ((chunk * 31 + row * 17) % 97) for row in range(20 * scale)), reverse=True)
            texts = [sequence(length, 10_000 * chunk + row) for row, length in enumerate(lengths)]
            rows = [{"text": text} for text in (*texts, texts[0] if chunk == 1 else texts[-1])]
            write_rows(folder / BOTH / "metagenomes" / f"data_metagenomics_{split}_chunk{chunk}.jsonl.gz", rows)


def _write_fasta_tree(folder: Path, scale: int) -> None:
    genome = {f"contig_{i} of a genome": sequence(3000, 2000 + i, num_iupac=4) for i in range(3)}
    other = {f"scaffold_{i}": sequence(2500, 2100 + i, num_unknown_runs=3) for i in range(2 * scale)}
    windows = gzip.compress(as_fasta({f"window_{i}": sequence(5000, 2200 + i) for i in range(4 * scale)}))
    write_parts(folder / "eukaryotic_genic_windows" / "windows_5kb.fasta.gz", windows, 7)
    members = {"batch1/GCF_1.fna.gz": gzip.compress(as_fasta(genome)), "batch1/README.txt": b"genomes"}
    write_tar(folder / "gtdb_v220" / "v214" / "batch1.tar", members | {"batch1/GCF_2.fna": as_fasta(other)})
    write_tar(folder / "gtdb_v220" / "v220_update.tar", {"GCF_3.fna": as_fasta({"only": sequence(4000, 2300)})})
    write_tar(folder / "ncbi_eukaryotic_genomes" / "batch1.tar", {"GCA_1.fna": as_fasta(other, 80)})
    rna = sequence(700, 2400).replace("T", "U").replace("t", "u")
    fasta = {
        "metagenomes/filtered_metagenomes_pt1.fasta.gz": {f"meta_{i}": sequence(900 - i, 2500 + i) for i in range(9)},
        "mrna/combined_mRNA_rep_seq.fasta.gz": {"mrna_1": rna, "mrna_2": sequence(600, 2600)},
        "mrna_splice/combined_splice.fasta.gz": {"spliced": f"{sequence(200, 2700)}@{sequence(200, 2701)}"},
        "ncrna/ncrna.fasta.gz": {f"ncrna_{i}": sequence(120 + i, 2800 + i) for i in range(8)},
        "promoters/promoters.fasta.gz": {f"promoter_{i}": sequence(600, 2900 + i) for i in range(5)},
        "organelles/organelle_sequences.fasta.gz": {f"organelle_{i}": sequence(4000, 3000 + i) for i in range(3)},
        "plasmids_phage/imgpr.fasta.gz": {f"plasmid_{i}": sequence(2000, 3100 + i) for i in range(3)},
        "transcripts/mmseqs_results_rep_seq.fasta": {f"transcript_{i}": sequence(800, 3200 + i) for i in range(5)},
    }
    for name, records in fasta.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = as_fasta(records)
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
