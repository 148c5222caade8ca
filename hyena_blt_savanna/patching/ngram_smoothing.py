"""How much the `ngram` model trusts the counts of a context, against those of the context one base shorter.

The distribution after a context is interpolated from the shortest context to the longest:

    p_k(base) = w * count(base) / n  +  (1 - w) * p_{k-1}(base),    p_{-1}(base) = 1/4

with n the context's total count. The weight w belongs to the order k, to n (in quarter octaves) and
to the share of the commonest base (in eighths): seven equal bases out of seven are worth more than
four out of seven. The weights are chosen out of fold on the training stream alone, order after order:
each stretch is predicted from the counts of the other stretches, as new sequence will be.

Source: deleted interpolation with bucketed weights, Jelinek & Mercer 1980; the share of the commonest
base as a second key is ours. On E. coli K-12 (order 12, last tenth of the genome) one strength for
each order gives 1.917 bits per base, weights by n alone 1.915, these 1.912.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.data.fold_edges import fold_edges
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.ngram_counts import WindowCounts, windows
from hyena_blt_savanna.patching.ngram_windows import NgramError

NUM_TOTALS = 8 + 4 * 61
"""Classes of a context's total count: 0 to 7 apart, then four for each doubling, up to 2 ** 64."""
NUM_SHARES = 8
"""Classes of the commonest base's share: eighths."""
NUM_BUCKETS = NUM_TOTALS * NUM_SHARES

_PRIOR_SAMPLES = 10.0
"""Weight, in bases, of the one-strength smoothing that a bucket with few samples falls back to."""
_PRIOR_STRENGTHS = 2.0 ** np.arange(-2, 20)
_SAMPLES_FOR_PRIOR = 50_000


