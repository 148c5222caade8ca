"""python bench/step.py [MODEL.yaml ...] [--lengths N ...] [--models NAME ...] ...

A training step (forward, backward, clipping, AdamW) of one window: a hybrid (configs/model/hyena_blt_long.yaml with the
files given merged into it), the isotropic model of the same blocks, and a Transformer of single bases of the same width
and depth. On a GPU where there is one, else on a CPU by one thread. Windows are random bases, in patches of 8 on
average.

Each measurement has a process of its own, with the memory settings of launch/env.sh: a step of a short window first,
then one step of the window to warm up and --timed ones that are timed, of which the least counts: processor time on a
CPU, which other work disturbs least, else time. The models take turns, --turns times. Memory is the peak of one step
less what was taken before. Utilisation is operations over what a product of two large matrices in the same precision
reaches in the same run, or over the peak that --peak-tflops names. What can't be expected to fit in the time
(--seconds) or the memory (--memory-gb, the card's if left out) is left out, and the row says why.

Writes FOLDER/table.md and FOLDER/step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from long_context import cost_of  # type: ignore[import-not-found]
from measuring import ROOT, commit, device_here, machine, seconds_of  # type: ignore[import-not-found]
from profile_step import build_step  # type: ignore[import-not-found]

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.model import cpu_kernels
from hyena_blt_savanna.model.convolution import prefer_backend
from hyena_blt_savanna.model.flops import BACKWARD_RATIO
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.testing.launch_settings import malloc_settings
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training.engine import faster_precision
from hyena_blt_savanna.training.model_config import with_activation_checkpointing

LENGTHS = [8192, 32_768, 131_072, 524_288, 1_048_576]
SHORT_BASES = 512
MODELS = ["hybrid", "isotropic", "transformer"]
CPU_MEMORY_GB = 16.0
MATRIX = 2048


def operations_a_second(precision: str) -> float:
    """Of a product of two large matrices."""
    device = device_here()
    torch.set_num_threads(1)
    x = torch.randn(MATRIX, MATRIX, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * MATRIX**3 / min(seconds_of(lambda: x @ x, device) for _ in range(20))


def measure(
    tree: dict[str, Any], num_bases: int, precision: str, backend: Any, num_timed: int
) -> dict[str, float] | str:
    """Seconds and bytes of a step; or why there is none."""
    device = device_here()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind = HyenaBLTConfig if tree["kind"] == "hyena_blt" else IsotropicConfig
    config = kind.parse(tree)
    model = config.build().to(device).train()
    longest = config.max_patch_bases if isinstance(config, HyenaBLTConfig) else 1
    if device.type == "cpu":
        cpu_kernels.use()
    prefer_backend(backend, device)
    try:
        build_step(model, SHORT_BASES, longest, precision)()
        step = build_step(model, num_bases, longest, precision)
        if device.type == "cpu":
            memory = float(cost_of(step).memory_bytes)
        else:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            step()
            memory = float(torch.cuda.max_memory_allocated() - before)
        return {"seconds": min(seconds_of(step, device) for _ in range(num_timed)), "memory_bytes": memory}
    except torch.OutOfMemoryError:
        return "out of memory"


class Benchmark:
    """Measures all models, and keeps what was found.

    Args:
        config: of the hybrid.
        options: of the command line.
    """

    def __init__(self, config: HyenaBLTConfig, options: argparse.Namespace) -> None:
        self.options = options
        stack = config.global_model
        heads = max(1, stack.width // 64)
        transformer = stack.model_copy(update={"blocks": ["attention"] * len(stack.blocks), "num_heads": heads})
        models: dict[str, HyenaBLTConfig | IsotropicConfig] = {
            "hybrid": config,
            "isotropic": IsotropicConfig(stack=stack),
            "transformer": IsotropicConfig(stack=transformer),
        }
        self.models = {name: models[name] for name in options.models}
        device = device_here()
        if options.memory_gb is None:
            options.memory_gb = CPU_MEMORY_GB
            if device.type == "cuda":
                options.memory_gb = torch.cuda.get_device_properties(device).total_memory / 1e9
        self.precision = faster_precision(device) if options.precision == "auto" else options.precision
        rate = run_ranks(operations_a_second, 1, self.precision, timeout_seconds=600, from_scratch=True)[0]
        self.found: dict[str, Any] = {
            "command": f"python bench/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
            "commit": commit(),
            "torch": torch.__version__,
            "machine": machine(device),
            "precision": self.precision,
            "operations_a_second": rate,
            "peak_operations_a_second": rate if options.peak_tflops is None else 1e12 * options.peak_tflops,
            "rows": [],
        }

    def run(self) -> None:
        """All lengths, the short ones first."""
        for num_bases in self.options.lengths:
            rows = [{"model": name, "num_bases": num_bases, **self._sizes(name, num_bases)} for name in self.models]
            for _ in range(self.options.turns):
                for row in rows:
                    self._take_turn(row)
            self.found["rows"] += rows
            self.options.to.mkdir(parents=True, exist_ok=True)
            write_whole(self.options.to / "step.json", (json.dumps(self.found, indent=1) + "\n").encode())
            write_whole(self.options.to / "table.md", table(self.found).encode())

    def _sizes(self, name: str, num_bases: int) -> dict[str, Any]:
        parts = self.models[name].flops(num_bases, num_bases // 8)
        again = num_bases >= self.options.again_from
        return {"operations": (1 + BACKWARD_RATIO) * sum(parts.values()), "again": again}

    def _take_turn(self, row: dict[str, Any]) -> None:
        if "why_not" in row:
            return
        row_before = [each for each in self.found["rows"] if each["model"] == row["model"] and "seconds" in each][-1:]
        if "seconds" not in row and row_before:
            [known] = row_before
            seconds = known["seconds"] * row["operations"] / known["operations"]
            memory = known["memory_bytes"] * row["num_bases"] / known["num_bases"]
            if seconds > self.options.seconds:
                row["why_not"] = f"some {seconds:,.0f} s expected"
                return
            if memory > self.options.memory_gb * 1e9 and row["again"] == known["again"]:
                row["why_not"] = f"some {memory / 1e9:.0f} GB expected"
                return
        elif "seconds" not in row and row["num_bases"] != self.options.lengths[0]:
            row["why_not"] = "shorter windows did not fit"
            return
        config = self.models[row["model"]]
        tree = (with_activation_checkpointing(config) if row["again"] else config).to_dict()
        given = (tree, row["num_bases"], self.precision, self.options.convolution, self.options.timed)
        [found] = run_ranks(measure, 1, *given, timeout_seconds=3600, from_scratch=True)
        if isinstance(found, str):
            row["why_not"] = found
        else:
            for key, value in found.items():
                row[key] = min(value, row.get(key, value))


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"`{found['command']}` at commit {found['commit']}, torch {found['torch']}, {found['machine']}, "
        f"{found['precision']}; matrix products reach {found['operations_a_second'] / 1e9:,.0f} billion operations "
        f"a second, and utilisation is of {found['peak_operations_a_second'] / 1e9:,.0f} billion. Peak memory is "
        "without weights; times faster and less memory are the hybrid's.",
        "",
        "| window, bases | model | activations | s a step | bases a second | GB | operations a base | utilisation "
        "| times faster | times less memory |",
        "|---:|:---|:---|" + "---:|" * 7,
    ]
    hybrids = {row["num_bases"]: row for row in found["rows"] if row["model"] == "hybrid" and "seconds" in row}
    for row in found["rows"]:
        num_bases = row["num_bases"]
        head = f"| {num_bases:,} | {row['model']} | {'again' if row['again'] else 'kept'} "
        a_base = f"{row['operations'] / num_bases / 1e6:,.1f} million"
        if "seconds" not in row or "why_not" in row:
            lines.append(head + f"| {row['why_not']} | - | - | {a_base} | - | - | - |")
            continue
        seconds, memory = row["seconds"], row["memory_bytes"]
        hybrid = hybrids.get(num_bases)
        ratios = "- | -" if hybrid is None else (
            f"{seconds / hybrid['seconds']:.1f} | {memory / hybrid['memory_bytes']:.1f}"
        )  # fmt: skip
        share = row["operations"] / seconds / found["peak_operations_a_second"]
        lines.append(
            f"{head}| {seconds:.2f} | {num_bases / seconds:,.0f} | {memory / 1e9:.2f} | {a_base} | {share:.0%} "
            f"| {ratios} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[0], description=__doc__)
    parser.add_argument("files", nargs="*", default=[])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto")
    parser.add_argument("--seconds", type=float, default=120.0, help="the longest step that is measured")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=MODELS)
    parser.add_argument("--memory-gb", type=float)
    parser.add_argument("--convolution", default="auto", help="as training.convolution")
    parser.add_argument("--peak-tflops", type=float, help="of the card, dense, in the precision")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--timed", type=int, default=2, help="steps of a turn that are timed")
    parser.add_argument("--again-from", type=int, default=262_144, help="bases: activations are computed again")
    parser.add_argument("--to", type=Path, default=ROOT / "docs/results/step")
    options = parser.parse_args()
    files = [ROOT / "configs/model/hyena_blt_long.yaml", *options.files]
    os.environ.update(malloc_settings())  # for the processes to come
    Benchmark(HyenaBLTConfig.parse(merge(files)["model"]), options).run()


if __name__ == "__main__":
    main()
