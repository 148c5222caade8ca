"""Folders that are whole or not there, and that notice a changed file: a manifest with checksums is written last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyena_blt_savanna.data.whole_files import PARTIAL_SUFFIX, write_whole

MANIFEST = "manifest.json"
_ASIDE_SUFFIX = ".aside"


class SealError(ValueError):
    """A folder that is not whole, or not as it was written; the message names the folder or the file."""


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into; it gets its name when the block ends well, and is removed otherwise.

    Args:
        folder: the name; a folder that has it already is replaced.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL_SUFFIX}")
    aside = folder.with_name(f".{folder.name}{_ASIDE_SUFFIX}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def copy_files(source: Path, target: Path) -> None:
    """Copies a folder without its permissions: one that only reads must not become one that can't be removed.

    Args:
        source: folder of files at any depth.
        target: is made.
    """
    target.mkdir(parents=True)
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Writes MANIFEST: what is said about the folder, and size and SHA-256 of each file in it.

    Args:
        folder: all its files are written.
        about: further entries of the manifest.
    """
    write_seal(folder, about, {name: describe_file(folder / name) for name in list_files(folder)})


def write_seal(folder: Path, about: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Writes MANIFEST from descriptions that were made elsewhere, such as on other ranks.

    Args:
        folder: all its files are written.
        about: further entries of the manifest.
        files: what `describe_file` said of each.
    """
    manifest = {**about, "files": dict(sorted(files.items()))}
    write_whole(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def read_seal(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, without a look at the files.

    Raises:
        SealError: there is none, or it can't be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        dict(manifest["files"])
    except FileNotFoundError:
        raise SealError(f"{folder} has no {MANIFEST}: it was not finished, or is no checkpoint") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise SealError(f"{path} is broken ({error!r}): copy the folder again") from error
    return manifest


def verify(folder: Path, without: str | None = None) -> None:
    """Compares each file with the manifest: sizes first, then checksums.

    Args:
        folder: what was sealed.
        without: a folder in it that is not read, so that it may be missing.

    Raises:
        SealError: there is no manifest, or a file is missing or has changed.
    """
    files = {
        name: entry
        for name, entry in read_seal(folder)["files"].items()
        if without is None or not name.startswith(f"{without}/")
    }
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise SealError(f"{folder} lacks {', '.join(missing)}, which its {MANIFEST} lists: copy the folder again")
    for name, entry in files.items():
        num_bytes = (folder / name).stat().st_size
        if num_bytes != entry["bytes"]:
            raise SealError(
                f"{folder / name} has {num_bytes:,} bytes instead of {entry['bytes']:,}: copy the folder again"
            )
    for name, entry in files.items():
        if _sha256(folder / name) != entry["sha256"]:
            raise SealError(f"{folder / name} has changed: its checksum is not that of {MANIFEST}; copy it again")


def list_files(folder: Path) -> list[str]:
    """All files at any depth, as paths below the folder, sorted; without the manifest."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is on the disk when this returns."""
    with path.open("rb+") as file:
        # The manifest must not reach the disk before what it vouches for.
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
