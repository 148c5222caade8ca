"""The table of a benchmark, as Markdown: a row for each contender, a section for each genome."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyena_blt_savanna.quality.comparison import Difference, Ratio, compute_ratio, difference
from hyena_blt_savanna.quality.plan import Plan
from hyena_blt_savanna.quality.results import HeldOutScores, TrialResult

Fresh = Mapping[str, TrialResult]
_LEAST_SHARE = 0.0005


class GenomeTable:
    """The figures of one genome.

    Args:
        plan: of the benchmark.
        fresh: results by trial.
        genome: its name.
        ngram: what the count model makes of the same bases, if known.
    """

    def __init__(self, plan: Plan, fresh: Fresh, genome: str, ngram: Mapping[str, Any] | None = None) -> None:
        self.plan = plan
        self.genome = genome
        self.ngram = ngram
        self._fresh = fresh
        self._outcomes = {name: result.validation_bits for name, result in fresh.items()}
        self.contenders = [name for name in plan.benchmark.contenders if plan.benchmark.seeds(name, genome)]

    def rate(self, contender: str) -> float | None:
        """The best rate of a contender's search, as far as that has come; None: there is none yet."""
        trials = self.plan.search(contender, self.genome, self._outcomes)
        found = [trial for trial in trials if math.isfinite(self._outcomes.get(trial.name, math.inf))]
        return min(found, key=lambda trial: self._outcomes[trial.name]).lr if found else None

    def results(self, contender: str, multiple: float | None = None) -> list[TrialResult]:
        """Finished trainings of a contender at its chosen rate, the shortest first.

        Args:
            contender: its name.
            multiple: only those with this budget, in units of the benchmark's.
        """
        rate = self.rate(contender)
        found = [
            self._fresh[trial.name]
            for trial in (self.plan.finals(contender, self.genome, rate) if rate is not None else [])
            if trial.name in self._fresh and multiple in (None, trial.multiple)
        ]
        return sorted((result for result in found if result.test is not None), key=lambda result: result.multiple)

    def end_points(self, contender: str) -> list[tuple[float, float]]:
        """Operations and test bits per base of a contender, a mean over the seeds of each budget."""
        points = []
        for multiple in dict.fromkeys(result.multiple for result in self.results(contender)):
            results = self.results(contender, multiple)
            points.append((mean(result.facts["total_flops"] for result in results), mean(_bits(results))))
        return points

    def scores(self, contender: str, multiple: float) -> list[HeldOutScores]:
        """Test scores of each seed."""
        return [result.test for result in self.results(contender, multiple) if result.test is not None]

    def to_markdown(self) -> str:
        """The section."""
        config = self.plan.benchmark.config
        heads = [
            "contender",
            "parameters, M (tables)",
            "kFLOPs a base (more for patches)",
            "patch, bases (sd)",
            "rate",
            "bits at C (range of seeds)",
            "bits at other budgets",
            "less {against}",
            f"{config.baseline}'s compute for it",
            "Mbases seen (thousands a second)",
        ]
        lines = [f"## {self.genome}"]
        left = list(self.contenders)
        for group in config.groups:
            rows = [contender for contender in left if contender in group.contenders]
            left = [contender for contender in left if contender not in rows]
            waiting = [contender for contender in rows if not self._is_tried(contender)]
            if waiting:
                lines += ["", f"{group.title}, not trained yet: {', '.join(f'`{name}`' for name in waiting)}."]
            rows = [contender for contender in rows if contender not in waiting]
            if rows:
                against = group.against or config.baseline
                lines += ["", f"### {group.title}", "", _row([head.format(against=against) for head in heads])]
                lines.append(_row(["---"] + ["---:"] * (len(heads) - 1)))
                lines += [_row(self._cells(contender, against)) for contender in rows]
        if self._lines():
            lines += ["", "| for comparison | bits per base |", "|---|---:|"]
            lines += [_row([label, f"{bits:.4f}"]) for label, bits in self._lines().items()]
        if self.ngram is not None:
            counts = ", ".join(f"{number:,} {name}" for name, number in self.ngram["held_out"]["test"].items())
            lines += ["", f"Test windows: {counts}."]
        pairs = [line for first, second in config.pairs for line in self._pair(first, second)]
        if pairs:
            lines += [
                "",
                "| compared | budget | seeds | bits per base | standard error |",
                "|---|---:|---:|---:|---:|",
                *pairs,
            ]
        return "\n".join(lines) + "\n"

    def _lines(self) -> dict[str, float]:
        lines = dict(self.plan.benchmark.config.genomes[self.genome].lines)
        if self.ngram is not None:
            lines[f"n-gram of order {self.ngram['order']}, the same bases"] = self.ngram["test"]["bits_per_base"]
        return lines

    def _is_tried(self, contender: str) -> bool:
        # A rate may be another contender's: then the search says nothing of this one.
        if self.plan.benchmark.contenders[contender].rate_from is not None:
            return bool(self.results(contender))
        trials = self.plan.search(contender, self.genome, self._outcomes)
        return any(trial.name in self._outcomes for trial in trials)

    def _cells(self, contender: str, against: str) -> list[str]:
        config, definition = self.plan.benchmark.config, self.plan.benchmark.contenders[contender]
        results = self.results(contender)
        title = f"{definition.title} (`{contender}`)"
        if not results:
            return [title, "", "", "", self._rate_cell(contender), "", "", "", "", ""]
        facts = results[-1].facts
        whole = self.results(contender, 1.0)
        others = [multiple for multiple in self._multiples(results) if multiple != 1.0]
        # A row that has not been trained for C is told by its longest training.
        told = whole or self.results(contender, max(others))
        seen = told[0].facts
        spent = mean(result.facts["total_flops"] for result in told)
        ratio = compute_ratio(spent, mean(_bits(told)), self.end_points(config.baseline))
        suffix = _at(told[0].multiple)
        tables = facts.get("num_table_parameters")
        return [
            title,
            f"{facts['num_parameters'] / 1e6:.2f}" + (f" ({tables / 1e6:.2f})" if tables else ""),
            f"{facts['flops_per_base'] / 1e3:,.0f}" + _share_cell(facts),
            f"{facts['mean_patch_bases']:.2f} ({facts['sd_patch_bases']:.2f})" if "mean_patch_bases" in facts else "",
            self._rate_cell(contender),
            ", ".join(filter(None, [_bits_cell(whole), self._diverged(contender)])),
            ", ".join(f"{m:g} C: {_bits_cell(self.results(contender, m))}" for m in others),
            self._difference_cell(contender, against) if contender != against else "",
            ratio_cell(ratio) + suffix if ratio is not None and contender != config.baseline else "",
            f"{seen['bases'] / 1e6:.1f} ({seen['bases_per_second'] / 1e3:.1f})",
        ]

    def _rate_cell(self, contender: str) -> str:
        config, rate = self.plan.benchmark.config, self.rate(contender)
        source = self.plan.benchmark.contenders[contender].rate_from
        notes = [f"{name}'s" for name in (source, config.search_genome) if name not in (None, self.genome)]
        trials = self.plan.search(contender, self.genome, self._outcomes)
        num_done = sum(trial.name in self._outcomes for trial in trials)
        if num_done < len(trials):
            notes.append(f"search {num_done} of {len(trials)}")
        elif len(trials) > 1 and rate in (trials[0].lr, trials[-1].lr):
            notes.append("the last tried")
        if rate is None:
            return ", ".join(notes) or "diverged at every rate"
        return f"{rate:g}" + (f" ({', '.join(notes)})" if notes else "")

    def _diverged(self, contender: str) -> str:
        rate = self.rate(contender)
        trials = self.plan.finals(contender, self.genome, rate) if rate is not None else []
        count = sum(trial.multiple == 1.0 and self._outcomes.get(trial.name) == math.inf for trial in trials)
        return f"{count} diverged" if count else ""

    def _multiples(self, results: Sequence[TrialResult]) -> list[float]:
        return list(dict.fromkeys(result.multiple for result in results))

    def _common(self, first: str, second: str) -> list[float]:
        """Budgets that both have been trained for, the smallest first."""
        sides = [{result.multiple for result in self.results(contender)} for contender in (first, second)]
        return sorted(set.intersection(*sides))

    def _difference(self, first: str, second: str, multiple: float) -> Difference | None:
        return difference(self.scores(first, multiple), self.scores(second, multiple))

    def _difference_cell(self, first: str, second: str) -> str:
        """At C if both have been trained for so long, otherwise at the most that both have."""
        common = self._common(first, second)
        if not common:
            return ""
        multiple = 1.0 if 1.0 in common else common[-1]
        found = self._difference(first, second, multiple)
        return "" if found is None else difference_cell(found) + _at(multiple)

    def _pair(self, first: str, second: str) -> Iterator[str]:
        """A row for each budget that both have been trained for."""
        titles = [self.plan.benchmark.contenders[name].title for name in (first, second)]
        for multiple in self._common(first, second):
            found = self._difference(first, second, multiple)
            if found is not None:
                seeds = " and ".join(dict.fromkeys(str(len(self.scores(name, multiple))) for name in (first, second)))
                cells = [f"{titles[0]}, less {titles[1]}", f"{multiple:g} C", seeds]
                yield _row([*cells, f"{found.bits:+.4f}", f"{found.standard_error:.4f}"])


