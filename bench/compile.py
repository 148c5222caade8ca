"""python bench/compile.py [MODEL.yaml ...] [--positions N] [--bases N] [--precision fp32|bf16|auto] [--to FOLDER]

What torch.compile makes of a hybrid (configs/model/hyena_blt_long.yaml with the files given merged into it): for each
kind of block of the global model, forward and backward over that many positions, compiled and as training runs it, by
turns in one process, in seconds of processor time on a CPU and of time on a GPU, the least of several rounds. On a CPU
training runs its own kernels (model/cpu_kernels.py), and what is compiled are the operations that they stand for. Then
the graph breaks of the whole model's forward pass over a window of so many bases: where, why, and into how many graphs.

Writes FOLDER/compile.md, or prints it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from local_modules import random_window  # type: ignore[import-not-found]
from measuring import ROOT, commit, device_here, machine, seconds_of  # type: ignore[import-not-found]
from torch import Tensor, nn

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.model import cpu_kernels
from hyena_blt_savanna.model.fused import without_kernels
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.training.engine import faster_precision

NUM_ROUNDS = 4


def forward_and_backward(run: Callable[[Tensor], Tensor], x: Tensor, precision: str) -> None:
    """One pass each way."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        y = run(x)
    y.float().sum().backward()


def compiled_row(name: str, block: nn.Module, x: Tensor, precision: str) -> str:
    """A row of the table: a block as it is, and compiled."""
    torch._dynamo.reset()
    compiled: Any = torch.compile(block)

    def as_compiled() -> None:
        with without_kernels():
            forward_and_backward(compiled, x, precision)

    began = time.perf_counter()
    try:
        as_compiled()
    # Whatever a compiler raises.
    except Exception as error:
        return f"| {name} | - | - | - | {type(error).__name__}: {str(error).splitlines()[0]} |"
    compiling = time.perf_counter() - began
    with without_kernels():
        explained = torch._dynamo.explain(block)(x)
    seconds = {True: float("inf"), False: float("inf")}
    for _ in range(NUM_ROUNDS):
        seconds[False] = min(seconds[False], seconds_of(lambda: forward_and_backward(block, x, precision), x.device))
        seconds[True] = min(seconds[True], seconds_of(as_compiled, x.device))
    return (
        f"| {name} | {1e3 * seconds[False]:.1f} | {1e3 * seconds[True]:.1f} | {seconds[False] / seconds[True]:.2f} "
        f"| {explained.graph_break_count} | {compiling:.0f} |"
    )


def breaks_of(model: nn.Module, num_bases: int, longest: int) -> list[str]:
    """Why the forward pass of a whole model is more than one graph."""
    device = next(model.parameters()).device
    bases, lengths = random_window(1, num_bases, longest)
    torch._dynamo.reset()
    with without_kernels():
        explained = torch._dynamo.explain(model)(bases.to(device), lengths.int().to(device))
    places: Counter[tuple[str, str]] = Counter()
    for each in explained.break_reasons:
        frames = [frame for frame in each.user_stack if "hyena_blt_savanna" in frame.filename]
        frame = frames[-1] if frames else each.user_stack[-1]
        file = Path(frame.filename)
        file = file.relative_to(ROOT) if file.is_relative_to(ROOT) else Path(file.name)
        reason = each.reason.splitlines()[0].replace("|", "/")
        places[f"`{file}`, {frame.name}: `{str(frame.line).replace('|', '/')}`", reason] += 1
    lines = [
        f"The whole model: {explained.graph_count} graphs, {explained.graph_break_count} breaks.",
        "",
        "| where | why | times |",
        "|:---|:---|---:|",
    ]
    return lines + [f"| {where} | {why} | {count} |" for (where, why), count in places.most_common()]


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[0], description=__doc__)
    parser.add_argument("files", nargs="*", default=[])
    parser.add_argument("--positions", type=int, default=16_384)
    parser.add_argument("--bases", type=int, default=4096, help="of the window whose graph breaks are listed")
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto")
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    device = device_here()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    precision = faster_precision(device) if options.precision == "auto" else options.precision
    config = HyenaBLTConfig.parse(merge([ROOT / "configs/model/hyena_blt_long.yaml", *options.files])["model"])
    model = config.build().to(device).train()
    if device.type == "cpu":
        cpu_kernels.use()
    lines = [
        f"`python bench/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}` at commit "
        f"{commit()}, torch {torch.__version__}, {machine(device)}, one thread, {precision}.",
        "",
        f"A block of width {config.global_model.width}, {options.positions:,} positions, forward and backward:",
        "",
        "| block | as training runs it, ms | compiled, ms | times faster | graph breaks | compiling, s |",
        "|:---|" + "---:|" * 5,
    ]
    x = torch.randn(1, options.positions, config.global_model.width, device=device, requires_grad=True)
    first_of = {str(block.name): block for block in reversed(list(model.global_model.blocks))}
    lines += [compiled_row(name, block, x, precision) for name, block in first_of.items()]
    lines += ["", *breaks_of(model, options.bases, config.max_patch_bases)]
    text = "\n".join(lines) + "\n"
    if options.to is None:
        sys.stdout.write(text)
    else:
        options.to.mkdir(parents=True, exist_ok=True)
        write_whole(options.to / "compile.md", text.encode())


if __name__ == "__main__":
    main()
