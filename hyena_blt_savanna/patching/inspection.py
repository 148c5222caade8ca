"""Everything that is to be seen of a stretch's patches, computed once for the terminal, the page and the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import BASE_CODE, OTHER_CODE, Bytes
from hyena_blt_savanna.patching.inspection_composition import ClassFigures, compose, homopolymers, tandem_repeats
from hyena_blt_savanna.patching.inspection_rules import Agreement, Cutting, agreements, cut_by_rules
from hyena_blt_savanna.patching.inspection_stretch import (
    Stretch,
    Summary,
    Windows,
    in_windows,
    information,
    summarise,
    window_width,
)
from hyena_blt_savanna.patching.rules import PatchRuleConfig

THIS = "this cut"
"""Name of the cutting that is inspected, beside those of the rules."""

_SAMPLED_BASES = 8_000_000
_EXAMPLE_BASES = 150
_LEAD_IN_BASES = 1 << 16


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        stretch: what was inspected.
        summary: its figures.
        windows: the stretch window by window.
        coding_in_windows: float64 [W], share of coding bases; None without an annotation of genes.
        sample: the stretch, or 8 million bases of it: what the rules were calibrated on and compared on.
        cuttings: of the sample; this cut first, then one of each rule, all of about one mean length.
        composition: of the sample, by class of bases.
        agreement: of each pair of cuttings of the sample.
        example: some 150 bases from the middle of the stretch.
        example_starts: int64 [P], where patches start in the example, by cutting.
    """

    stretch: Stretch
    summary: Summary
    windows: Windows
    coding_in_windows: NDArray[np.float64] | None
    sample: Stretch
    cuttings: dict[str, Cutting]
    composition: dict[str, ClassFigures]
    agreement: dict[tuple[str, str], Agreement]
    example: Stretch
    example_starts: dict[str, NDArray[np.int64]]

    def information(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of the nats in a patch, by cutting."""
        nats = {name: information(self.sample.entropies, cutting.starts) for name, cutting in self.cuttings.items()}
        return {name: (float(each.mean()), float(each.std())) for name, each in nats.items()}

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, ready for JSON; None where no patch starts in a class."""
        information = self.information()
        return {
            "title": self.stretch.title,
            "first_base": self.stretch.first,
            "rule": self.stretch.rule.to_dict(),
            "summary": asdict(self.summary),
            "num_sampled_bases": len(self.sample.bases),
            "cuttings": {
                name: {
                    "rule": cutting.rule.to_dict(),
                    "num_patches": len(cutting.lengths),
                    "mean_bases": float(cutting.lengths.mean()),
                    "std_bases": float(cutting.lengths.std()),
                    "mean_nats": information[name][0],
                    "std_nats": information[name][1],
                }
                for name, cutting in self.cuttings.items()
            },
            "composition": {
                name: asdict(each) | {"bases_per_cut": _finite(each.bases_per_cut)}
                for name, each in self.composition.items()
            },
            "agreement": [{"cuttings": list(pair), **asdict(agreement)} for pair, agreement in self.agreement.items()],
            "notes": list(self.stretch.notes),
        }


def inspect(stretch: Stretch, kinds: Sequence[str], num_sampled_bases: int = _SAMPLED_BASES) -> Inspection:
    """Computes all figures of a stretch.

    Args:
        stretch: the stretch and how it is cut.
        kinds: rules to compare with, each calibrated on the stretch to the mean length that is found there.
        num_sampled_bases: most bases that rules are compared on; of a longer stretch, pieces spread evenly.

    Raises:
        InspectionError: no patch starts in the stretch, or there is no such rule.
    """
    summary = summarise(stretch)
    width = window_width(len(stretch.bases))
    windows = in_windows(stretch, homopolymers(stretch.bases) | tandem_repeats(stretch.bases), width)
    coding = None
    if stretch.coding is not None:
        num = len(windows.middles)
        coding = (stretch.coding.strands[: num * width] > 0).reshape(num, width).mean(axis=1)
    sample = stretch.sampled(num_sampled_bases)
    this = Cutting(stretch.rule, sample.starts, sample.lengths)
    cuttings = {THIS: this} | cut_by_rules(sample, kinds, float(sample.lengths.mean()))
    begin = _example_begin(stretch.bases)
    example = stretch.piece(begin, begin + _EXAMPLE_BASES)
    return Inspection(
        stretch=stretch,
        summary=summary,
        windows=windows,
        coding_in_windows=coding,
        sample=sample,
        cuttings=cuttings,
        composition=compose(sample, {name: cutting.starts for name, cutting in cuttings.items()}),
        agreement=agreements(sample.bases, cuttings),
        example=example,
        example_starts={name: _starts_of_example(stretch, begin, cutting.rule) for name, cutting in cuttings.items()}
        | {THIS: example.starts},
    )


def _example_begin(bases: Bytes) -> int:
    """Where the example begins: in the middle, or where 150 bases without other letters come after it."""
    middle = max(0, (len(bases) - _EXAMPLE_BASES) // 2)
    num_others = np.cumsum(np.append(0, BASE_CODE[bases[middle:]] == OTHER_CODE))
    pure = np.flatnonzero(num_others[_EXAMPLE_BASES:] == num_others[:-_EXAMPLE_BASES])
    return middle + int(pure[0]) if len(pure) else middle


def _starts_of_example(stretch: Stretch, begin: int, rule: PatchRuleConfig) -> NDArray[np.int64]:
    """Where a rule cuts the example, if it has read what comes before it."""
    first = max(0, begin - _LEAD_IN_BASES)
    read = stretch.piece(first, begin + _EXAMPLE_BASES)
    starts = Cutting.of(rule, read.bases, read.entropies).starts - (begin - first)
    return starts[starts >= 0]


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if np.isfinite(value) else None for name, value in values.items()}
