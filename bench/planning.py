"""python bench/planning.py [--quick] [--keep-pages]

How far the plan of a rank's memory is from what training takes: the rise of the resident set over two steps, each row
in processes of its own, beside the bytes that `training.rank_memory` plans. Ranks without a GPU, fp32 unless said.

What the C library keeps of freed memory is no part of a plan: it is told to give back each tensor's pages. With
--keep-pages it is told what launch/env.sh says, which is faster and takes more.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.testing.launch_settings import malloc_settings
from hyena_blt_savanna.testing.measured_memory import MemoryCase, resident_bytes
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training.engine import Precision
from hyena_blt_savanna.training.model_config import with_activation_checkpointing
from hyena_blt_savanna.training.rank_memory import rank_memory
from hyena_blt_savanna.training.rehearsal import rehearse
from hyena_blt_savanna.training.state_memory import ZeroSettings

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Row:
    """A training to plan and to measure."""

    model: str
    window_bases: int
    windows: int = 1
    micro_batches: int = 1
    ranks: int = 1
    context: int = 1
    zero_stage: int = 0
    checkpointing: bool = False
    precision: Precision = "fp32"

    def case(self) -> MemoryCase:
        """What the ranks are told."""
        plain = MemoryCase(merge([f"configs/model/{self.model}.yaml"])["model"], self.window_bases)
        model = with_activation_checkpointing(plain.config(), self.checkpointing).to_dict()
        zero = {"stage": self.zero_stage}
        windows, steps = self.windows, self.micro_batches
        return MemoryCase(model, self.window_bases, windows, steps, self.context, zero, self.precision)


QUICK = [
    Row("quickstart", 16_384, windows=2),
    Row("quickstart", 16_384, micro_batches=2, checkpointing=True),
    Row("quickstart", 32_768, ranks=2, context=2, zero_stage=3),
    Row("entropy", 8192, ranks=2, zero_stage=2, checkpointing=True),
]
ROWS = [
    *QUICK,
    Row("quickstart", 65_536, windows=2, micro_batches=2, checkpointing=True),
    Row("quickstart", 262_144, checkpointing=True),
    Row("quickstart", 65_536, ranks=2, micro_batches=2, zero_stage=1),
    Row("quickstart", 131_072, ranks=2, context=2, zero_stage=2, checkpointing=True),
    Row("quickstart", 65_536, precision="bf16"),
    Row("hyena_blt_10m", 32_768),
    Row("hyena_blt_10m", 65_536, ranks=2, zero_stage=3, checkpointing=True),
    Row("entropy", 16_384),
    Row("entropy", 65_536, ranks=2, context=2, zero_stage=1, checkpointing=True),
]


def planned_bytes(row: Row) -> float:
    """Of the fuller rank."""
    case = row.case()
    zero = ZeroSettings.of({"zero_optimization": case.zero})
    return rank_memory(rehearse(case.one_pass()), zero, row.ranks, row.micro_batches > 1, is_gpu=False).total_bytes


def measured_bytes(row: Row, malloc: dict[str, str]) -> float:
    """Of the fuller rank."""
    with _environment(malloc):
        return max(run_ranks(resident_bytes, row.ranks, row.case(), timeout_seconds=3600, from_scratch=True))


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first rows only")
    parser.add_argument("--keep-pages", action="store_true", help="malloc as launch/env.sh sets it")
    given = parser.parse_args()
    names = ["model", "window, bases", "windows x micro batches", "ranks", "context", "ZeRO", "checkpointing"]
    malloc = malloc_settings() if given.keep_pages else GIVEN_BACK
    print("| " + " | ".join([*names, "planned, MB", "measured, MB", "planned / measured"]) + " |")
    print("|---|" + "---:|" * 9)
    for row in QUICK if given.quick else ROWS:
        planned = planned_bytes(row)
        measured = measured_bytes(row, malloc)
        model = row.model + (", bf16" if row.precision == "bf16" else "")
        cells = [model, f"{row.window_bases:,}", f"{row.windows} x {row.micro_batches}", row.ranks, row.context]
        cells += [row.zero_stage, "yes" if row.checkpointing else "no"]
        cells += [f"{planned / 1e6:,.0f}", f"{measured / 1e6:,.0f}", f"{planned / measured:.2f}"]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
