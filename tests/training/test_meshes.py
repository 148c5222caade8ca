"""How many ranks a run goes on with, of those that a cluster gave it."""

from __future__ import annotations

import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.training.meshes import check_meshes, fitting_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.schedule import ScheduleError


def load(toy_config, *overrides: str) -> RunConfig:
    return RunConfig.load([toy_config, "run=runs/x", *overrides])


@pytest.mark.parametrize(
    ("given", "limits", "used"),
    [
        (3, [], 3),
        (4, ["parallel.least_ranks=1"], 4),
        (3, ["parallel.least_ranks=1"], 2),
        (2, ["parallel.least_ranks=2"], 2),
        (64, ["parallel.least_ranks=1"], 4),
        (64, ["parallel.least_ranks=1", "parallel.most_ranks=3"], 2),
        # The second stage's micro batches of one window are what more ranks would have fewer of.
        (8, ["parallel.least_ranks=1", "training.stages.0.batch_windows=8"], 4),
        # Four windows for each pair of context ranks.
        (9, ["parallel.least_ranks=2", "parallel.context=2"], 8),
        (7, ["parallel.least_ranks=2", "parallel.context=2"], 4),
    ],
)
def test_the_most_ranks_that_share_the_batch_evenly(toy_config, given, limits, used):
    config = load(toy_config, *limits)
    assert fitting_ranks(config, given) == used
    if limits:
        check_meshes(config, used)


def test_too_few_ranks_are_refused(toy_config):
    with pytest.raises(ConfigError, match=r"3 ranks were started, and no number of them from parallel\.least_ranks 3"):
        fitting_ranks(load(toy_config, "parallel.least_ranks=3"), 3)
    with pytest.raises(ScheduleError, match=r"training\.stages\.0: batch_windows 4 can't be divided among 3"):
        check_meshes(load(toy_config), 3)
    for limits in (["parallel.most_ranks=2"], ["parallel.most_ranks=2", "parallel.least_ranks=3"]):
        with pytest.raises(ConfigError, match="most_ranks 2 needs a least_ranks of 1 to 2"):
            load(toy_config, *limits)
