"""Bits per base on held-out windows, shared among the ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from pydantic import Field, NonNegativeInt, PositiveInt

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.evaluation.reconstruction import wrong_bases
from hyena_blt_savanna.nucleotides import BASES
from hyena_blt_savanna.training.engine import Totals, TrainingBatch, TrainingEngine
from hyena_blt_savanna.training.loss import scored_weight, weighted_nats

Item = TypeVar("Item")


class ValidationConfig(Config):
    """When and on how much a model is validated."""

    every_steps: PositiveInt = 1000
    """Steps between validations; the last step always has one."""
    num_bases: PositiveInt | None = 1_000_000
    """About so many bases, in windows spread evenly over the validation stream; of several sources as many of each.
    Null takes all of it."""
    windows: list[NonNegativeInt] | None = Field(None, min_length=1)
    """These windows of the validation stream, counted from 0, in place of `num_bases`; null spreads them evenly."""
    window_bases: PositiveInt | None = None
    """Bases of a window; null takes the stage's."""
    micro_batch_windows: PositiveInt | None = None
    """Windows of one forward pass of a rank; null takes the stage's."""


@dataclass(frozen=True)
class Validation:
    """Sums over the validation windows of each source.

    Attributes:
        by_source: by the source's name, at least one.
        weights: of all sources in the training data, by name.
    """

    by_source: Mapping[str, Totals]
    weights: Mapping[str, float]

    @property
    def total(self) -> Totals:
        """Over all sources."""
        return sum(self.by_source.values(), Totals())

    @property
    def nats_per_base(self) -> float:
        """The mean of the sources' losses, weighted as they are trained on; alike where all weights are 0."""
        weights = [self.weights[name] for name in self.by_source]
        if not any(weights):
            weights = [1.0] * len(weights)
        pairs = [pair for pair in zip(weights, self.by_source.values(), strict=True) if pair[0]]
        return sum(weight * totals.nats_per_base for weight, totals in pairs) / sum(weight for weight, _ in pairs)


def spread(num_windows: int, num_wanted: int) -> list[int]:
    """Indices of `num_wanted` windows, evenly spread; all of them when that is more than there are."""
    if num_wanted >= num_windows:
        return list(range(num_windows))
    return [index * num_windows // num_wanted for index in range(num_wanted)]


def shares(
    indices: Sequence[int], rank: int, num_ranks: int, micro_batch_windows: int
) -> Iterator[tuple[list[int], list[bool]]]:
    """One rank's micro batches, the same number of the same size on each rank.

    Every rank must call the model equally often (ZeRO 3 gathers weights in each call), so short ranks go over
    windows a second time that don't count.

    Yields:
        Indices of a micro batch, and which of them count.
    """
    mine = list(indices[rank::num_ranks])
    longest = -(-len(indices) // num_ranks)
    for begin in range(0, longest, micro_batch_windows):
        chosen = mine[begin : begin + micro_batch_windows]
        missing = min(micro_batch_windows, longest - begin) - len(chosen)
        yield chosen + [indices[0]] * missing, [True] * len(chosen) + [False] * missing


def validate(
    engine: TrainingEngine,
    indices: Sequence[int],
    micro_batch_windows: int,
    batch_of: Callable[[Sequence[int]], TrainingBatch],
) -> Totals:
    """Scores windows with the present weights. Every rank calls, and gets the sums over all ranks.

    Args:
        engine: of the model.
        indices: of the windows, at least one.
        micro_batch_windows: windows of one forward pass of a rank.
        batch_of: lays windows side by side.
    """
    totals = Totals()
    mesh = engine.ranks.mesh
    was_training = engine.module.training
    engine.module.eval()
    try:
        with torch.no_grad():
            for chosen, counts in shares(indices, mesh.data, mesh.num_data, micro_batch_windows):
                totals += _score(engine, batch_of(chosen), torch.tensor(counts))
    finally:
        engine.module.train(was_training)
    return Totals(*engine.ranks.sum(totals.values()))


def _score(engine: TrainingEngine, batch: TrainingBatch, counts: torch.Tensor) -> Totals:
    batch = engine.to_device(batch)
    weights = batch.loss_weights * counts[:, None].to(batch.loss_weights)
    lengths = batch.patch_lengths[counts.to(batch.patch_lengths.device), batch.left_patches :]
    # The byte in front of a window is a patch of its own, and no base of it.
    num_front = 0 if batch.left_patches else len(lengths)
    num_exact, num_judged = 0.0, 0.0
    if engine.objective == "next_base":
        nats = engine.score(batch, weights).nats
    else:
        logits = engine.logits(batch)
        nats = weighted_nats(logits, batch.bases, weights, engine.class_of_byte)
        classes = engine.class_of_byte[batch.bases]
        is_scored = (weights > 0) & (classes >= 0) & (classes < len(BASES))
        wrong, is_judged = wrong_bases(logits, batch.bases, batch.patch_lengths, engine.class_of_byte, is_scored)
        num_exact, num_judged = float((is_judged & (wrong == 0)).sum()), float(is_judged.sum())
    return Totals(
        nats=float(nats),
        weight=float(scored_weight(weights)),
        bases=float(lengths.sum()) - num_front,
        patches=float((lengths > 0).sum()) - num_front,
        exact_patches=num_exact,
        judged_patches=num_judged,
    )
