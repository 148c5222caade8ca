"""Which trainings a benchmark is made of, and which can be started with the results that there are."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hyena_blt_savanna.quality.config import Benchmark, digest_of


@dataclass(frozen=True)
class Trial:
    """One training of one contender.

    Attributes:
        contender: its name.
        genome: its name.
        seed: of weights and data.
        multiple: budget in units of the benchmark's.
        lr: the highest learning rate.
    """

    contender: str
    genome: str
    seed: int
    multiple: float
    lr: float

    @property
    def name(self) -> str:
        """Short and unique, fit for a file."""
        return f"{self.genome}.{self.contender}.c{self.multiple:g}.lr{self.lr:g}.seed{self.seed}"


class Plan:
    """The trainings of a benchmark.

    Args:
        benchmark: what is compared.
        only: patterns, as of a shell, for names of contenders or of trials; empty for all.
    """

    def __init__(self, benchmark: Benchmark, only: Sequence[str] = ()) -> None:
        self.benchmark = benchmark
        self.only = only

    def search(self, contender: str, genome: str, outcomes: Mapping[str, float] | None = None) -> list[Trial]:
        """The trials that a contender's rate on a genome is chosen from, as far as they can be named.

        While the best rate is the lowest or the highest one, the next one beyond is tried as well.

        Args:
            contender: its name.
            genome: its name.
            outcomes: as in `chosen_rate`; None: nothing is known yet.
        """
        config = self.benchmark.config
        source = self.benchmark.contenders[contender].rate_from or contender
        where = config.search_genome or genome
        seeds = self.benchmark.seeds(source, where) or self.benchmark.seeds(contender, genome)
        trials = [Trial(source, where, seeds[0], config.search_share, lr) for lr in sorted(config.rates)]
        for _ in range(config.rates_beyond if len(trials) > 1 else 0):
            found = [(outcomes or {}).get(trial.name) for trial in trials]
            if None in found:
                break
            best = found.index(min(bits for bits in found if bits is not None))
            if best == 0:
                trials.insert(0, replace(trials[0], lr=_rounded(trials[0].lr ** 2 / trials[1].lr)))
            elif best == len(trials) - 1:
                trials.append(replace(trials[-1], lr=_rounded(trials[-1].lr ** 2 / trials[-2].lr)))
            else:
                break
        return trials

    def finals(self, contender: str, genome: str, lr: float) -> list[Trial]:
        """The trials whose figures are compared, those of the first seed first."""
        benchmark = self.benchmark
        # The search has this point already, unless it was made on another genome.
        searched = [benchmark.config.search_share] if benchmark.contenders[contender].rate_from is None else []
        first_seed = benchmark.seeds(contender, genome)[0]
        trials = []
        for group in benchmark.groups(contender, genome):
            multiples = benchmark.multiples(contender, group)
            for seed in group.seeds:
                # The other budgets draw a curve, for which one seed is enough.
                wanted = [*searched, *multiples] if seed == first_seed else multiples[:1]
                trials += [Trial(contender, genome, seed, multiple, lr) for multiple in wanted]
        return sorted(dict.fromkeys(trials), key=lambda trial: benchmark.seeds(contender, genome).index(trial.seed))

    def chosen_rate(self, contender: str, genome: str, outcomes: Mapping[str, float]) -> float | None:
        """The rate with the fewest bits per base on the validation windows.

        Args:
            contender: its name.
            genome: its name.
            outcomes: bits per base by trial; infinite where it diverged.

        Returns:
            The rate; None while the search is not finished, or when all of it diverged.
        """
        trials = self.search(contender, genome, outcomes)
        if any(trial.name not in outcomes for trial in trials):
            return None
        best = min(trials, key=lambda trial: outcomes[trial.name])
        return best.lr if math.isfinite(outcomes[best.name]) else None

    def wanted(self, outcomes: Mapping[str, float]) -> list[Trial]:
        """All trials that can be named now, those to be started first in front; finished ones are among them.

        Args:
            outcomes: as in `chosen_rate`.
        """
        return list(dict.fromkeys(trial for trial in self._in_order(outcomes)))

    def digest(self, trial: Trial) -> str:
        """Of all that decides a trial's figures: two trials with one digest train and score alike."""
        config = self.benchmark.config
        return digest_of(
            {
                "tree": self.benchmark.tree(trial.contender),
                "annotation": self.benchmark.annotation_tree(trial.contender),
                "genome": [trial.genome, config.genomes[trial.genome].split.to_dict()],
                "trial": [trial.seed, trial.multiple, trial.lr],
                "benchmark": [
                    config.budget_flops,
                    config.warmup_share,
                    config.validations,
                    config.held_out.to_dict(),
                ],
            }
        )

    def command(self, benchmark: str, trial: Trial) -> str:
        """What a person types for the row that a trial belongs to."""
        return f"{benchmark} --only {trial.contender}"

    def _in_order(self, outcomes: Mapping[str, float]) -> Iterator[Trial]:
        for group in self.benchmark.config.groups:
            genomes = self.benchmark.genomes_of(group)
            pairs = [(contender, genome) for contender in group.contenders for genome in genomes]
            finals = []
            for contender, genome in pairs:
                searched = self.search(contender, genome, outcomes)
                rate = self.chosen_rate(contender, genome, outcomes)
                final = self.finals(contender, genome, rate) if rate is not None else []
                if self._is_chosen(contender, [*searched, *final]):
                    yield from searched
                    finals.append(final)
            # A seed of all contenders before the next seed: a table of one seed is worth more than half of one of two.
            for seed in group.seeds:
                for final in finals:
                    yield from (trial for trial in final if trial.seed == seed)

    def _is_chosen(self, contender: str, trials: list[Trial]) -> bool:
        names = [contender, *(trial.name for trial in trials)]
        return not self.only or any(fnmatch.fnmatch(name, pattern) for name in names for pattern in self.only)


def _rounded(lr: float) -> float:
    """Without the digits that a quotient adds: a rate is part of a trial's name."""
    return float(f"{lr:.6g}")
