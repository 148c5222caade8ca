"""python bench/linear.py [MODEL.yaml] [--positions N] [--rounds 5] [--to FOLDER]

The products of a model's blocks (configs/model/hyena_blt_7b.yaml if left out) in bf16 and in FP8, by torch and, where
it is installed, by TransformerEngine: forward and backward of each layer of a block over so many positions, by turns in
one process, the least of several rounds, in time on a GPU and processor time on a CPU. A CPU has no products in FP8:
what is timed there is the stand-in that tests run.

Writes FOLDER/linear.md, or prints it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from measuring import ROOT, commit, device_here, machine, seconds_of  # type: ignore[import-not-found]
from torch import nn

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.model.fp8 import Fp8Recipe, choose_backend, use_fp8
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.kernels import KernelError
from hyena_blt_savanna.model.stack import Stack, StackConfig

PLAIN = "bf16"
WAYS: dict[str, Fp8Recipe | None] = {
    PLAIN: None,
    "torch, current": Fp8Recipe(backend="torch", recipe="current", bf16_blocks=0),
    "torch, delayed": Fp8Recipe(backend="torch", recipe="delayed", bf16_blocks=0),
    "TransformerEngine, current": Fp8Recipe(backend="transformer_engine", recipe="current", bf16_blocks=0),
    "TransformerEngine, delayed": Fp8Recipe(backend="transformer_engine", recipe="delayed", bf16_blocks=0),
    "TransformerEngine, block": Fp8Recipe(backend="transformer_engine", recipe="block", bf16_blocks=0),
}
LAYERS = {"mixer.in_projection": 1, "mixer.out_projection": 1, "mlp.gate": 2, "mlp.down": 1}
"""And how often a block has one of such sides."""


def passes(
    stack: Stack, recipe: Fp8Recipe | None, num_positions: int, device: torch.device
) -> Iterator[Callable[[], None]]:
    """A pass forward and backward of each layer of a block."""
    layers = None if recipe is None else use_fp8(stack, recipe, device)
    for name in LAYERS:
        layer = stack.blocks[0].get_submodule(name)
        num_inputs = layer.get_parameter("weight").shape[1]
        shape = (num_inputs, 1, num_positions) if name == "mixer.out_projection" else (1, num_positions, num_inputs)
        x = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        with torch.autocast(device.type, torch.bfloat16):
            dy = torch.randn_like(layer(x))

        def run(layer: nn.Module = layer, x: torch.Tensor = x, dy: torch.Tensor = dy) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                y = layer(x)
            y.backward(dy)
            if layers is not None:
                layers.end_step(lambda largest: largest)

        yield run


def measure(config: StackConfig, num_positions: int, num_rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each layer, by way."""
    runs: dict[str, list[Callable[[], None]]] = {}
    for way, recipe in WAYS.items():
        try:
            if recipe is not None:
                choose_backend(recipe, device)
        except KernelError as error:
            print(f"{way}: {error}", file=sys.stderr)
            continue
        with device:
            stack = config.model_copy(update={"blocks": config.blocks[:1]}).build()
        runs[way] = list(passes(stack, recipe, num_positions, device))
    least = {way: [float("inf")] * len(LAYERS) for way in runs}
    for _ in range(num_rounds):
        for index in range(len(LAYERS)):
            for way, each in runs.items():
                least[way][index] = min(least[way][index], seconds_of(each[index], device))
    return least


def table(least: dict[str, list[float]], config: StackConfig, num_positions: int, device: torch.device) -> str:
    """The page."""
    width, hidden = config.width, config.mlp.hidden_width(config.width)
    sides = {"mixer.in_projection": (3 * width, width), "mixer.out_projection": (width, width)}
    sides |= {"mlp.gate": (hidden, width), "mlp.down": (width, hidden)}
    operations = [6 * num_positions * rows * columns for rows, columns in (sides[name] for name in LAYERS)]
    lines = [
        f"The layers of a block of {width} channels over {num_positions:,} positions, forward and backward: ms, and",
        f"billion operations a second. {machine(device)}, torch {torch.__version__}, commit {commit()}.",
        "",
        "| way | "
        + " | ".join(f"{name} {rows} x {columns}" for name, (rows, columns) in sides.items())
        + " | a block | against bf16 |",
        "|---|" + "---|" * (len(LAYERS) + 2),
    ]
    totals = {
        way: sum(count * each for count, each in zip(LAYERS.values(), seconds, strict=True))
        for way, seconds in least.items()
    }
    for way, seconds in least.items():
        cells = [
            f"{1e3 * each:.2f}, {count / each / 1e9:,.0f}" for each, count in zip(seconds, operations, strict=True)
        ]
        lines.append(
            f"| {way} | "
            + " | ".join(cells)
            + f" | {1e3 * totals[way]:.2f} | {totals[PLAIN] / totals[way]:.2f} times |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("model", nargs="?", type=Path, default=ROOT / "configs/model/hyena_blt_7b.yaml")
    parser.add_argument("--positions", type=int, default=16_384, help="patches of a micro batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--to", type=Path, help="folder of linear.md")
    options = parser.parse_args()
    device, config = device_here(), HyenaBLTConfig.parse(merge([options.model])["model"]).global_model
    page = table(measure(config, options.positions, options.rounds, device), config, options.positions, device)
    if options.to is None:
        sys.stdout.write(page)
        return
    options.to.mkdir(parents=True, exist_ok=True)
    write_whole(options.to / "linear.md", page.encode())


if __name__ == "__main__":
    main()
