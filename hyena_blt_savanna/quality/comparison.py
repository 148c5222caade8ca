"""What figures of several trainings say about one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.quality.results import HeldOutScores
from hyena_blt_savanna.training.loss import NATS_PER_BIT


@dataclass(frozen=True)
class Difference:
    """Bits per base of one contender less those of another.

    Attributes:
        bits: the difference.
        standard_error: of it.
    """

    bits: float
    standard_error: float


@dataclass(frozen=True)
class Ratio:
    """How many times the compute another one needs for the same bits per base.

    Attributes:
        times: the ratio.
        bound: "" for a measured one, ">" or "<" where the other's trainings end before its bits are met.
    """

    times: float
    bound: str = ""


def difference(first: Sequence[HeldOutScores], second: Sequence[HeldOutScores]) -> Difference | None:
    """Compares contenders on the windows that both scored, pair by pair, and takes the spread over seeds in.

    The standard error has two parts, added as squares: that of the mean difference over windows (seeds averaged
    first), as the windows are a sample of the genome; and that of each contender's mean over its seeds. Seeds are taken
    to spread both contenders alike, so that one of a single seed isn't taken to be without spread; where both have a
    single seed, nothing is known of it and the error is too small.

    Args:
        first: of each seed.
        second: of each seed.

    Returns:
        None if one of them is empty, or they share fewer than two windows.
    """
    if not first or not second:
        return None
    common = sorted(set.intersection(*(set(scores.windows) for scores in [*first, *second])))
    if len(common) < 2:
        return None
    nats = [np.mean([_of_windows(scores.nats, scores, common) for scores in side], axis=0) for side in (first, second)]
    num_bases = _of_windows(first[0].num_bases, first[0], common)
    bits = (nats[0] - nats[1]) / NATS_PER_BIT
    mean = float(bits.sum() / num_bases.sum())
    # Of a ratio of sums: windows with more unknown letters weigh less.
    residuals = bits - mean * num_bases
    count = len(common)
    over_windows = float((residuals**2).sum()) * count / (count - 1) / float(num_bases.sum()) ** 2
    variance = _pooled_variance([[scores.bits_per_base for scores in side] for side in (first, second)])
    over_seeds = variance * (1 / len(first) + 1 / len(second))
    return Difference(mean, math.sqrt(over_windows + over_seeds))


def compute_ratio(flops: float, bits: float, curve: Sequence[tuple[float, float]]) -> Ratio | None:
    """How many times the operations another contender needs for the same bits per base.

    Between two of its trainings, the other's bits are taken to fall evenly with the logarithm of its operations.

    Args:
        flops: of the contender.
        bits: that it reached.
        curve: operations and bits of the other's trainings; one that is no better than a shorter one is not looked at.

    Returns:
        None where the other has no trainings.
    """
    falling: list[tuple[float, float]] = []
    for point in sorted(curve):
        if not falling or point[1] < falling[-1][1]:
            falling.append(point)
    if not falling:
        return None
    if bits > falling[0][1]:
        return Ratio(falling[0][0] / flops, "<")
    if bits < falling[-1][1]:
        return Ratio(falling[-1][0] / flops, ">")
    for (less, worse), (more, better) in itertools.pairwise(falling):
        if better <= bits <= worse:
            share = (worse - bits) / (worse - better)
            return Ratio(less * (more / less) ** share / flops)
    return Ratio(falling[0][0] / flops)


def _of_windows(values: Sequence[float], scores: HeldOutScores, wanted: Sequence[int]) -> NDArray[np.float64]:
    by_window = dict(zip(scores.windows, values, strict=True))
    return np.array([by_window[window] for window in wanted], dtype=np.float64)


def _pooled_variance(samples: Sequence[Sequence[float]]) -> float:
    """Of single values around the mean of their sample; 0 where no sample has two."""
    squares = sum(float(np.var(values)) * len(values) for values in samples)
    return squares / max(1, sum(len(values) - 1 for values in samples))
