"""How full a rank's device gets in a training step, when, and of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyena_blt_savanna.training.rehearsal import PARAMETERS, Rehearsal
from hyena_blt_savanna.training.state_memory import Parts, Weights, ZeroSettings, state_memory

OFFLOADED = "offloaded"
"""What lies with the host, where ranks have no other memory."""


@dataclass(frozen=True)
class RankMemory:
    """A rank's device at its fullest.

    Attributes:
        moment: when that is: starting, forward and backward, summing gradients over ranks, updating weights.
        parts: bytes at that moment.
        host_bytes: of this rank in the host's memory, where something is offloaded.
    """

    moment: str
    parts: Parts
    host_bytes: float

    @property
    def total_bytes(self) -> float:
        """On the device."""
        return sum(self.parts.values())


def rank_memory(found: Rehearsal, zero: ZeroSettings, num_ranks: int, accumulates: bool, is_gpu: bool) -> RankMemory:
    """What a training needs of a rank, from its second step on.

    Args:
        found: what a pass makes.
        zero: DeepSpeed's settings.
        num_ranks: that share what ZeRO cuts.
        accumulates: whether a step has several micro batches.
        is_gpu: False where ranks have the host's memory alone.
    """
    state = state_memory(zero, Weights(found.sizes, found.num_trained, num_ranks, is_gpu), accumulates)
    made = found.with_gradients if state.keeps_gradients else found.without_gradients
    always = _sum(state.resting, {PARAMETERS: found.buffer_bytes}, {} if is_gpu else {OFFLOADED: state.host_bytes})
    moments = {
        "starting": state.starting,
        "forward and backward": _sum(always, state.passing, made),
        "summing gradients over ranks": _sum(always, state.reducing),
        "updating weights": _sum(always, state.updating),
    }
    moment = max(moments, key=lambda name: sum(moments[name].values()))
    return RankMemory(moment, moments[moment], state.host_bytes)


def _sum(*parts: Mapping[str, float]) -> Parts:
    names = dict.fromkeys(name for each in parts for name in each)
    return {name: sum(each.get(name, 0) for each in parts) for name in names}
