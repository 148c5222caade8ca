"""Hyena-BLT-Genome: pretraining of genomic language models on patches of varying length."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {"HyenaBLTModel": "hyena_blt_savanna.evaluation.pretrained"}
"""Public names that cost a torch import, and the modules that hold them: loaded when they are asked for."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
