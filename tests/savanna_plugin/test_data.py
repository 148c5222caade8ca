"""What a run inside Savanna reads, without Savanna's code."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hyena_blt_savanna.data.batches import Batch, EvaluationWindows, TrainingSamples, collate, read_batch
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.slices import slice_batch
from hyena_blt_savanna.savanna_plugin.data import (
    Place,
    ScaledBatches,
    batch_of,
    evaluation_batches,
    open_samples,
    training_batches,
)
from hyena_blt_savanna.savanna_plugin.settings import Settings, read_settings
from hyena_blt_savanna.testing.savanna_runs import configuration

ALONE = Place(0, 1, 0, 1)


def settings(tmp_path: Path, data: Path, **changes: Any) -> Settings:
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(configuration(data, **changes)))
    return read_settings([path])


def same(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(Batch)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def test_datasets_are_blended(tmp_path: Path, toy_data: Path) -> None:
    paths = [str(toy_data / "train"), str(toy_data / "validation")]
    found = settings(tmp_path, toy_data, train_data_paths=paths, train_data_weights=[3.0, 1.0])
    samples = open_samples(found, seed=5)
    assert samples.num_windows(128) == sum(TrainingSamples(Path(path), seed=5).num_windows(128) for path in paths)
    parts = [TrainingSamples(Path(path), "patches", "both", 5, 0.5, 63) for path in paths]
    # By shares of three quarters and one: the second has its turn as soon as it is behind.
    order = [(0, 0), (1, 0), (0, 1), (0, 2), (0, 3), (1, 1)]
    loader = training_batches(found, samples, ALONE, 6, 6, 0)
    assert same(next(iter(loader)), collate([parts[part].sample(0, 128, index) for part, index in order], 0.5))
    loader.close()


def test_patches_longer_than_places_are_refused(tmp_path: Path, toy_data: Path) -> None:
    found = settings(tmp_path, toy_data, blt_model={"local_width": 16, "max_patch_bases": 4})
    with pytest.raises(DataError, match=r"patches of up to 8 bases.*set hyena-blt.model.max_patch_bases to 8"):
        open_samples(found, seed=5)


def test_context_ranks_read_their_slices(tmp_path: Path, toy_data: Path) -> None:
    for blocks, positions in (("ours", None), ("savanna", 64)):
        found = settings(tmp_path, toy_data, blt_global_blocks=blocks, context_parallel_size=2)
        windows = [open_samples(found, seed=5).find(0, 128, index) for index in range(2)]
        whole = read_batch(windows, 0.5)
        if positions is not None:
            spare = positions - whole.patch_lengths.shape[1]
            whole = replace(whole, patch_lengths=torch.nn.functional.pad(whole.patch_lengths, (0, spare)))
        num_left = found.model.num_left_patches
        for rank in range(2):
            assert same(batch_of(windows, found, Place(0, 1, rank, 2), 0.5), slice_batch(whole, rank, 2, num_left))


def test_evaluations_are_the_same_windows_each_time(tmp_path: Path, toy_data: Path) -> None:
    found = settings(tmp_path, toy_data)
    paths = [str(toy_data / name) for name in ("validation", "train")]
    sets = [EvaluationWindows(Path(path), window_bases=128) for path in paths]
    everything = [windows.find(index) for windows in sets for index in range(len(windows))]
    # Two micro batches of three windows on each of two ranks: twelve, evenly over both datasets.
    chosen = [index * len(everything) // 12 for index in range(12)]
    for rank, own in enumerate(((0, 6), (3, 9))):
        batches = evaluation_batches(found, paths, Place(rank, 2, 0, 1), 3, 2)
        for first in (*own, *own):
            windows = [everything[index] for index in chosen[first : first + 3]]
            assert same(next(batches), read_batch(windows, 1.0))


def test_a_step_has_one_weight() -> None:
    def batch(weight: float) -> Batch:
        bases = torch.full((1, 3), 65)
        return Batch(bases, torch.tensor([[1, 2]], dtype=torch.int32), torch.tensor([[9.0, weight, 1.0]]))

    batches = ScaledBatches(iter([batch(weight) for weight in (1, 2, 3, 4, 5)]), 2, lambda weight: 10 * weight)
    # The first base of a row is no target. What is left of the last step is no step.
    assert [(scaled.total_weight, scaled.num_micro_batches) for scaled in batches] == [(50, 2)] * 2 + [(90, 2)] * 2
