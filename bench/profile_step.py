"""python bench/profile_step.py [MODEL.yaml ...] [--bases N] [--precision fp32|bf16|auto] [--to FILE.md]

Where a training step's time goes: forward, backward and optimizer of one window (131,072 bases in patches of 8 on
average, no padding) of configs/model/hyena_blt_long.yaml with the files given merged into it, with the settings that
training has by default, on a GPU where there is one, else on a CPU by one thread. Times are torch.profiler's: of the
device that computes. Two tables: by the module that an operation was called in, or whose forward pass it
differentiates; and by operation.

Writes them to the file, or prints them.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from local_modules import random_window  # type: ignore[import-not-found]
from measuring import ROOT, commit, device_here, machine, seconds_of  # type: ignore[import-not-found]
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.model import cpu_kernels
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.training.engine import faster_precision
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.run_config import TrainingConfig

LOSS_CHUNK_BASES = TrainingConfig.model_fields["loss_chunk_bases"].default
MARK = "in "
NUM_OPERATIONS = 25


def build_step(model: nn.Module, num_bases: int, longest: int, precision: str) -> Callable[[], None]:
    """A training step of a window of random bases, as the engine does it.

    Args:
        model: a hybrid or an isotropic model.
        num_bases: of the window.
        longest: bases of a patch; 1 for models of single bases.
        precision: fp32 or bf16.
    """
    device = next(model.parameters()).device
    bases, lengths = random_window(1, num_bases, longest) if longest > 1 else random_window(1, num_bases, 16)
    lengths = lengths if longest > 1 else torch.ones_like(bases)
    bases, lengths = bases.to(device), lengths.int().to(device)
    weights = torch.ones(bases.shape, device=device)
    optimizer = OptimizerConfig().build(model)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            nats, *_ = model(bases, lengths, loss_weights=weights, loss_chunk_bases=LOSS_CHUNK_BASES)
        (nats / num_bases).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with record_function(MARK + "optimizer"):
            optimizer.step()
        optimizer.zero_grad()

    return step


def mark_modules(model: nn.Module) -> None:
    """Has each module's forward pass recorded under the name of its class."""
    for module in model.modules():
        open_marks: list[Any] = []

        def enter(module: nn.Module, _: Any, marks: list[Any] = open_marks) -> None:
            marks.append(record_function(MARK + type(module).__name__))
            marks[-1].__enter__()

        def leave(*_: Any, marks: list[Any] = open_marks) -> None:
            marks.pop().__exit__(None, None, None)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)


def module_of(event: Any) -> str | None:
    """The innermost module that an event of a forward pass was in."""
    while event is not None and not event.name.startswith(MARK):
        event = event.cpu_parent
    return None if event is None else str(event.name[len(MARK) :])


def seconds_in(event: Any, on_gpu: bool) -> float:
    """Of an event itself, the events within it left out: on the processor, or of the kernels that it starts."""
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6


def times_by_module(events: list[Any], on_gpu: bool) -> dict[str, tuple[float, float]]:
    """Seconds forward and backward of each module, the other modules that it calls left out."""
    made_in: dict[int, str] = {}
    for event in events:
        module = module_of(event)
        if module is not None and event.sequence_nr >= 0:
            made_in[event.sequence_nr] = module
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in events:
        module, direction = module_of(event), 0
        if module is None:
            node = event
            while node is not None and not node.name.startswith("autograd::engine::evaluate_function"):
                node = node.cpu_parent
            module, direction = "elsewhere" if node is None else made_in.get(node.sequence_nr, "elsewhere"), 1
        times[module][direction] += seconds_in(event, on_gpu)
    return {module: (forward, backward) for module, (forward, backward) in times.items()}


def tables(events: list[Any], on_gpu: bool) -> list[str]:
    """Both tables, the longest times first."""
    modules = times_by_module(events, on_gpu)
    total = sum(map(sum, modules.values()))
    lines = ["| module | forward, s | backward, s | share |", "|:---|---:|---:|---:|"]
    for module, (forward, backward) in sorted(modules.items(), key=lambda item: -sum(item[1])):
        if (forward + backward) / total >= 0.002:
            lines.append(f"| {module} | {forward:.2f} | {backward:.2f} | {(forward + backward) / total:.1%} |")
    operations: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for event in events:
        if not event.name.startswith(MARK):
            operations[event.name][0] += seconds_in(event, on_gpu)
            operations[event.name][1] += 1
    lines += ["", "| operation | s | share | calls |", "|:---|---:|---:|---:|"]
    for name, (seconds, calls) in sorted(operations.items(), key=lambda item: -item[1][0])[:NUM_OPERATIONS]:
        lines.append(f"| `{name}` | {seconds:.2f} | {seconds / total:.1%} | {calls:,} |")
    return lines


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[0], description=__doc__)
    parser.add_argument("files", nargs="*", default=[])
    parser.add_argument("--bases", type=int, default=131_072)
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto")
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    device = device_here()
    on_gpu = device.type == "cuda"
    if not on_gpu:
        cpu_kernels.use()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    precision = faster_precision(device) if options.precision == "auto" else options.precision
    files = [ROOT / "configs/model/hyena_blt_long.yaml", *options.files]
    config = HyenaBLTConfig.parse(merge(files)["model"])
    model = config.build().to(device).train()
    step = build_step(model, options.bases, config.max_patch_bases, precision)
    step()
    seconds = seconds_of(step, device)
    mark_modules(model)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as recorded:
        seconds_of(step, device)
    # What the device itself reports is in the events that started it.
    events = [event for event in recorded.events() if event.device_type == DeviceType.CPU]
    lines = [
        f"`python bench/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}` at commit "
        f"{commit()}, torch {torch.__version__}, {machine(device)}, one thread.",
        f"A step of {options.bases:,} bases in {precision}: {seconds:.2f} s without the profiler"
        + ("." if on_gpu else ", of processor time."),
        "",
        *tables(events, on_gpu),
    ]
    text = "\n".join(lines) + "\n"
    if options.to is None:
        sys.stdout.write(text)
    else:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        write_whole(options.to, text.encode())


if __name__ == "__main__":
    main()
