"""Mixtures: training windows of several sources, in proportions that hold exactly in every block of the order.

Which source a sample is of, and which of that source's windows it is, follow from the seed and the sample's place
alone, in constant time and memory: within each block of 1,048,576 samples a keyed permutation deals out the places,
so many to each source as its weight says (by largest remainders), and a source's windows are counted through all
blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.batches import TrainingSamples
from hyena_blt_savanna.data.order import keyed_permutation, order_key
from hyena_blt_savanna.data.windows import FoundWindow

BLOCK_SAMPLES = 1 << 20


class MixtureSourceConfig(Config):
    """One source of a mixture."""

    path: Path
    """Folder of a source, as tools/prepare_genomes.py leaves it; or of a dataset, with train.bin; or a dataset's path
    without suffix, which is trained on and never validated on."""
    weight: float = Field(ge=0.0, allow_inf_nan=False)
    """Share of the training windows, in any unit; 0: validated on, not trained on."""
    name: str = ""
    """What it is called in metrics; the last part of the path where it is left out."""

    @model_validator(mode="after")
    def _name(self) -> Self:
        # The instance is frozen for everyone else.
        object.__setattr__(self, "name", self.name or self.path.name)
        return self


def check_sources(sources: Sequence[MixtureSourceConfig]) -> None:
    """Refuses what can't be mixed.

    Raises:
        ValueError: two sources have one name, no weight is above zero, or one is so small that none of a block's
            samples is of its source.
    """
    names = Counter(source.name for source in sources)
    double = [name for name, num in names.items() if num > 1]
    if double:
        raise ValueError(f"{', '.join(double)}: several sources of one name; give each a name of its own (key name)")
    used = [source for source in sources if source.weight > 0]
    if not used:
        raise ValueError("all weights are 0: give a source that is to be trained on a weight above 0")
    for source, count in zip(used, block_counts([source.weight for source in used]).tolist(), strict=True):
        if not count:
            raise ValueError(
                f"{source.name} has weight {source.weight:g}, which is none of {BLOCK_SAMPLES:,} samples: give it a "
                "larger weight, or 0"
            )


class MixturePart(NamedTuple):
    """One source of a mixture.

    Attributes:
        weight: share of the samples, in any unit; above 0.
        samples: its windows.
    """

    weight: float
    samples: TrainingSamples


def block_counts(weights: Sequence[float]) -> NDArray[np.int64]:
    """How many samples of a block each source has: its share, rounded so that the sum is the block.

    Args:
        weights: above 0.

    Returns:
        int64 [N], by largest remainders; of equal remainders the first come first.
    """
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum() * BLOCK_SAMPLES
    counts = np.floor(shares).astype(np.int64)
    by_remainder = np.argsort(counts - shares, kind="stable")
    counts[by_remainder[: BLOCK_SAMPLES - int(counts.sum())]] += 1
    return counts


class MixtureOrder:
    """Which source each sample is of.

    Args:
        counts: samples of a block that each source has, int64 [N]; they sum to the block.
        seed: decides the order.
    """

    def __init__(self, counts: NDArray[np.int64], seed: int) -> None:
        assert int(counts.sum()) == BLOCK_SAMPLES
        self._counts, self._ends, self._seed = counts, np.cumsum(counts), seed

    def place(self, stage: int | str, global_index: int) -> tuple[int, int]:
        """Where a sample comes from.

        Args:
            stage: each has an order of its own.
            global_index: place of the sample in the stage, counted over all ranks, from 0.

        Returns:
            Index of the source, and the sample's place among those of the source in this stage.
        """
        block, place = divmod(global_index, BLOCK_SAMPLES)
        dealt = keyed_permutation(place, BLOCK_SAMPLES, order_key(self._seed, stage, block, "sources"))
        source = int(np.searchsorted(self._ends, dealt, side="right"))
        count = int(self._counts[source])
        return source, block * count + dealt - (int(self._ends[source]) - count)


class MixtureSamples:
    """An endless sequence of training windows of several sources, each a pure function of its place in it.

    Args:
        parts: the sources, at least one; see `check_sources`.
        seed: decides which source each sample is of.
    """

    def __init__(self, parts: Sequence[MixturePart], seed: int) -> None:
        self._samples = [part.samples for part in parts]
        self._order = MixtureOrder(block_counts([part.weight for part in parts]), seed)

    @property
    def repeat_weight(self) -> float:
        """Weight of repeat-masked bases as targets."""
        return self._samples[0].repeat_weight

    @property
    def longest_patch_bases(self) -> int:
        """No window has a longer patch."""
        return max(samples.longest_patch_bases for samples in self._samples)

    def check_share(self, window_bases: int, num_ranks: int, micro_batch_windows: int) -> None:
        """Refuses sources that are shorter than a window.

        A source may have fewer windows than a step takes of it, in another epoch of its own.

        Raises:
            DataError: so it is; see `TrainingSamples.num_windows`.
        """
        for samples in self._samples:
            samples.num_windows(window_bases)

    def find(self, stage: int | str, window_bases: int, global_index: int, progress: float = 1.0) -> FoundWindow:
        """One window of training; see `TrainingSamples.find`."""
        source, index = self._order.place(stage, global_index)
        return self._samples[source].find(stage, window_bases, index, progress)
