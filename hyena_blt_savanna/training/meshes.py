"""Which numbers of ranks a run's stages can be shared out among, and how many of those given it takes."""

from __future__ import annotations

import logging

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.parallel.mesh import Mesh, ParallelConfig
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.schedule import ScheduleError

logger = logging.getLogger(__name__)


def check_meshes(config: RunConfig, num_ranks: int) -> None:
    """Refuses stages that the ranks of a run can't be shared out for, before anything is allocated.

    Raises:
        ConfigError: the ranks are no multiple of a stage's context ranks.
        ScheduleError: the batch of a stage can't be shared among the ranks.
    """
    for index, stage in enumerate(config.training.stages):
        shared = ParallelConfig(context=config.num_context(index))
        mesh = Mesh.of(shared, 0, num_ranks, config.context_key(index))
        try:
            for part in stage.parts:
                part.micro_batch(mesh.num_data)
        except ScheduleError as error:
            raise ScheduleError(f"training.stages.{index}: {error}") from None


def fitting_ranks(config: RunConfig, num_given: int) -> int:
    """How many of the ranks that a launcher gave a run goes on with.

    All of them where `parallel.least_ranks` is null, whether they fit or not. Otherwise the most that share every
    stage's batch evenly; the fewer they are, the more micro batches each has in a step.

    Raises:
        ConfigError: no number from `parallel.least_ranks` on fits.
    """
    least, most = config.parallel.least_ranks, config.parallel.most_ranks
    if least is None:
        return num_given
    for num_ranks in range(min(num_given, most or num_given), least - 1, -1):
        try:
            check_meshes(config, num_ranks)
        except (ConfigError, ScheduleError):
            continue
        return num_ranks
    raise ConfigError(
        f"{num_given} ranks were started, and no number of them from parallel.least_ranks {least} on can share the "
        "batch of every stage evenly: start more, lower parallel.least_ranks, or give the stages a batch_windows and "
        "a micro_batch_windows with more divisors"
    )
