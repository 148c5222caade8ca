"""Manifests as files: JSON with a `format_version`, written last, read by the version that wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.whole_files import write_whole


class _Versioned(Config):
    """Any manifest, as far as its version."""

    model_config = Config.model_config | {"extra": "ignore"}
    format_version: int


_Manifest = TypeVar("_Manifest", bound=Config)


def read_manifest_file(kind: type[_Manifest], path: Path, format_version: int, remedy: str) -> _Manifest:
    """A manifest from its file.

    Args:
        kind: the manifest's class.
        path: of the file.
        format_version: the one that this code reads.
        remedy: what writes such a file, for messages: "prepare the data (tools/prepare_genomes.py)".

    Raises:
        DataError: there is none, it is of another format version, or it can't be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; {remedy}, which writes it last")
    try:
        tree = json.loads(path.read_bytes())
        version = _Versioned.parse(tree, str(path)).format_version
        if version != format_version:
            raise DataError(f"{path}: format_version {version}; this code reads {format_version}: {remedy} again")
        return kind.parse(tree, str(path))
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise DataError(f"{path}: not a manifest: {error}; {remedy} again") from error


def write_manifest_file(path: Path, manifest: Config) -> None:
    """Writes a manifest, whole or not at all.

    Raises:
        DiskFullError: the disk is full.
    """
    write_whole(path, (json.dumps(manifest.to_dict(), indent=1) + "\n").encode())
