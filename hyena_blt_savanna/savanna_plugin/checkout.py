"""Finds upstream's code, in the submodule or on the path, and makes sure that it is the real package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PINNED_COMMIT = "0d42c604f31ba42c3aa07d156948fc19f128bb57"
"""Of Zymrael/savanna: what the submodule points to, and what this room was written against."""
FOLDER = Path(__file__).resolve().parents[2] / "savanna"
"""Of the submodule, in a checkout of this repository."""
HOW_TO_GET_IT = (
    "run `git submodule update --init savanna` in the checkout of this repository (or put a checkout of "
    f"https://github.com/Zymrael/savanna at {PINNED_COMMIT[:7]} into its folder savanna/), and install "
    "requirements-savanna.txt"
)


class SavannaError(ValueError):
    """Savanna is missing or can't do what was asked; the message says what to change."""


def is_there() -> bool:
    """Whether upstream's code is in the submodule's folder, or can be imported from elsewhere."""
    return (FOLDER / "savanna" / "training.py").is_file() or _found_elsewhere()


def _found_elsewhere() -> bool:
    try:
        # The submodule's folder itself is an importable namespace without code while nothing is checked out.
        return importlib.util.find_spec("savanna.training") is not None
    except (ImportError, ValueError):
        return False


def add_to_path() -> None:
    """Lets `import savanna` find upstream's code.

    Raises:
        SavannaError: it isn't there.
    """
    if not is_there():
        raise SavannaError(f"the code of Savanna is not in {FOLDER}: {HOW_TO_GET_IT}")
    if (FOLDER / "savanna" / "training.py").is_file() and str(FOLDER) not in sys.path:
        # At the end: it also holds packages named tests and tuner. A real package wins over the empty namespace that
        # the repository's root, which may be on the path too, gives by that name.
        sys.path.append(str(FOLDER))
        empty = sys.modules.get("savanna")
        if empty is not None and getattr(empty, "__file__", None) is None:
            del sys.modules["savanna"]


def import_savanna(name: str) -> ModuleType:
    """A module of Savanna's, under its full name.

    Raises:
        SavannaError: the code isn't there, or a package that it imports is missing.
    """
    add_to_path()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SavannaError(
            f"Savanna imports {error.name}, which is not installed: install requirements-savanna.txt and, on a machine "
            "with GPUs, what its README names (transformer_engine, flash_attn)"
        ) from error