def fit_weights(
    stream: Bytes,
    counts: WindowCounts,
    both_strands: bool,
    num_folds: int,
    num_samples: int,
) -> NDArray[np.float64]:
    """Chooses the weights out of fold.

    Args:
        stream: uint8 [L], what was counted.
        counts: those of the whole stream.
        both_strands: as for `counts`.
        num_folds: stretches that are left out in turn.
        num_samples: bases that are predicted, about, spread evenly.

    Returns:
        float64 [order + 1, NUM_BUCKETS], each in (0, 1), but 0 for a context that was never seen.

    Raises:
        NgramError: the stream has no window at all.
    """
    order = counts.order
    edges = fold_edges(len(stream), num_folds)
    every = max(1, len(stream) // num_samples)
    shares: list[NDArray[np.float32]] = []
    buckets: list[NDArray[np.int32]] = []
    for start, stop in itertools.pairwise(edges):
        samples = windows(stream, start, stop, order, every)
        inside = WindowCounts.of_stretch(stream, start, stop, order, both_strands, counts.dense_order)
        others = counts.without(inside).of_contexts(samples)
        share = np.empty(others.shape[:2], dtype=np.float32)
        bucket = np.empty(others.shape[:2], dtype=np.int32)
        for k in range(order + 1):
            _judge(others[k], samples & 3, share[k], bucket[k])
        shares.append(share)
        buckets.append(bucket)
    share_by_order, bucket_by_order = np.concatenate(shares, axis=1), np.concatenate(buckets, axis=1)
    predicted = np.full(share_by_order.shape[1], 0.25)
    if not len(predicted):
        raise NgramError(
            f"no stretch of {order + 1} bases A, C, G, T in {len(stream):,} bytes: "
            "give more sequence, or lower the entropy model's order"
        )
    weights = np.zeros((order + 1, NUM_BUCKETS))
    for k in range(order + 1):
        seen, found = share_by_order[k].astype(np.float64), bucket_by_order[k]
        weights[k] = _fit_level(seen, predicted, found)
        predicted += weights[k, found] * (seen - predicted)
    return weights


def _fit_level(
    share: NDArray[np.float64], predicted: NDArray[np.float64], bucket: NDArray[np.int32]
) -> NDArray[np.float64]:
    """The weight of each bucket that makes the samples likeliest: the likelihood is concave in each."""
    prior = _one_strength(share, predicted, bucket)
    low, high = np.zeros(NUM_BUCKETS), np.ones(NUM_BUCKETS)
    slope = np.empty(NUM_BUCKETS)
    for _ in range(20):
        middle = (low + high) / 2
        slope[:] = _PRIOR_SAMPLES * (prior / middle - (1 - prior) / (1 - middle))
        _add_slopes(share, predicted, bucket, middle, slope)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    weights = (low + high) / 2
    weights[:NUM_SHARES] = 0.0
    return weights


def _one_strength(
    share: NDArray[np.float64], predicted: NDArray[np.float64], bucket: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Weights n / (n + strength), with the one strength that makes the samples likeliest."""
    totals = np.repeat([_lowest_total(i) for i in range(NUM_TOTALS)], NUM_SHARES)
    few = slice(None, None, len(share) // _SAMPLES_FOR_PRIOR + 1)
    share, predicted, bucket = share[few], predicted[few], bucket[few]

    def log_likelihood(strength: float) -> float:
        weights = (totals / (totals + strength))[bucket]
        return float(np.log(predicted + weights * (share - predicted)).sum())

    best = max(_PRIOR_STRENGTHS, key=log_likelihood)
    return np.asarray(totals / (totals + best))


def _lowest_total(total_class: int) -> float:
    if total_class < 8:
        return float(total_class)
    octave, quarter = divmod(total_class - 8, 4)
    return 2.0 ** (octave + 3) * (1 + quarter / 4)


@njit(cache=True, nogil=True, inline="always")
def total_and_bucket(counts: NDArray[Any], row: int) -> tuple[Any, Any]:
    """Total count of the context in a row of [contexts, 4], and its bucket."""
    a, c, g, t = np.int64(counts[row, 0]), np.int64(counts[row, 1]), np.int64(counts[row, 2]), np.int64(counts[row, 3])
    total = a + c + g + t
    if total == 0:
        return 0, 0
    octave = 0
    while (total >> octave) > 1:
        octave += 1
    total_class = total if octave < 3 else 8 + 4 * (octave - 3) + ((total >> (octave - 2)) & 3)
    return total, total_class * NUM_SHARES + (8 * max(a, c, g, t) - 1) // total


@njit(cache=True, nogil=True, inline="always")
def mix(
    counts: NDArray[Any],
    row: int,
    weights: NDArray[np.float64],
    below: NDArray[np.float32],
    level: NDArray[np.float32],
) -> None:
    """One step of the interpolation: `level` [4] from the counts of `row` and from `below` [4], one base shorter."""
    total, bucket = total_and_bucket(counts, row)
    weight = weights[bucket]
    scale = weight / total if total > 0 else 0.0
    for base in range(4):
        level[base] = scale * counts[row, base] + (1.0 - weight) * below[base]


@njit(cache=True, nogil=True)
def _judge(
    counts: NDArray[Any], bases: NDArray[np.int64], share: NDArray[np.float32], bucket: NDArray[np.int32]
) -> None:
    """Share of each sample's base among the counts of its context, a row of `counts`, and the context's bucket."""
    for i in range(len(bases)):
        total, bucket[i] = total_and_bucket(counts, i)
        share[i] = counts[i, bases[i]] / total if total > 0 else 0.0


@njit(cache=True, nogil=True)
def _add_slopes(
    share: NDArray[np.float64],
    predicted: NDArray[np.float64],
    bucket: NDArray[np.int32],
    weights: NDArray[np.float64],
    slope: NDArray[np.float64],
) -> None:
    for i in range(len(share)):
        difference = share[i] - predicted[i]
        slope[bucket[i]] += difference / (predicted[i] + weights[bucket[i]] * difference)
