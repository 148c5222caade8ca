"""Stages and the learning rate."""

from __future__ import annotations

import pytest
import torch

from hyena_blt_savanna.training.schedule import (
    Place,
    ScheduleConfig,
    ScheduleError,
    StageConfig,
    learning_rate,
    place_of,
    total_steps,
)

STAGES = [
    StageConfig(steps=3, window_bases=1024, batch_windows=8),
    StageConfig(steps=2, window_bases=2048, batch_windows=4, micro_batch_windows=1),
]


def test_each_step_has_its_place():
    assert total_steps(STAGES) == 5
    assert [place_of(step, STAGES) for step in range(5)] == [
        Place(0, 0),
        Place(0, 1),
        Place(0, 2),
        Place(1, 0),
        Place(1, 1),
    ]


def test_a_length_warmup_is_stages_of_its_own():
    """Steps, window, batch and micro batch of each part."""
    warmup = {"steps": 7, "from_bases": 256}
    stage = StageConfig(steps=20, window_bases=2048, batch_windows=4, micro_batch_windows=2, length_warmup=warmup)
    found = [(part.steps, part.window_bases, part.batch_windows, part.micro_batch_windows) for part in stage.parts]
    assert found == [(2, 256, 32, 16), (2, 512, 16, 8), (3, 1024, 8, 4), (13, 2048, 4, 2)]
    assert all(part.parts == [part] for part in stage.parts)
    parts = [stage.parts[index] for index in (0, 0, 1, 1, 2, 2, 2, *[3] * 13)]
    assert [stage.part_at(step) for step in range(20)] == [
        (part, parts[:step].count(part)) for step, part in enumerate(parts)
    ]
    # A rank's share of the batch divides as the stage's does.
    whole_share = stage.model_copy(update={"micro_batch_windows": None})
    assert [part.micro_batch(2) for part in whole_share.parts] == [16, 8, 4, 2]
    assert place_of(STAGES[0].steps + 6, [STAGES[0], stage]) == Place(1, 6)


def test_a_batch_is_divided_evenly():
    assert [STAGES[0].micro_batch(ranks) for ranks in (1, 2, 4, 8)] == [8, 4, 2, 1]
    assert [STAGES[0].num_micro_batches(ranks) for ranks in (1, 2)] == [1, 1]
    assert [STAGES[1].num_micro_batches(ranks) for ranks in (1, 2, 4)] == [4, 2, 1]


@pytest.mark.parametrize(
    ("stage", "num_ranks", "says"),
    [
        (STAGES[1], 5, r"more ranks \(5\) than windows in a step \(batch_windows: 4\): use at most 4 ranks"),
        (STAGES[0], 3, r"8 can't be divided among 3 rank\(s\) in micro batches of 2: make it a multiple of 6"),
    ],
)
def test_a_batch_that_can_not_be_divided(stage, num_ranks, says):
    with pytest.raises(ScheduleError, match=says):
        stage.micro_batch(num_ranks)


@pytest.mark.parametrize("warmup_steps", [0, 7])
def test_learning_rate_is_torchs(warmup_steps):
    """torch's linear warm-up followed by its cosine annealing, step by step."""
    num_steps, peak, ratio = 40, 2e-3, 0.1
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=peak)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps - 1 - warmup_steps, eta_min=peak * ratio)
    found = [
        learning_rate(step, num_steps, peak, ScheduleConfig(warmup_steps=warmup_steps)) for step in range(num_steps)
    ]
    for step in range(warmup_steps):
        assert found[step] == pytest.approx(peak * (step + 1) / (warmup_steps + 1))
    for step in range(warmup_steps, num_steps):
        assert found[step] == pytest.approx(cosine.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        cosine.step()
    assert found[-1] == pytest.approx(peak * ratio)


def test_a_warmup_longer_than_the_run():
    assert learning_rate(4, 5, 1.0, ScheduleConfig(warmup_steps=100)) == pytest.approx(5 / 101)
