"""Classes of bases that patches may treat differently: coding, repeats, GC content; and mean lengths in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import BASE_CODE, IS_REPEAT_MASKED, OTHER_CODE, Bytes
from hyena_blt_savanna.patching.inspection_stretch import Stretch

HOMOPOLYMER_BASES = 5
"""Least length of a run of one base that counts as a homopolymer."""
TANDEM_UNITS = range(2, 7)
"""Lengths of a tandem repeat's unit, in bases."""
TANDEM_COPIES = 3
"""Least number of copies of the unit."""
GC_WINDOW_BASES = 128
"""Windows whose GC content puts their bases into a quarter."""

EVERYTHING, OTHER_LETTERS = "everything", "letters other than A, C, G, T"


def homopolymers(bases: Bytes) -> NDArray[np.bool_]:
    """Which bases lie in runs of one base, five or more.

    Args:
        bases: uint8 [L], either case.

    Returns:
        bool [L].
    """
    found = np.zeros(len(bases), dtype=np.bool_)
    _mark_runs(BASE_CODE[bases], 1, HOMOPOLYMER_BASES, OTHER_CODE, found)
    return found


def tandem_repeats(bases: Bytes) -> NDArray[np.bool_]:
    """Which bases lie in three or more copies of a unit of two to six bases, not all the same; exact repeats only.

    A last copy may be a part of the unit.

    Args:
        bases: uint8 [L], either case.

    Returns:
        bool [L].
    """
    found = np.zeros(len(bases), dtype=np.bool_)
    codes = BASE_CODE[bases]
    for unit in TANDEM_UNITS:
        _mark_runs(codes, unit, TANDEM_COPIES * unit, OTHER_CODE, found)
    return found


@njit(cache=True, nogil=True)
def _mark_runs(codes: Bytes, period: int, least: int, other: int, found: NDArray[np.bool_]) -> None:
    """Marks stretches of at least `least` bases that repeat after `period`; those of one base only if that is 1."""
    begin = 0
    for i in range(len(codes) + 1):
        continues = i < len(codes) and codes[i] != other and (i - begin < period or codes[i] == codes[i - period])
        if continues:
            continue
        if i - begin >= least:
            is_one_base = True
            for j in range(begin + 1, begin + period):
                is_one_base &= codes[j] == codes[begin]
            if period == 1 or not is_one_base:
                found[begin:i] = True
        # The next run may begin among the last `period` bases, but not before a letter that is no base.
        begin = i + 1 if i < len(codes) and codes[i] == other else max(begin + 1, i - period + 1)


def base_classes(stretch: Stretch) -> dict[str, NDArray[np.bool_]]:
    """Which bases of a stretch belong to each class, by name; classes without bases are left out.

    Args:
        stretch: with `coding`, its bases are also divided by what is coding.

    Returns:
        bool [L] each.
    """
    bases = stretch.bases
    classes = {EVERYTHING: np.ones(len(bases), dtype=np.bool_)}
    if stretch.coding is not None:
        strands, places = stretch.coding.strands, stretch.coding.codon_places
        classes["coding"] = strands > 0
        for code, strand in ((1, "forward"), (2, "reverse")):
            classes[f"coding, {strand} strand"] = strands == code
            for place, ordinal in enumerate(("first", "second", "third")):
                classes[f"{strand} codons, {ordinal} base"] = (strands == code) & (places == place)
        classes["not coding"] = strands == 0
    classes["homopolymers"] = homopolymers(bases)
    classes["tandem repeats"] = tandem_repeats(bases)
    classes["soft-masked"] = IS_REPEAT_MASKED[bases].astype(np.bool_)
    if classes["soft-masked"].any():
        classes["not soft-masked"] = ~classes["soft-masked"]
    classes |= _gc_quarters(bases)
    classes[OTHER_LETTERS] = BASE_CODE[bases] == OTHER_CODE
    return {name: mask for name, mask in classes.items() if mask.any()}


def _gc_quarters(bases: Bytes) -> dict[str, NDArray[np.bool_]]:
    num = len(bases) // GC_WINDOW_BASES
    codes = BASE_CODE[bases[: num * GC_WINDOW_BASES]].reshape(num, GC_WINDOW_BASES)
    num_known = (codes != OTHER_CODE).sum(axis=1)
    usable = num_known * 2 >= GC_WINDOW_BASES
    gc = ((codes == 1) | (codes == 2)).sum(axis=1)[usable] / num_known[usable]
    if len(gc) < 4:
        return {}
    edges = np.quantile(gc, (0.25, 0.5, 0.75))
    quarters = np.full(num, -1)
    quarters[usable] = np.searchsorted(edges, gc, side="left")
    borders = [float(gc.min()), *edges.tolist(), float(gc.max())]
    return {
        f"GC {100 * borders[quarter]:.0f}-{100 * borders[quarter + 1]:.0f} % (quarter {quarter + 1})": np.append(
            np.repeat(quarters == quarter, GC_WINDOW_BASES), np.zeros(len(bases) % GC_WINDOW_BASES, dtype=np.bool_)
        )
        for quarter in range(4)
    }


@dataclass(frozen=True)
class ClassFigures:
    """Patches in one class of bases.

    Attributes:
        num_bases: in the class.
        share: of all bases.
        mean_nats: of its bases' entropies.
        bases_per_cut: its bases over the patches that start in it, by cutting; the mean patch length where the class
            is everything, infinite where no patch starts.
    """

    num_bases: int
    share: float
    mean_nats: float
    bases_per_cut: dict[str, float]


def compose(stretch: Stretch, cuttings: Mapping[str, NDArray[np.int64]]) -> dict[str, ClassFigures]:
    """Bases per cut in each class of bases.

    Args:
        stretch: whose bases they are.
        cuttings: int64 [P], where patches start, by name.
    """
    figures = {}
    for name, mask in base_classes(stretch).items():
        num = int(mask.sum())
        figures[name] = ClassFigures(
            num_bases=num,
            share=num / len(mask),
            mean_nats=float(stretch.entropies[mask].mean(dtype=np.float64)),
            bases_per_cut={
                cutting: num / num_starts if (num_starts := int(mask[starts].sum())) else float("inf")
                for cutting, starts in cuttings.items()
            },
        )
    return figures
