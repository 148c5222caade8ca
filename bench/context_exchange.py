"""python bench/context_exchange.py [--widths 256 1024] [--positions 2048 ...] [--ranks 2]

hyena_mr on slices of a window: a halo from the left against an all-to-all, which swaps the sequence for channels. One
group of gloo ranks runs one operator forward and backward both ways, on the same numbers; the results are compared.
Bytes are what a rank sends in both passes, in fp32; time is processor time of the first rank, in milliseconds, the
least of several runs. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist

from hyena_blt_savanna.model.operators import HyenaConfig, HyenaMR, gated_long_convolution
from hyena_blt_savanna.parallel.mesh import Mesh, ParallelConfig
from hyena_blt_savanna.testing.ranks import run_ranks

WIDTHS = [256, 1024]
POSITIONS = [2048, 8192, 32_768]
NUM_RUNS = 5
BYTES = 4


def measure(widths: list[int], positions: list[int]) -> list[tuple[int, int, float, float]]:
    """Width, positions of the window, and milliseconds of both ways, halo first. Every rank calls."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    context = Mesh.of(ParallelConfig(context=num_ranks), rank, num_ranks).build_context()
    rows = []
    for width in widths:
        torch.manual_seed(0)
        operator = HyenaMR(width, HyenaConfig(), context)
        for length in positions:
            parts = [torch.randn(width, 1, length // num_ranks, requires_grad=True) for _ in range(3)]
            ways: list[Callable[[], Tensor]] = [
                lambda operator=operator, parts=parts: operator(*parts),  # type: ignore[misc]
                lambda operator=operator, parts=parts: gated_long_convolution(operator, operator.skip, *parts),  # type: ignore[misc]
            ]
            torch.testing.assert_close(ways[0](), ways[1](), rtol=1e-4, atol=1e-4)
            direction = torch.randn(parts[0].shape)
            times: list[list[float]] = [[], []]
            for _ in range(NUM_RUNS):
                for way, took in zip(ways, times, strict=True):
                    dist.barrier()
                    began = time.process_time()
                    way().backward(direction)
                    took.append(1e3 * (time.process_time() - began))
            rows.append((width, length, min(times[0]), min(times[1])))
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--positions", type=int, nargs="+", default=POSITIONS, help="of the whole window")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    num_ranks, halo = options.ranks, HyenaConfig().mr_taps - 1
    print(f"| width | positions on {num_ranks} ranks | halo: bytes | ms | all-to-all: bytes | ms |")
    print("|---:|---:|---:|---:|---:|---:|")
    found = run_ranks(measure, num_ranks, options.widths, options.positions, timeout_seconds=3600, from_scratch=True)
    for width, length, halo_ms, swap_ms in found[0]:
        # There and back, forward and backward, all but a rank's own part; a halo goes one way, and its gradient back.
        swapped = 4 * BYTES * width * (length // num_ranks) * (num_ranks - 1) // num_ranks
        print(
            f"| {width} | {length:,} | {2 * BYTES * width * halo:,} | {halo_ms:.0f} | {swapped:,} | {swap_ms:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