def difference_cell(found: Difference) -> str:
    """A difference with its standard error."""
    return f"{found.bits:+.4f} ± {found.standard_error:.4f}"


def ratio_cell(ratio: Ratio) -> str:
    """A ratio, or the side on which it lies."""
    words = {"": "", ">": "more than ", "<": "less than "}[ratio.bound]
    return f"{words}{ratio.times:.2f} x"


def mean(values: Any) -> float:
    """The mean of at least one number."""
    listed = list(values)
    return float(sum(listed) / len(listed))


def _at(multiple: float) -> str:
    return "" if multiple == 1.0 else f" at {multiple:g} C"


def _share_cell(facts: Mapping[str, Any]) -> str:
    share = facts.get("entropy_flops", 0) / (facts["flops_per_base"] * facts["bases"])
    return f" ({share:+.1%})" if share >= _LEAST_SHARE else ""


def _bits(results: Sequence[TrialResult]) -> list[float]:
    return [result.test.bits_per_base for result in results if result.test is not None]


def _bits_cell(results: Sequence[TrialResult]) -> str:
    bits = _bits(results)
    if not bits:
        return ""
    spread = f" ({min(bits):.4f} to {max(bits):.4f})" if len(bits) > 1 else ""
    return f"{mean(bits):.4f}{spread}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
