"""Genomes by name: found in a folder, in a Debian package or at an address, and checked by their sequence."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config, merge
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.fasta import read_chunks, read_fasta
from hyena_blt_savanna.data.whole_files import WholeFile

logger = logging.getLogger(__name__)

GENOME_TABLE = Path(__file__).parents[2] / "configs" / "data" / "genomes.yaml"
_PATIENCE_SECONDS = 600


class GenomeError(DataError):
    """A genome that was not found, or is not the one that was asked for."""


class Place(Config):
    """Where a genome may be: a folder, a package or an address."""

    folder: str | None = None
    """Pattern of the file inside a folder that the user gave."""
    debian: str | None = None
    """Debian package."""
    member: str | None = None
    """Pattern of the file inside the package."""
    url: str | None = None
    """Address over HTTPS."""

    @model_validator(mode="after")
    def _is_one_place(self) -> Place:
        if sum(value is not None for value in (self.folder, self.debian, self.url)) != 1:
            raise ValueError("give exactly one of folder, debian and url")
        if (self.debian is None) != (self.member is None):
            raise ValueError("debian and member go together")
        if self.url is not None and not self.url.startswith("https://"):
            raise ValueError("a url must start with https://")
        return self

    def __str__(self) -> str:
        return self.url or (f"Debian package {self.debian}" if self.debian else f"folder, as {self.folder}")


class Genome(Config):
    """One entry of the table."""

    description: str
    sequence_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Digest of the letters alone: upper case, all records in file order."""
    num_records: int
    num_bases: int
    places: list[Place]
    """Tried in order."""


def load_genomes(table: Path = GENOME_TABLE) -> dict[str, Genome]:
    """The genomes of a table, by name.

    Raises:
        ConfigError: the table has mistakes.
    """
    return {name: Genome.parse(entry, f"{table}: {name}") for name, entry in merge([table]).items()}


def sequence_digest(path: Path) -> str:
    """Digest of a FASTA file's letters: upper case, records in file order, without headers and line ends.

    Raises:
        FastaError: the file can't be read.
    """
    digest = hashlib.sha256()
    for record in read_fasta(path):
        digest.update(record.sequence.tobytes().upper())
    return digest.hexdigest()


def fetch_genome(name: str, to: Path, folders: Sequence[Path] = (), table: Path = GENOME_TABLE) -> Path:
    """Brings a genome into a folder, as plain FASTA, from the first place that has it.

    Args:
        name: its name in the table.
        to: folder for NAME.fa; a file there with the right sequence is kept as it is.
        folders: folders of the user's to look into.
        table: the table.

    Returns:
        Path of NAME.fa.

    Raises:
        GenomeError: no such name, no place has the genome, or NAME.fa is something else.
        DiskFullError: the disk is full.
    """
    genomes = load_genomes(table)
    if name not in genomes:
        raise GenomeError(f"no genome named {name!r} in {table}; known: {', '.join(genomes)}")
    genome = genomes[name]
    target = to / f"{name}.fa"
    if target.exists():
        found = sequence_digest(target)
        if found != genome.sequence_sha256:
            raise GenomeError(
                f"{target} is another sequence than {name} (sha256 {found}, not {genome.sequence_sha256}): "
                "move it away or choose another folder"
            )
        logger.info("%s: already there", target)
        return target
    failures = []
    for place in genome.places:
        try:
            with _opened(place, folders) as path:
                found = sequence_digest(path)
                if found != genome.sequence_sha256:
                    raise GenomeError(f"its sequence has sha256 {found}, not {genome.sequence_sha256}")
                _copy_plain(path, target)
            logger.info("%s: from %s", target, place)
            return target
        except (DataError, OSError, subprocess.SubprocessError) as error:
            failures.append(f"  {place}: {error}")
    raise GenomeError(
        f"{name} ({genome.description}) was found nowhere:\n" + "\n".join(failures) + "\n"
        "Download it by hand from one of these places into a folder, and give that folder with --folder."
    )


@contextmanager
def _opened(place: Place, folders: Sequence[Path]) -> Iterator[Path]:
    """Lends the file that a place has; what was downloaded is gone afterwards."""
    if place.folder is not None:
        yield _only(place.folder, folders)
        return
    with tempfile.TemporaryDirectory(prefix="genome-") as name:
        temporary = Path(name)
        if place.url is not None:
            yield _download(place.url, temporary / "genome.fa")
        else:
            assert place.debian is not None
            assert place.member is not None
            yield _only(place.member, [_unpack_package(place.debian, temporary)])


def _only(pattern: str, folders: Sequence[Path]) -> Path:
    if not folders:
        raise GenomeError("no folder given")
    # An index or a partial copy may lie beside the file.
    endings = (".fa", ".fasta", ".fna", ".fa.gz", ".fasta.gz", ".fna.gz")
    found = [path for folder in folders for path in sorted(folder.glob(pattern)) if path.name.endswith(endings)]
    if not found:
        raise GenomeError(f"no file {pattern} in {', '.join(map(str, folders))}")
    return found[0]


def _unpack_package(package: str, temporary: Path) -> Path:
    """Downloads a Debian package and unpacks it beside, without installing it and without root."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise GenomeError(f"{program} is not installed")
    failed = _run(["apt-get", "download", package], temporary)
    if failed:
        # A fresh machine has no package lists, or old ones: get some of our own.
        lists, cache = temporary / "lists", temporary / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        _run(["apt-get", *own, "update"], temporary)
        failed = _run(["apt-get", *own, "download", package], temporary)
    archives = sorted(temporary.glob("*.deb"))
    if failed or not archives:
        raise GenomeError(f"apt-get can't download it: {failed}")
    unpacked = temporary / "unpacked"
    failed = _run(["dpkg-deb", "-x", str(archives[0]), str(unpacked)], temporary)
    if failed:
        raise GenomeError(f"dpkg-deb can't unpack {archives[0].name}: {failed}")
    return unpacked


def _run(command: list[str], folder: Path) -> str:
    """Runs a command; returns its last complaint, or nothing where it succeeded."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_SECONDS,
        check=False,
    )
    lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
    return lines[-1] if result.returncode else ""


def _download(url: str, path: Path) -> Path:
    try:
        with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
    except urllib.error.URLError as error:
        raise GenomeError(f"can't be downloaded: {error.reason}") from error
    return path


def _copy_plain(source: Path, target: Path) -> None:
    with WholeFile(target) as out:
        for chunk in read_chunks(source):
            out.write(chunk)
