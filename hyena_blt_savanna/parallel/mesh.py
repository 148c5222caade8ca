"""The mesh of data times context ranks: who holds a slice of which sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pydantic import PositiveInt, model_validator
from torch import distributed as dist

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel
from hyena_blt_savanna.parallel.group_context import GroupContext


class ParallelConfig(Config):
    """How ranks share the work."""

    context: PositiveInt = 1
    """Ranks that hold slices of the same windows (C); the other ranks have windows of their own."""
    least_ranks: PositiveInt | None = None
    """Fewest ranks to train with, where the cluster gives more or fewer from start to start; null: those that are given
    must share the batch evenly."""
    most_ranks: PositiveInt | None = None
    """Most ranks to train with; those beyond leave at once. Needs least_ranks."""

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.most_ranks is not None and (self.least_ranks is None or self.most_ranks < self.least_ranks):
            raise ValueError(
                f"most_ranks {self.most_ranks} needs a least_ranks of 1 to {self.most_ranks}, "
                f"and least_ranks is {self.least_ranks}"
            )
        return self


@dataclass(frozen=True)
class Mesh:
    """A rank's place among data times context ranks.

    Context ranks of one window are neighbours, so that they come to lie on one node: rank = data * C + context.

    Attributes:
        num_data: groups of ranks with windows of their own.
        num_context: C, ranks of a group.
        data: which group this is.
        context: which slice is held here.
    """

    num_data: int
    num_context: int
    data: int
    context: int

    @classmethod
    def of(cls, config: ParallelConfig, rank: int, num_ranks: int, key: str = "parallel.context") -> Mesh:
        """The place of a rank.

        Args:
            config: of the mesh.
            rank: from 0.
            num_ranks: of the run.
            key: what sets the context ranks, for the message.

        Raises:
            ConfigError: the ranks can't be shared out.
        """
        if num_ranks % config.context:
            fitting = [count for count in range(1, num_ranks + 1) if num_ranks % count == 0]
            raise ConfigError(
                f"{key} = {config.context} does not divide the {num_ranks} ranks of this run; "
                f"choose from {', '.join(map(str, fitting))}, or start a multiple of {config.context} ranks"
            )
        data, context = divmod(rank, config.context)
        return cls(num_ranks // config.context, config.context, data, context)

    def build_context(self) -> ContextParallel:
        """What the model's layers exchange through. Every rank calls, when `torch.distributed` is set up."""
        if self.num_context == 1:
            return SINGLE_RANK
        ranks = range(self.num_data * self.num_context)
        members = [list(ranks[start : start + self.num_context]) for start in ranks[:: self.num_context]]
        group, _ = dist.new_subgroups_by_enumeration(members)
        assert group is not None
        return GroupContext(group)
