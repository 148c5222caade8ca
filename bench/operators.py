"""source launch/env.sh; python bench/operators.py [--taps K ...] [--device cuda] [--dtype bf16] [--to FOLDER]

What a causal depthwise convolution costs by each backend: forward, backward, and memory, over the length of sequences
(512 to 1,048,576), the number of channels, and the number of taps (`L`: as long as the sequence). Times are processor
time over all threads on a CPU and the device's own on a GPU, the least of several rounds in which backends take turns,
in nanoseconds a value of x. Memory is the peak of the tensors alive in a forward and backward pass, besides x, the taps
and the gradient that comes in, in bytes a value of x.

The plain reference is what one would write down: torch's conv1d up to 32 taps, and beyond, one Fourier transform of
twice the length, left to autograd. The floor of a convolution is the time for reading x and the gradient and writing
y and the gradient of x at the bandwidth of a copy, or that for its operations, counted in the cheaper of the two ways,
at the rate of a matrix product, whichever is longer; bandwidth and rate are measured in the same run.

`FOLDER` gets table.md and operators.json. --taps measures a part, and keeps the other rows of an earlier run there.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT  # type: ignore[import-not-found]
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.model.convolution import BACKENDS, BackendName, fastest_backend, why_unusable
from hyena_blt_savanna.model.flops import BACKWARD_RATIO, fourier_convolution, shifted_convolution
from hyena_blt_savanna.training.live_memory import LiveMemory

TAPS = ["3", "7", "16", "32", "64", "128", "512", "L"]
LENGTHS = [512, 2048, 8192, 32_768, 131_072, 1_048_576]
WIDTHS = [16, 256]
LARGEST_VALUES = {"cpu": 2**24, "cuda": 2**28}
LARGE_VALUES = 2**22
"""From so many on, three rounds are enough: other work on the machine disturbs long times less."""
LEAST_VALUES = 2**17
"""Smaller ones are measured as several sequences at a time."""
LONGEST_BY_TAPS: dict[BackendName, int] = {"shifted": 32, "conv1d": 32, "blocked": 128}
"""Beyond, they are many times slower than the others on a CPU, and would take most of the time of this benchmark."""
NUM_ROUNDS = 5
GOAL_RATIO = 1.3
BYTES_OF_A_PASS = 5
"""Values that are read or written for each one of x: x and y; x, the gradient, and the gradient of x."""

Convolve = Callable[[Tensor, Tensor], Tensor]


def plain_convolution(x: Tensor, taps: Tensor) -> Tensor:
    """What one would write down, for x [D, B, L] and taps [D, K]."""
    length, num_taps = x.shape[-1], taps.shape[1]
    if num_taps <= LONGEST_BY_TAPS["conv1d"]:
        padded = functional.pad(x.transpose(0, 1), (num_taps - 1, 0))
        return functional.conv1d(padded, taps.flip(1)[:, None].to(x.dtype), groups=len(x)).transpose(0, 1)
    spectrum = torch.fft.rfft(x.float(), n=2 * length) * torch.fft.rfft(taps, n=2 * length)[:, None]
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length].to(x.dtype)


class Clock:
    """Seconds of work on a device."""

    def __init__(self, device: torch.device) -> None:
        self.is_cpu = device.type == "cpu"

    def now(self) -> float:
        """Processor time on a CPU; on a GPU the wall's, when all work is done."""
        if self.is_cpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def least(self, run: Callable[[], object], num_rounds: int = NUM_ROUNDS) -> float:
        """Of several rounds."""
        seconds = []
        for _ in range(num_rounds):
            start = self.now()
            run()
            seconds.append(self.now() - start)
        return min(seconds)


def measure_floors(device: torch.device, dtype: torch.dtype, clock: Clock) -> dict[str, float]:
    """Bytes a second of a copy that fits into no cache, and operations a second of a matrix product."""
    values = torch.randn(2**26, device=device)
    copy = torch.empty_like(values)
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    bytes_per_second = 2 * values.nbytes / clock.least(lambda: copy.copy_(values))
    return {"bytes_per_second": bytes_per_second, "flops": 2 * size**3 / clock.least(lambda: matrix @ matrix)}


