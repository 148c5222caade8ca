"""python bench/long_context.py [MODEL.yaml ...] [key=value ...] [--lengths N ...] [--memory-gb 16] [--quick]

What one forward and backward pass of a long window costs: memory, and processor time, a base. A hybrid (by default
configs/model/hyena_blt_long.yaml) at each length on one rank and on several that share the window; the isotropic model
of the same blocks as far as it fits; and one attention block over the hybrid's patches. Attention blocks of the model
are left out of both. Activations are computed again in the backward pass, and the loss goes by chunks of bases.

Each measurement has processes of its own, with the memory settings of launch/env.sh and one thread a rank, and runs
forward and backward on a short window first. Memory is the peak of the resident set behind that, less what was resident
then: weights and their gradients are not in it. Time is processor time, which other work on the machine disturbs least;
still, only figures of one run may be compared. Windows are random bases in patches of 8 on average.

Writes FOLDER/table.md and FOLDER/long_context.json, after each measurement anew.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from local_modules import MEAN_PATCH_BASES, random_window  # type: ignore[import-not-found]
from measuring import ROOT, commit, machine  # type: ignore[import-not-found]
from torch import Tensor, nn

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.batches import Batch
from hyena_blt_savanna.data.slices import slice_batch
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.model import cpu_kernels
from hyena_blt_savanna.model.flops import BACKWARD_RATIO, count_flops
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.parameters import count_parameters
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.parallel.mesh import Mesh, ParallelConfig
from hyena_blt_savanna.testing.launch_settings import malloc_settings
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training.model_config import with_activation_checkpointing

LENGTHS = [65_536, 131_072, 262_144, 524_288, 1_048_576]
QUICK_LENGTHS = [8192, 16_384, 32_768]
MODELS = ["hybrid", "isotropic", "attention"]
LONGEST_ATTENTION_BASES = 262_144
"""Behind it, attention's time follows from its operations: it would be all that is measured."""
SHORT_BASES = 512
LOSS_CHUNK_BASES = 16_384
TIMEOUT_SECONDS = 6 * 3600.0

GOAL_GB, GOAL_SHARE_OF_TWO_RANKS, GOAL_EXPONENT, GOAL_RATIO = 16.0, 0.6, 1.15, 4.0


@dataclass(frozen=True)
class Cost:
    """What a pass took on one rank.

    Attributes:
        memory_bytes: peak of the resident set, less what was resident before.
        peak_bytes: of the process.
        seconds: of processor time, those of the system included.
        system_seconds: of these, the system's: mostly clearing of new pages.
    """

    memory_bytes: int
    peak_bytes: int
    seconds: float
    system_seconds: float


def resident_bytes(key: str) -> int:
    """VmRSS, the resident set of this process, or VmHWM, its peak."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":")]
    return 1024 * int(line.split()[1])


def cost_of(run: Any) -> Cost:
    """Runs something, and says what it took."""
    gc.collect()
    # The peak begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident_bytes("VmRSS"), os.times()
    run()
    ended, peak = os.times(), resident_bytes("VmHWM")
    system = ended.system - began.system
    return Cost(peak - before, peak, ended.user - began.user + system, system)


def pass_of_model(tree: dict[str, Any], num_bases: int) -> Cost:
    """Forward and backward of a window, or of this rank's slice of it. Every rank calls."""
    rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    context = Mesh.of(ParallelConfig(context=num_ranks), rank, num_ranks).build_context()
    kind = HyenaBLTConfig if tree["kind"] == "hyena_blt" else IsotropicConfig
    config: HyenaBLTConfig | IsotropicConfig = kind.parse(tree)
    torch.manual_seed(0)
    model = config.build(context)
    # As training does.
    cpu_kernels.use()

    def step(batch: Batch) -> None:
        nats, *_ = model(
            batch.bases,
            batch.patch_lengths,
            loss_weights=batch.loss_weights,
            loss_chunk_bases=LOSS_CHUNK_BASES,
            left_patches=batch.left_patches,
            first_positions=batch.first_positions,
        )
        nats.backward()

    def slice_of(num_bases: int) -> Batch:
        # The same window on all ranks.
        torch.manual_seed(1)
        bases, lengths = random_window(1, num_bases, 16)
        lengths = lengths if kind is HyenaBLTConfig else torch.ones_like(bases)
        whole = Batch(bases, lengths.int(), torch.ones(bases.shape), num_cut_patches=0)
        return slice_batch(whole, rank, num_ranks, config.num_left_patches) if num_ranks > 1 else whole

    step(slice_of(SHORT_BASES))
    batch = slice_of(num_bases)
    return cost_of(lambda: step(batch))


