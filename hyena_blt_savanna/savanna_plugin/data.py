"""Windows with their patches for Savanna's loop: our datasets, blended by Savanna's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.batches import Batch, BatchLoader, EvaluationWindows, TrainingSamples, read_batch
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.slices import read_slices
from hyena_blt_savanna.data.windows import FoundWindow
from hyena_blt_savanna.savanna_plugin.blending import Blend
from hyena_blt_savanna.savanna_plugin.settings import Settings
from hyena_blt_savanna.training.loss import scored_weight


class Place(NamedTuple):
    """This rank among Savanna's data and context ranks."""

    data: int
    num_data: int
    context: int
    num_context: int


class ScaledBatch(NamedTuple):
    """A micro batch, and what its nats are divided by: the scored weight of its whole step, over all ranks."""

    batch: Batch
    total_weight: float
    num_micro_batches: int


class BlendedSamples(TrainingSamples):
    """Training windows of several datasets, in the order in which Savanna's BlendableDataset takes their samples.

    Args:
        samples: of each dataset.
        weights: of each, above nothing.
    """

    def __init__(self, samples: Sequence[TrainingSamples], weights: Sequence[float]) -> None:
        # Not the base's: this one reads nothing itself.
        self.parts = list(samples)
        self.blend = Blend(weights)
        self.path = samples[0].path
        self.repeat_weight = samples[0].repeat_weight

    @property
    def num_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    @property
    def longest_patch_bases(self) -> int:
        return max(part.longest_patch_bases for part in self.parts)

    def num_windows(self, window_bases: int) -> int:
        return sum(part.num_windows(window_bases) for part in self.parts)

    def find(self, stage: int | str, window_bases: int, global_index: int, progress: float = 1.0) -> FoundWindow:
        part, index = self.blend.place_of(global_index)
        return self.parts[part].find(stage, window_bases, index, progress)


def open_samples(settings: Settings, seed: int) -> TrainingSamples:
    """The windows that are trained on.

    Args:
        settings: of the run; paths and weights are Savanna's keys.
        seed: decides the order.

    Raises:
        DataError: the data or the boundaries are missing, broken, too short, or don't belong together; or a patch is
            longer than the model has places for.
    """
    block, paths = settings.block, settings.get("train_data_paths")
    parts = [
        TrainingSamples(
            Path(path), block.annotation, block.strands, seed, settings.repeat_weight, block.window_patches - 1
        )
        for path in paths
    ]
    samples = (
        parts[0] if len(parts) == 1 else BlendedSamples(parts, settings.get("train_data_weights", [1.0] * len(parts)))
    )
    samples.num_windows(settings.window_bases)
    longest, places = samples.longest_patch_bases, settings.model.max_patch_bases
    if longest > places:
        raise DataError(
            f"{', '.join(paths)}: patches of up to {longest} bases, and the model has places for {places}: set "
            f"hyena-blt.model.max_patch_bases to {longest}, or annotate with a smaller rule.max_patch_bases"
        )
    return samples


def training_batches(
    settings: Settings, samples: TrainingSamples, place: Place, batch_windows: int, micro: int, start_step: int
) -> BatchLoader:
    """This rank's micro batches from a step on, prepared by a thread ahead of their use."""
    return BatchLoader(
        samples,
        0,
        settings.window_bases,
        batch_windows,
        place.data,
        place.num_data,
        micro,
        start_step,
        batch_of=lambda windows: batch_of(windows, settings, place, settings.repeat_weight),
    )


def batch_of(windows: Sequence[FoundWindow], settings: Settings, place: Place, repeat_weight: float) -> Batch:
    """Windows as the model takes them on this rank: whole, or its slices.

    Args:
        windows: at least one.
        settings: of the run.
        place: of this rank.
        repeat_weight: weight of repeat-masked bases as targets.
    """
    if place.num_context == 1:
        return read_batch(windows, repeat_weight)
    # Savanna's blocks take all of their positions: padding is behind all slices, not behind each.
    positions = settings.block.window_patches if settings.block.global_blocks == "savanna" else None
    num_left = settings.model.num_left_patches
    return read_slices(windows, repeat_weight, place.context, place.num_context, num_left, positions)


def evaluation_batches(settings: Settings, paths: Sequence[str], place: Place, micro: int, num: int) -> Iterator[Batch]:
    """Micro batches of whole windows for evaluation, the same ones each time it comes round.

    Windows are spread evenly over all datasets, so that a few tell about all of them.

    Args:
        settings: of the run.
        paths: of the datasets.
        place: of this rank.
        micro: windows of a micro batch.
        num: micro batches of one evaluation on each data rank.

    Raises:
        DataError: the data or the boundaries are missing, broken, or don't belong together; or a window has more
            patches than the model has positions.
    """
    sets = [
        EvaluationWindows(Path(path), settings.block.annotation, "forward", settings.window_bases) for path in paths
    ]
    sizes = np.array([len(windows) for windows in sets])
    wanted = num * micro * place.num_data
    chosen = np.arange(wanted) * int(sizes.sum()) // wanted
    own = chosen.reshape(num, place.num_data, micro)[:, place.data]
    ends = np.cumsum(sizes)

    def window(index: int) -> FoundWindow:
        part = int(np.searchsorted(ends, index, side="right"))
        return sets[part].find(index - int(ends[part] - sizes[part]))

    if settings.block.global_blocks == "savanna":
        _check_fits(own, window, settings)
    batches = ([window(int(index)) for index in indices] for indices in cycle(own))
    return (batch_of(windows, settings, place, repeat_weight=1.0) for windows in batches)


def _check_fits(own: NDArray[np.int64], window: Callable[[int], FoundWindow], settings: Settings) -> None:
    longest = max(len(window(int(index)).patch_lengths) for index in own.flat) + 1
    if longest > settings.block.window_patches:
        raise DataError(
            f"a window of the evaluation has {longest} patches, the byte in front included, and evaluation cuts none "
            f"off: set hyena-blt.window_patches, which is {settings.block.window_patches}, to at least {longest}"
        )


class ScaledBatches(Iterator[ScaledBatch]):
    """Micro batches, each with the scored weight of its whole step.

    Savanna asks for one micro batch at a time, and the loss is divided by the weight of all of them: those of a step
    are taken from the loader together.

    Args:
        batches: of this rank.
        num_micro_batches: of a step.
        sum_over_ranks: of a number; all data and context ranks call it for each step.
    """

    def __init__(
        self, batches: Iterator[Batch], num_micro_batches: int, sum_over_ranks: Callable[[float], float]
    ) -> None:
        self._batches, self._num, self._sum = batches, num_micro_batches, sum_over_ranks
        self._step: list[ScaledBatch] = []

    def __next__(self) -> ScaledBatch:
        if not self._step:
            batches = list(islice(self._batches, self._num))
            if len(batches) < self._num:
                raise StopIteration
            total = self._sum(sum(float(scored_weight(batch.loss_weights)) for batch in batches))
            self._step = [ScaledBatch(batch, total, self._num) for batch in batches]
        return self._step.pop(0)
