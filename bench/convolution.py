"""python bench/convolution.py [--threads N]: what a causal depthwise convolution costs, forward and backward.

The rule in `model/convolution.py` (`LONGEST_SHIFTED`) is read off this table. Times are CPU time over all threads,
the least of several runs, in nanoseconds a value of x, so that a busy machine disturbs them little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model.convolution import fft_convolution, shifted_convolution

# D, G, B, L
SHAPES = [(192, 192, 4, 512), (192, 16, 4, 512), (192, 192, 1, 8192), (768, 768, 1, 1024)]
NUM_TAPS = [3, 7, 16, 24, 128]


def torch_conv1d(x: Tensor, taps: Tensor) -> Tensor:
    """torch's own depthwise convolution."""
    weight = taps.repeat_interleave(x.shape[0] // taps.shape[0], 0).flip(1)[:, None]
    padded = functional.pad(x, (taps.shape[1] - 1, 0)).transpose(0, 1)
    return functional.conv1d(padded, weight, groups=x.shape[0]).transpose(0, 1)


def toeplitz(x: Tensor, taps: Tensor, chunk: int = 32) -> Tensor:
    """Windows of the sequence times one banded matrix a filter."""
    channels, batch, length = x.shape
    groups, num_taps = taps.shape
    reach = chunk + num_taps - 1
    windows = functional.pad(x, (num_taps - 1, -length % chunk)).unfold(-1, reach, chunk).reshape(groups, -1, reach)
    rows = functional.pad(taps.flip(1)[:, None].expand(groups, chunk, num_taps), (0, reach + 1 - num_taps))
    band = rows.flatten(1)[:, : chunk * reach].view(groups, chunk, reach)
    return torch.bmm(windows, band.transpose(1, 2)).view(channels, batch, -1)[..., :length]


ALGORITHMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shifted": shifted_convolution,
    "fft": fft_convolution,
    "conv1d": torch_conv1d,
    "toeplitz": toeplitz,
}


def measure(convolve: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, int, int, int], num_taps: int) -> float:
    """Nanoseconds of CPU time a value, forward and backward."""
    channels, groups, batch, length = shape
    x = torch.randn(channels, batch, length, requires_grad=True)
    taps = torch.randn(groups, num_taps, requires_grad=True)
    weight = torch.randn(channels, batch, length)
    times = []
    for _ in range(7):
        start = time.process_time()
        torch.autograd.grad(convolve(x, taps), (x, taps), weight)
        times.append(time.process_time() - start)
    return 1e9 * min(times) / x.numel()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    print(f"{'K':>4} {'D':>4} {'G':>4} {'B':>3} {'L':>5}" + "".join(f"{name:>10}" for name in ALGORITHMS))
    for num_taps in NUM_TAPS:
        for shape in SHAPES:
            costs = [measure(convolve, shape, num_taps) for convolve in ALGORITHMS.values()]
            channels, groups, batch, length = shape
            row = f"{num_taps:>4} {channels:>4} {groups:>4} {batch:>3} {length:>5}"
            print(row + "".join(f"{cost:>10.1f}" for cost in costs), flush=True)


if __name__ == "__main__":
    main()