def pass_of_attention(tree: dict[str, Any], num_patches: int) -> Cost:
    """Forward and backward of one attention block, without the MLP."""
    stack = StackConfig.parse({**tree, "blocks": ["attention"]})
    mixer = stack.build().blocks[0].mixer
    assert isinstance(mixer, nn.Module)

    def step(x: Tensor) -> None:
        mixer(x).sum().backward()

    step(torch.randn(1, SHORT_BASES // MEAN_PATCH_BASES, stack.width))
    x = torch.randn(1, num_patches, stack.width, requires_grad=True)
    return cost_of(lambda: step(x))


def without_attention(config: HyenaBLTConfig) -> HyenaBLTConfig:
    """The same model of its other blocks."""
    stack = config.global_model
    blocks = [name for name in stack.blocks if name != "attention"]
    return config.model_copy(update={"global_model": stack.model_copy(update={"blocks": blocks})})


class Benchmark:
    """Measures one model after the other, and keeps what was found in a folder.

    Args:
        config: of the hybrid, without attention.
        options: of the command line.
    """

    def __init__(self, config: HyenaBLTConfig, options: argparse.Namespace) -> None:
        self.options = options
        hybrid = with_activation_checkpointing(config)
        isotropic = IsotropicConfig(stack=hybrid.global_model)
        self.trees = {"hybrid": hybrid.to_dict(), "isotropic": isotropic.to_dict()}
        self.stack = config.global_model
        self.config = config
        self.found: dict[str, Any] = {
            "command": f"python bench/{' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
            "commit": commit(),
            "torch": torch.__version__,
            "machine": machine(torch.device("cpu")),
            "num_parameters": {name: sum(count_parameters(each).values()) for name, each in
                               (("hybrid", hybrid), ("isotropic", isotropic))},
            "rows": [],
        }  # fmt: skip

    def run(self) -> None:
        """All measurements, the short windows first."""
        for num_bases in self.options.lengths:
            if "hybrid" in self.options.only:
                self._model("hybrid", num_bases, 1)
            if "isotropic" in self.options.only and self._fits("isotropic", num_bases):
                self._model("isotropic", num_bases, 1)
            if "attention" in self.options.only and num_bases <= LONGEST_ATTENTION_BASES:
                costs = run_ranks(
                    pass_of_attention,
                    1,
                    self.stack.to_dict(),
                    num_bases // MEAN_PATCH_BASES,
                    timeout_seconds=TIMEOUT_SECONDS,
                    from_scratch=True,
                )
                self._keep("attention", num_bases, costs)
        for num_ranks in self.options.context:
            for num_bases in self.options.lengths:
                self._model("hybrid", num_bases, num_ranks)

    def _model(self, name: str, num_bases: int, num_ranks: int) -> None:
        costs = run_ranks(
            pass_of_model, num_ranks, self.trees[name], num_bases, timeout_seconds=TIMEOUT_SECONDS, from_scratch=True
        )
        self._keep(name, num_bases, costs)

    def _keep(self, name: str, num_bases: int, costs: list[Cost]) -> None:
        row = {
            "model": name,
            "num_bases": num_bases,
            "num_ranks": len(costs),
            "ranks": [asdict(cost) for cost in costs],
        }
        self.found["rows"].append(row)
        largest = max(cost.memory_bytes for cost in costs)
        print(
            f"{name:<10}{num_bases:>10,} bases, {len(costs)} rank(s): {largest / 1e9:6.2f} GB a rank,"
            f" {sum(cost.seconds for cost in costs):8.1f} s",
            flush=True,
        )
        self.options.to.mkdir(parents=True, exist_ok=True)
        write_whole(self.options.to / "long_context.json", (json.dumps(self.found, indent=1) + "\n").encode())
        write_whole(self.options.to / "table.md", table(self.found, self.config).encode())

    def _fits(self, name: str, num_bases: int) -> bool:
        """Whether so many bases fit, going by the longest window so far."""
        known = _rows(self.found, name, 1)
        if not known:
            return True
        longest, row = max(known.items())
        return _memory_bytes(row) / longest * num_bases <= self.options.memory_gb * 1e9


def _rows(found: dict[str, Any], name: str, num_ranks: int) -> dict[int, dict[str, Any]]:
    rows = [row for row in found["rows"] if row["model"] == name and row["num_ranks"] == num_ranks]
    return {row["num_bases"]: row for row in rows}


def _memory_bytes(row: dict[str, Any]) -> int:
    """Of the rank that took most."""
    return max(cost["memory_bytes"] for cost in row["ranks"])


def _seconds(row: dict[str, Any]) -> float:
    """Of all ranks."""
    return sum(cost["seconds"] for cost in row["ranks"])


def exponent(seconds: dict[int, float]) -> float:
    """The slope of the line through logarithms of time against length."""
    lengths, times = zip(*sorted(seconds.items()), strict=True)
    return float(np.polyfit(np.log(lengths), np.log(times), 1)[0])


def table(found: dict[str, Any], config: HyenaBLTConfig) -> str:
    """The results as Markdown."""
    parts = found["num_parameters"]
    lines = [
        f"`{found['command']}` at commit {found['commit']}, torch {found['torch']}, {found['machine']}.",
        f"Hybrid {parts['hybrid']:,} parameters, isotropic {parts['isotropic']:,}; one forward and backward pass.",
        "",
        *_models_table(found),
        "",
        *_ranks_table(found),
        "",
        *_attention_table(found, config),
        "",
        *_goals(found),
    ]
    return "\n".join(lines) + "\n"


def _models_table(found: dict[str, Any]) -> list[str]:
    hybrid, isotropic = (_rows(found, name, 1) for name in ("hybrid", "isotropic"))
    lines = [
        "| window, bases | hybrid: GB | kB a base | s | µs a base | isotropic: GB | kB a base | s | µs a base "
        "| times less memory | times faster |",
        "|---:|" + "---:|" * 10,
    ]
    for num_bases, row in sorted(hybrid.items()):
        cells = [f"{num_bases:,}", *_figures(row)]
        other = isotropic.get(num_bases)
        if other is None:
            cells += ["-"] * 6
        else:
            cells += _figures(other)
            cells += [f"{_memory_bytes(other) / _memory_bytes(row):.1f}", f"{_seconds(other) / _seconds(row):.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _figures(row: dict[str, Any]) -> list[str]:
    memory, seconds, num_bases = _memory_bytes(row), _seconds(row), row["num_bases"]
    return [
        f"{memory / 1e9:.2f}",
        f"{memory / 1e3 / num_bases:.1f}",
        f"{seconds:.1f}",
        f"{1e6 * seconds / num_bases:.0f}",
    ]


def _ranks_table(found: dict[str, Any]) -> list[str]:
    alone = _rows(found, "hybrid", 1)
    lines = [
        "| window, bases | context ranks | GB, the rank with most | of one rank's | s, all ranks | of one rank's |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        if row["num_ranks"] > 1 and row["num_bases"] in alone:
            one = alone[row["num_bases"]]
            lines.append(
                f"| {row['num_bases']:,} | {row['num_ranks']} | {_memory_bytes(row) / 1e9:.2f} "
                f"| {_memory_bytes(row) / _memory_bytes(one):.0%} | {_seconds(row):.1f} "
                f"| {_seconds(row) / _seconds(one):.0%} |"
            )
    return lines


def _attention_table(found: dict[str, Any], config: HyenaBLTConfig) -> list[str]:
    """One attention block beside all else: measured, and by operations."""
    measured, alone = _rows(found, "attention", 1), _rows(found, "hybrid", 1)
    lines = [
        "| window, bases | patches | one attention block, s | all other blocks and local modules, s | share of "
        "operations of one attention block |",
        "|---:|---:|---:|---:|---:|",
    ]
    lengths = sorted({*alone, 2_097_152, 8_388_608} if alone else [])
    for num_bases in lengths:
        num_patches = num_bases // MEAN_PATCH_BASES
        operations = config.global_model.attention.flops(num_patches, config.global_model.width)
        attention = sum(operations.values())
        share = attention / (attention + count_flops(config, num_bases, num_patches)["total"])
        seconds = f"{_seconds(measured[num_bases]):.1f}" if num_bases in measured else "-"
        rest = f"{_seconds(alone[num_bases]):.1f}" if num_bases in alone else "-"
        lines.append(f"| {num_bases:,} | {num_patches:,} | {seconds} | {rest} | {share:.0%} |")
    return [*lines, "", *_crossings(found, config)]


def _crossings(found: dict[str, Any], config: HyenaBLTConfig) -> list[str]:
    """From which window on one attention block takes half of everything."""
    alone, measured = _rows(found, "hybrid", 1), _rows(found, "attention", 1)
    lines = []
    if measured:
        longest, row = max(measured.items())
        # Its pairs grow as the square of the window, all else as the window.
        by_time = longest * (_seconds(alone[longest]) / longest) / (_seconds(row) / longest)
        lines.append(
            f"On this processor one attention block takes as long as everything else at about {by_time:,.0f} bases, "
            f"going by {longest:,}."
        )
    num_bases = 1024
    while num_bases < 2**40:
        num_patches = num_bases // MEAN_PATCH_BASES
        attention = sum(config.global_model.attention.flops(num_patches, config.global_model.width).values())
        if attention >= count_flops(config, num_bases, num_patches)["total"]:
            break
        num_bases = math.ceil(1.05 * num_bases)
    return [*lines, f"By operations it has half of them from about {num_bases:,} bases on."]


def _goals(found: dict[str, Any]) -> list[str]:
    hybrid, isotropic = (_rows(found, name, 1) for name in ("hybrid", "isotropic"))
    lines = [f"Recomputation makes a pass {1 + 1 / (1 + BACKWARD_RATIO):.2f} times the operations of one without."]
    if len(hybrid) > 1:
        found_exponent = exponent({length: _seconds(row) for length, row in hybrid.items()})
        lines.append(f"Time grows as the window to the power of {found_exponent:.3f} (goal: at most {GOAL_EXPONENT}).")
    if len(isotropic) > 1:
        found_exponent = exponent({length: _seconds(row) for length, row in isotropic.items()})
        lines.append(f"The isotropic model's: {found_exponent:.3f}.")
    shared = sorted(set(hybrid) & set(isotropic))
    if shared:
        memory = [_memory_bytes(isotropic[length]) / _memory_bytes(hybrid[length]) for length in shared]
        times = [_seconds(isotropic[length]) / _seconds(hybrid[length]) for length in shared]
        lines.append(
            f"Against the isotropic model: {min(memory):.1f} to {max(memory):.1f} times less memory a base, "
            f"{min(times):.1f} to {max(times):.1f} times less time (goal: at least {GOAL_RATIO:g})."
        )
    if hybrid:
        longest, row = max(hybrid.items())
        peak = max(cost["peak_bytes"] for cost in row["ranks"])
        lines.append(
            f"At {longest:,} bases the process took {peak / 1e9:.1f} GB at its peak, weights and libraries included "
            f"(goal: below {GOAL_GB:g} at 1,048,576)."
        )
        two = _rows(found, "hybrid", 2).get(longest)
        if two:
            share = _memory_bytes(two) / _memory_bytes(row)
            lines.append(f"On two ranks each took {share:.0%} of it (goal: at most {GOAL_SHARE_OF_TWO_RANKS:.0%}).")
    return [f"- {line}" for line in lines]


def main() -> None:
    """Measures, and prints the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        usage=__doc__.splitlines()[0], description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", default=[], help="YAML files and key=value that are merged")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="bases of a window")
    parser.add_argument("--context", type=int, nargs="*", default=[2], help="numbers of ranks that share a window")
    parser.add_argument("--only", choices=MODELS, nargs="+", default=MODELS, help="what is measured on one rank")
    parser.add_argument("--memory-gb", type=float, default=16.0, help="most that the isotropic model may take")
    parser.add_argument("--quick", action="store_true", help="short windows, for minutes")
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "results" / "long-context")
    options = parser.parse_args()
    if options.quick:
        options.lengths = QUICK_LENGTHS
    sources = options.sources
    if not any("=" not in source for source in sources):
        sources = [str(ROOT / "configs/model/hyena_blt_long.yaml"), *sources]
    config = HyenaBLTConfig.parse(merge(sources)["model"])
    os.environ.update(malloc_settings())  # for the processes to come
    began = time.perf_counter()
    Benchmark(without_attention(config), options).run()
    print((options.to / "table.md").read_text())
    print(f"{(time.perf_counter() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
