"""YAML files of other programs, which read them more loosely than ours are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hyena_blt_savanna.config import ConfigError, merge
from hyena_blt_savanna.conversion.weights import ConversionError


def merge_foreign(sources: Sequence[str | Path]) -> dict[str, Any]:
    """Merges YAML files and `key=value`, the last one of a key winning, within a file too, as it does for Savanna.

    Args:
        sources: paths, and settings; keys may be spelled with hyphens or underscores.

    Returns:
        Values by keys with underscores.

    Raises:
        ConversionError: a file is missing, or is no YAML mapping.
    """
    found: dict[str, Any] = {}
    for source in sources:
        if isinstance(source, str) and "=" in source and not Path(source).is_file():
            try:
                tree = merge([source])
            except ConfigError as error:
                raise ConversionError(str(error)) from error
        else:
            tree = _read(Path(source))
        found |= {str(key).replace("-", "_"): value for key, value in tree.items()}
    return found


def check_whole_numbers(settings: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Refuses what can't be counted with.

    Args:
        settings: of `merge_foreign`.
        keys: those that hold whole numbers above 0, where they are given.
        where: the checkpoint, for messages.

    Raises:
        ConversionError: some hold something else; all are listed.
    """
    wrong = [
        f"{key}: {value!r}"
        for key in keys
        if (value := settings.get(key)) is not None and (type(value) is not int or value < 1)
    ]
    if wrong:
        raise ConversionError(f"{where}: these keys must be whole numbers above 0: {', '.join(wrong)}")


def _read(path: Path) -> dict[Any, Any]:
    try:
        tree = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConversionError(f"{path}: no such file; give YAML files and key=value ({error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise ConversionError(f"{path}: the file must hold a mapping (key: value), not {type(tree).__name__}")
    return tree
