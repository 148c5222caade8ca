"""The page of a benchmark's results: table.md and pictures, from the committed results alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.quality.figures import draw_curves
from hyena_blt_savanna.quality.ngram_line import read_ngram_line
from hyena_blt_savanna.quality.plan import Plan
from hyena_blt_savanna.quality.results import Results, TrialResult
from hyena_blt_savanna.quality.table import GenomeTable

_NOTES = """\
C is {budget:.3g} operations a training: multiplications and additions of forward and backward passes, and those that
found the patches, the making of the entropy model included, spread over the first epoch. Each contender's rate is the
one of {rates} with the fewest bits per base on the validation windows after {share:g} C;
where it was the lowest or the highest, rates beyond it were tried as well.

Bits per base are those of the test stretch, in windows of the training's length: the same bases for every contender,
without the first {skipped} of a window. Windows that share {duplicate} bases or more with the training data, on either
strand, are not among them, so that figures of others for the whole stretch, copies included, may be lower. The standard
error of a difference takes in the windows, pair by pair, and the seeds.

"{baseline}'s compute for it": how many times as many operations {baseline} needs for the same bits, read between its
own trainings on a logarithmic scale. Bases a second are those of one training on {threads} thread(s), with others on
the same machine.
"""


def write_page(plan: Plan, results: Results, command: str) -> Path:
    """Writes table.md and the pictures.

    Args:
        plan: of the benchmark, with all its contenders.
        results: where they lie.
        command: that makes the whole benchmark.

    Returns:
        The table.

    Raises:
        ResultError: a result can't be read.
    """
    config = plan.benchmark.config
    fresh, stale = results.fresh(plan)
    tables = [
        GenomeTable(plan, fresh, genome, read_ngram_line(plan.benchmark, results, genome))
        for genome in plan.benchmark.trained_genomes
    ]
    pictures = draw_curves(results.folder, tables)
    parts = [f"# Quality at equal compute: {config.name}\n", f"Made by `{command}`; one row by `--only NAME`.\n"]
    parts.append(
        _NOTES.format(
            budget=config.budget_flops,
            rates=", ".join(f"{rate:g}" for rate in config.rates),
            share=config.search_share,
            skipped=config.held_out.skipped_bases,
            duplicate=config.held_out.duplicate_bases,
            baseline=config.baseline,
            threads=" or ".join(
                sorted({str(result.facts.get("num_threads", 1)) for result in fresh.values()}) or ["1"]
            ),
        )
    )
    parts += [table.to_markdown() for table in tables]
    parts += [f"![bits per base against {picture.stem}]({picture.name})\n" for picture in pictures]
    parts.append(_provenance(fresh))
    wanted = [trial.name for trial in plan.wanted({name: r.validation_bits for name, r in fresh.items()})]
    missing = sum(name not in fresh for name in wanted)
    if missing or stale:
        parts.append(f"{missing} trainings are missing, {len(stale)} results are of an earlier recipe.\n")
    path = results.folder / "table.md"
    write_whole(path, "\n".join(parts).encode())
    return path


def _provenance(fresh: dict[str, TrialResult]) -> str:
    def counted(values: list[str]) -> str:
        return ", ".join(f"{value} ({count})" for value, count in Counter(values).most_common())

    if not fresh:
        return "No trainings yet.\n"
    found = list(fresh.values())
    machines = counted(
        [
            f"{r.machine.get('device')}, {r.machine.get('num_cores')} cores, {r.machine.get('architecture')} "
            f"{r.machine.get('instructions')}"
            for r in found
        ]
    )
    versions = counted([" ".join(f"{name} {number}" for name, number in r.versions.items()) for r in found])
    return (
        f"{len(found)} trainings. Commits: {counted([str(r.commit) for r in found])}. Machines: {machines}. "
        f"Versions: {versions}.\n"
    )
