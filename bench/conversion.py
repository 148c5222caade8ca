"""python bench/conversion.py [--gigabytes 3] [--folder FOLDER]

Peak memory and time of conversions of made-up weights: native to Savanna to native to Vortex, each in a process of its
own, with --no-check. The goal is three times the largest tensor and 1 GB.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hyena_blt_savanna.conversion.convert import Conversion, convert
from hyena_blt_savanna.conversion.weights import state_shapes
from hyena_blt_savanna.evaluation.native_checkpoint import save_pretrained
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor
from hyena_blt_savanna.model.isotropic import IsotropicConfig

WIDTH = 4096
BLOCKS = ["hyena_se", "hyena_mr", "hyena_li", "attention"]
STEPS = (("native", "savanna"), ("savanna", "native"), ("native", "vortex"), ("vortex", "native"))


def main() -> int:
    """Makes weights, converts them, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of weights, in bfloat16")
    parser.add_argument("--folder", type=Path, help="for the files, which are removed; default: the system's")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        largest_bytes = make(folder / "0_native", given.gigabytes)
        goal_bytes = 3 * largest_bytes + 1_000_000_000
        print(f"largest tensor {largest_bytes / 1e9:.3f} GB, goal {goal_bytes / 1e9:.2f} GB")
        print("| from | to | weights, GB | peak memory, GB | seconds |\n|---|---|---|---|---|")
        source = folder / "0_native"
        for number, (source_format, target_format) in enumerate(STEPS, 1):
            target = folder / f"{number}_{target_format}"
            asked = Conversion(source, target, source_format, target_format, check=False)
            done = in_process(measured, asked)
            print(
                f"| {source_format} | {target_format} | {done['num_bytes'] / 1e9:.2f} | {done['peak_bytes'] / 1e9:.2f} "
                f"| {done['seconds']:.0f} |",
                flush=True,
            )
            source = target
    finally:
        shutil.rmtree(folder)
    return 0


def make(folder: Path, gigabytes: float) -> int:
    """Writes an isotropic model of Evo 2 7B's width, as deep as it takes.

    Args:
        folder: native checkpoint.
        gigabytes: of bfloat16 weights, about.

    Returns:
        Bytes of its largest tensor.
    """
    block_bytes = 2 * (4 + 8) * WIDTH**2
    blocks = (BLOCKS * 100)[: max(4, round(gigabytes * 1e9 / block_bytes))]
    hyena = {"mr_groups": 256, "se_groups": 256, "interleaved_projection": True}
    config = IsotropicConfig.parse({"stack": {
        "width": WIDTH, "num_heads": 32, "blocks": blocks, "hyena": hyena,
        "mlp": {"round_up_to": 128, "activation": "gelu_until_long"}, "norm": {"epsilon_inside_root": False},
    }})  # fmt: skip
    weights = {
        name: LazyTensor(shape, torch.bfloat16, lambda shape=shape: torch.randn(shape).mul_(0.02).bfloat16())  # type: ignore[misc]
        for name, shape in state_shapes(config).items()
    }
    save_pretrained(folder, weights, config, None, window_bases=8192)
    return max(tensor.num_bytes for tensor in weights.values())


def in_process(function: Any, *arguments: Any) -> Any:
    """Calls a function in a fresh process: the system knows a process's peak of memory only from its start."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def measured(asked: Conversion) -> dict[str, Any]:
    """Converts, and says what it took."""
    logging.basicConfig(level=logging.WARNING)
    start = time.perf_counter()
    result = convert(asked)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**result, "peak_bytes": peak_bytes, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    sys.exit(main())