def floor_nanoseconds(floors: dict[str, float], length: int, num_taps: int, value_bytes: int) -> float:
    """Of a forward and a backward pass, a value of x."""
    fewest = min(shifted_convolution(length, num_taps, 1), fourier_convolution(length, num_taps, 1, 0)) / length
    seconds = (
        BYTES_OF_A_PASS * value_bytes / floors["bytes_per_second"],
        (1 + BACKWARD_RATIO) * fewest / floors["flops"],
    )
    return 1e9 * max(seconds)


def candidates(x: Tensor, taps: Tensor) -> dict[str, Convolve]:
    """Backends that take such shapes and are worth the time, the plain reference first."""
    found: dict[str, Convolve] = {"plain": plain_convolution}
    chosen = fastest_backend(x, taps)
    for name, backend in BACKENDS.items():
        is_worth_it = taps.shape[1] <= LONGEST_BY_TAPS.get(name, math.inf) or name == chosen
        is_usable = backend.kernel is None or why_unusable(name, x.device) is None
        if is_worth_it and is_usable and backend.fits(x, taps):
            found[name] = backend.convolve
    # A filter as long as the sequence leaves one chunk.
    if 2 * taps.shape[1] > x.shape[-1]:
        del found["overlap_add"]
    return found


def peak_bytes(run: Callable[[], object], device: torch.device) -> float:
    """Of the tensors that are alive in a pass, besides those that were before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return float(torch.cuda.max_memory_allocated() - before)
    with LiveMemory(rehearsal=False) as memory:
        run()
    return float(sum(memory.peak.values()))


def measure(
    num_taps: int, length: int, width: int, device: torch.device, dtype: torch.dtype, floors: dict[str, float]
) -> dict[str, Any]:
    """One row: all backends on x [width, B, length], one filter a channel."""
    clock = Clock(device)
    batch = max(1, LEAST_VALUES // (width * length))
    x = torch.randn(width, batch, length, device=device, dtype=dtype).requires_grad_()
    taps = torch.randn(width, num_taps, device=device).requires_grad_()
    direction = torch.randn_like(x)
    forward: dict[str, list[float]] = {}
    backward: dict[str, list[float]] = {}
    memory = {}
    found = candidates(x, taps)
    for name, convolve in found.items():
        run = lambda convolve=convolve: torch.autograd.grad(convolve(x, taps), (x, taps), direction)  # noqa: E731
        memory[name] = peak_bytes(run, device) / x.numel()
        forward[name], backward[name] = [], []
    for _ in range(NUM_ROUNDS if x.numel() < LARGE_VALUES else 3):
        for name, convolve in found.items():
            start = clock.now()
            y = convolve(x, taps)
            middle = clock.now()
            torch.autograd.grad(y, (x, taps), direction)
            forward[name].append(middle - start)
            backward[name].append(clock.now() - middle)
    scale = 1e9 / x.numel()
    return {
        "taps": num_taps,
        "length": length,
        "width": width,
        "batch": batch,
        "default": fastest_backend(x, taps),
        "floor_ns": floor_nanoseconds(floors, length, num_taps, x.element_size()),
        "backends": {
            name: {
                "forward_ns": scale * min(forward[name]),
                "backward_ns": scale * min(backward[name]),
                "memory_bytes": memory[name],
            }
            for name in found
        },
    }


def total(row: dict[str, Any], name: str) -> float:
    """Nanoseconds of both passes."""
    cost = row["backends"][name]
    return float(cost["forward_ns"] + cost["backward_ns"])


def default_over_best(row: dict[str, Any]) -> float:
    """The default's time over that of the best backend."""
    return total(row, row["default"]) / min(total(row, name) for name in row["backends"])


