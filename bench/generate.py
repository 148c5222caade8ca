"""python bench/generate.py FASTA [MODEL.yaml ...] [--patcher FOLDER] [--prompts 128 1024 ...] ...

Bases a second that are drawn behind prompts of several lengths: the hybrid of each file (by default
configs/model/hyena_blt_long.yaml and quickstart.yaml) and the isotropic model of the same blocks, both with fresh
weights, in turns. Prompts are the first bases of the FASTA file's first record. Boundaries are found by the patcher
that is given, or by counts of order 8 of a million bases of the record, with patches of 8 bases on average.

A prompt is read once, for eight rows; eight rows are drawn side by side, then one of them alone. Reading and drawing
are timed apart: processor time on a CPU, by one thread, else time; of two turns the better counts, but a prompt that
takes a minute is read once. Memory is what is remembered of one row behind the prompt. Times more bases are the
hybrid's.

Writes FOLDER/table.md and FOLDER/generate.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, commit, device_here, machine, seconds_of  # type: ignore[import-not-found]

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.data.fasta import read_fasta
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.row_readers import row_reader
from hyena_blt_savanna.evaluation.sampling import Sampler
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.nucleotides import BASES, UPPER, Bytes
from hyena_blt_savanna.patching.calibration import calibrate
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import BudgetRule

MODELS = ["configs/model/hyena_blt_long.yaml", "configs/model/quickstart.yaml"]
PROMPTS = [128, 1024, 8192, 65_536]
BATCH = 8
FITTED_BASES = 1_000_000
LONG_SECONDS = 60.0


def patcher_of(bases: Bytes) -> Patcher:
    """Counts of order 8, with patches of 8 bases on average."""
    model = NgramConfig(order=8).fit(bases[:FITTED_BASES])
    rule, calibration = calibrate(BudgetRule(max_patch_bases=16), bases, model.entropies(bases), 8.0)
    return Patcher(model, rule, calibration)


def draw(reader: Any, sampler: Sampler, num_bases: int) -> int:
    """Draws so many bases or a few more, of all rows together; returns how many."""
    byte_of = dict(zip(sampler.columns.tolist(), BASES, strict=True))
    num_drawn = 0
    while num_drawn < num_bases:
        rows, logits = reader.ready()
        log_likelihoods = logits.float().log_softmax(-1).cpu().numpy()
        for row, column in zip(rows, sampler.draw(log_likelihoods, rows).tolist(), strict=True):
            reader.push(row, byte_of[column])
        num_drawn += len(rows)
    return num_drawn


def timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds, and what came out."""
    kept: list[Any] = []
    seconds = seconds_of(lambda: kept.append(run()), device)
    return seconds, kept[0]


@torch.inference_mode()
def measure(model: HyenaBLTModel, prompt: Bytes, num_bases: int, device: torch.device) -> dict[str, float]:
    """Seconds of the prompt, bases a second of eight rows and of one, bytes of a row, bases a patch that was drawn."""
    seconds, reader = timed(partial(row_reader, model, [prompt] * BATCH), device)
    found = {"prefill_seconds": seconds, "row_bytes": reader.num_bytes / BATCH}
    columns = model.module.class_of_byte[list(BASES)].tolist()  # type: ignore[index]
    sampler = Sampler(columns, samples=range(BATCH))
    for num_rows, num_all in ((BATCH, BATCH * num_bases), (1, 4 * num_bases)):
        if num_rows == 1:
            for row in range(1, BATCH):
                reader.leave_out(row)
        draw(reader, sampler, 8 * num_rows)
        seconds, num_drawn = timed(partial(draw, reader, sampler, num_all), device)
        found[f"bases_a_second_{num_rows}"] = num_drawn / seconds
    lengths = reader.patch_lengths(0)
    found["mean_patch_bases"] = float(lengths[-num_bases // 2 : -1].mean()) if len(lengths) else 1.0
    return found


def models_of(file: str, patcher: Patcher, device: torch.device) -> dict[str, HyenaBLTModel]:
    """The hybrid of a file and the isotropic model of its global blocks."""
    config = HyenaBLTConfig.parse(merge([ROOT / file])["model"])
    isotropic = IsotropicConfig(stack=config.global_model)
    torch.manual_seed(0)
    return {
        "hybrid": HyenaBLTModel(config.build().to(device), config, patcher),
        "isotropic": HyenaBLTModel(isotropic.build().to(device), isotropic, None),
    }


def rows_of(file: str, bases: Bytes, patcher: Patcher, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both models of a file behind each prompt."""
    device = device_here()
    models = models_of(file, patcher, device)
    found: list[dict[str, Any]] = []
    for length in options.prompts:
        rows: dict[str, dict[str, Any]] = {}
        for _ in range(options.turns):
            for name, model in models.items():
                if rows.get(name, {}).get("prefill_seconds", 0) > LONG_SECONDS:
                    continue
                turn = measure(model, bases[:length], options.num_bases, device)
                before = rows.setdefault(name, {"file": file, "model": name, "prompt_bases": length, **turn})
                for key, value in turn.items():
                    before[key] = max(value, before[key]) if "a_second" in key else min(value, before[key])
        found += rows.values()
    return found


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"`{found['command']}` at commit {found['commit']}, torch {found['torch']}, {found['machine']}, fp32.",
        "",
        "| blocks of | prompt, bases | model | prompt, s | bases a second, 1 row | times more "
        f"| bases a second, {BATCH} rows | times more | remembered of a row, MB | bases a patch |",
        "|:---|---:|:---|" + "---:|" * 7,
    ]
    isotropic = {(row["file"], row["prompt_bases"]): row for row in found["rows"] if row["model"] == "isotropic"}
    for row in found["rows"]:
        one, many = (
            f"{row[key]:,.0f} | {row[key] / isotropic[row['file'], row['prompt_bases']][key]:.1f}"
            for key in ("bases_a_second_1", f"bases_a_second_{BATCH}")
        )
        lines.append(
            f"| {Path(row['file']).stem} | {row['prompt_bases']:,} | {row['model']} | {row['prefill_seconds']:.2f} "
            f"| {one} | {many} | {row['row_bytes'] / 1e6:.2f} | {row['mean_patch_bases']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the command line, measures, writes."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(usage=__doc__.splitlines()[0], description=__doc__)
    parser.add_argument("fasta", type=Path)
    parser.add_argument("files", nargs="*", default=MODELS)
    parser.add_argument("--patcher", type=Path)
    parser.add_argument("--prompts", type=int, nargs="+", default=PROMPTS, help="bases of the prompts")
    parser.add_argument(
        "--num-bases", type=int, default=64, help="to draw of each of eight rows; of one alone, four times as many"
    )
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--to", type=Path, default=ROOT / "docs/results/generate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bases = UPPER[next(read_fasta(options.fasta)).sequence]
    patcher = patcher_of(bases) if options.patcher is None else Patcher.load(options.patcher)
    # Without the folders of this machine.
    command = " ".join(["python", f"bench/{Path(sys.argv[0]).name}", Path(options.fasta).name, *sys.argv[2:]])
    found: dict[str, Any] = {
        "command": command,
        "commit": commit(),
        "torch": torch.__version__,
        "machine": machine(device_here()),
        "rows": [],
    }
    for file in options.files:
        found["rows"] += rows_of(file, bases, patcher, options)
        options.to.mkdir(parents=True, exist_ok=True)
        write_whole(options.to / "generate.json", (json.dumps(found, indent=1) + "\n").encode())
        write_whole(options.to / "table.md", table(found).encode())


if __name__ == "__main__":
    main()
