"""python bench/operations.py [MODEL.yaml MODEL.yaml]

Training operations a base of a hybrid and of a model on single bases against the window, with and without an attention
block behind their blocks. By default the two of the benchmark of quality; patches of 8 bases.
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import TypeAdapter

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.model_config import ModelConfig

MODELS = ["configs/quality/models/hyena_blt.yaml", "configs/quality/models/isotropic.yaml"]
WINDOWS = [4096, 8192, 32_768, 131_072, 1_048_576]
PATCH_BASES = 8.0


def thousands_a_base(path: str, window_bases: int, attention: bool) -> float:
    """Operations of a forward and a backward pass."""
    tree: dict[str, Any] = merge([path])["model"]
    stack = tree["global_model" if tree["kind"] == "hyena_blt" else "stack"]
    if attention:
        stack["blocks"] = [*stack["blocks"], "attention"]
    config = TypeAdapter(ModelConfig).validate_python(tree)
    return training_flops_per_base(config, window_bases, PATCH_BASES) / 1e3


def main(paths: list[str]) -> None:
    """Prints the table."""
    hybrid, single = paths or MODELS
    print("| window, bases | thousand operations a base, hybrid / single bases | times | with attention | times |")
    print("|---:|---:|---:|---:|---:|")
    for window in WINDOWS:
        cells = []
        for attention in (False, True):
            ours, theirs = (thousands_a_base(path, window, attention) for path in (hybrid, single))
            cells += [f"{ours:,.0f} / {theirs:,.0f}", f"{theirs / ours:.1f}"]
        print(f"| {window:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