def lines_of(found: dict[str, Any]) -> list[str]:
    """The table as Markdown."""
    machine, rows = found["machine"], found["rows"]
    worst = max(rows, key=default_over_best)
    lines = [
        "# Causal convolutions by backend",
        "",
        f"`source launch/env.sh; python bench/operators.py`; {machine['device']}, {machine['num_threads']} thread(s), "
        f"torch {machine['torch']}, {machine['dtype']}. A copy moves "
        f"{found['floors']['bytes_per_second'] / 1e9:.1f} GB/s, a matrix product does "
        f"{found['floors']['flops'] / 1e9:.0f} GFLOP/s.",
        "",
        f"The default takes at most {default_over_best(worst):.2f} times as long as the best backend at any size here "
        f"({worst['taps']} taps, {worst['length']:,} positions, {worst['width']} channels); the goal is {GOAL_RATIO}.",
        "",
        "Cells: forward + backward in nanoseconds a value of x; peak of tensors in bytes a value. Bold is the default. "
        "The last columns: the default's time over the best backend's, the plain reference's over the default's, the "
        "default's over the floor.",
        "",
    ]
    names = ["plain", *(name for name in BACKENDS if any(name in row["backends"] for row in rows))]
    lines += [
        f"| taps | positions | channels | {' | '.join(names)} | / best | plain / | / floor |",
        f"|---:|---:|---:|{'---|' * len(names)}---:|---:|---:|",
    ]
    for row in rows:
        cells = []
        for name in names:
            cost = row["backends"].get(name)
            cell = ""
            if cost:
                cell = f"{cost['forward_ns']:.1f} + {cost['backward_ns']:.1f}; {cost['memory_bytes']:.0f}"
            cells.append(f"**{cell}**" if name == row["default"] else cell)
        default = total(row, row["default"])
        ratios = f"{default_over_best(row):.2f} | {total(row, 'plain') / default:.1f} | {default / row['floor_ns']:.1f}"
        shape = f"{row['taps']:,} | {row['length']:,} | {row['width']} x {row['batch']}"
        lines.append(f"| {shape} | {' | '.join(cells)} | {ratios} |")
    missing = [f"- {name}: {reason}" for name, reason in found["missing"].items()]
    return [*lines, "", "Not measured here:", "", *missing] if missing else lines


def write(folder: Path, found: dict[str, Any]) -> None:
    """What was found so far."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "operators.json", (json.dumps(found, indent=1) + "\n").encode())
    write_whole(folder / "table.md", ("\n".join(lines_of(found)) + "\n").encode())


def main() -> None:
    """Measures, and writes after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--taps", nargs="+", default=TAPS, choices=TAPS)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--to", type=Path, default=ROOT / "docs/results/operators")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    dtype = torch.float32 if options.dtype == "fp32" else torch.bfloat16
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    path = options.to / "operators.json"
    machine = {
        "device": name,
        "num_threads": options.threads,
        "torch": torch.__version__,
        "dtype": options.dtype,
    }
    rows: dict[tuple[int, int, int], dict[str, Any]] = {}
    if path.exists():
        before = json.loads(path.read_text())
        if before["machine"] == machine:
            rows = {(row["taps"], row["length"], row["width"]): row for row in before["rows"]}
    floors = measure_floors(device, dtype, Clock(device))
    reasons = {name: why_unusable(name, device) for name in BACKENDS if BACKENDS[name].kernel is not None}
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    for text in options.taps:
        for length in options.lengths:
            num_taps = length if text == "L" else int(text)
            for width in WIDTHS:
                if num_taps > length or width * length > LARGEST_VALUES[device.type]:
                    continue
                row = measure(num_taps, length, width, device, dtype, floors)
                rows[num_taps, length, width] = row
                in_order = [rows[key] for key in sorted(rows)]
                write(options.to, {"machine": machine, "floors": floors, "missing": missing, "rows": in_order})
                print(
                    f"{num_taps:>9,} taps, {length:>9,} positions, {width:>3} channels: default {row['default']} "
                    f"{default_over_best(row):.2f} x best, "
                    + ", ".join(f"{name} {total(row, name):.1f}" for name in row["backends"]),
                    flush=True,
                )


if __name__ == "__main__":
    main()
