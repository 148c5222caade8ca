"""What a rank holds of weights, gradients and AdamW's averages under ZeRO, and what DeepSpeed takes beside them.

Counted in copies of the weights in fp32, 4 bytes each, as this project trains them: n of the trained weights, f of the
frozen ones. W ranks share what a stage of ZeRO cuts.

| stage | parameters | gradients | optimizer | reducing | updating |
|---|---|---|---|---|---|
| 0 | n + f | n | 2 n | n, at most 500 million at once | |
| 1 | n + f | n; n / W when reduced | 3 n / W | bucket, n / W | n / W |
| 2 | n + f | n / W, twice in further micro batches | 3 n / W | bucket | n / W |
| 3 | (n + f) / W | n / W | 3 n / W | bucket, gathered weights | n / W |

From stage 1 on, the rank's share of the weights lies beside the optimizer once more. A bucket of `reduce_bucket_size`
weights lies there during each backward pass, two with overlap_comm. Stage 3 gathers weights around the modules that
read them: up to `stage3_max_live_parameters`, and `stage3_prefetch_bucket_size` are on their way; parameters of at most
`stage3_param_persistence_threshold` weights stay whole beside their shares. Offloaded, what belongs to the optimizer
lies in the host's memory, and under stage 3 the rank's share of the weights too if that is asked for.

Source: measured as live bytes under DeepSpeed 0.19.8 with torch's AdamW, on 1 and 2 ranks (bench/planning.py); the
names and defaults are DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyena_blt_savanna.training.rehearsal import GRADIENTS, PARAMETERS

OPTIMIZER, COLLECTIVES = "optimizer", "collectives"
WEIGHT_BYTES = 4
PLAIN_BUCKET = 500_000_000
"""Weights whose gradients DeepSpeed sums over ranks at once without ZeRO."""

Parts = dict[str, float]


@dataclass(frozen=True)
class ZeroSettings:
    """What DeepSpeed's `zero_optimization` says about memory.

    Attributes:
        stage: 0 to 3.
        offload_optimizer: whether optimizer state and reduced gradients lie in the host's memory.
        offload_parameters: whether the weights do, under stage 3.
        bucket: weights whose gradients are reduced at once.
        num_buckets: at a time.
        prefetch: weights that are gathered ahead, under stage 3.
        max_live: weights that are kept gathered, likewise.
        persistent: weights of the largest parameter that is never cut, likewise.
        sub_group: weights that are updated at once, likewise.
    """

    stage: int = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    bucket: int = 500_000_000
    num_buckets: int = 1
    prefetch: int = 50_000_000
    max_live: int = 1_000_000_000
    persistent: int = 100_000
    sub_group: int = 1_000_000_000

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> ZeroSettings:
        """What a whole DeepSpeed block says."""
        zero = block.get("zero_optimization", {})
        stage = int(zero.get("stage", 0))

        def is_offloaded(key: str) -> bool:
            return (zero.get(key) or {}).get("device", "none") != "none"

        return cls(
            stage,
            is_offloaded("offload_optimizer"),
            is_offloaded("offload_param"),
            int(zero.get("reduce_bucket_size", cls.bucket)),
            2 if zero.get("overlap_comm", stage == 3) and stage < 3 else 1,
            int(zero.get("stage3_prefetch_bucket_size", cls.prefetch)),
            int(zero.get("stage3_max_live_parameters", cls.max_live)),
            int(zero.get("stage3_param_persistence_threshold", cls.persistent)),
            int(zero.get("sub_group_size", cls.sub_group)),
        )


@dataclass
class StateMemory:
    """Bytes on one rank's device, by part; and in the host's memory.

    Attributes:
        resting: what is there all the time, from the second step on.
        starting: while DeepSpeed takes the model over, in place of what rests.
        passing: besides, in a forward and a backward pass.
        keeps_gradients: whether a pass leaves all gradients of weights where they come to be.
        reducing: besides what rests, after the last backward pass of a step.
        updating: besides what rests.
        host_bytes: that lie with the host instead.
    """

    resting: Parts
    starting: Parts
    passing: Parts
    keeps_gradients: bool
    reducing: Parts
    updating: Parts
    host_bytes: float = 0.0


@dataclass(frozen=True)
class Weights:
    """How many weights there are, and on how many ranks.

    Attributes:
        sizes: of each parameter.
        num_trained: with gradients; the others are frozen.
        num_ranks: W, data times context ranks.
        buckets_are_touched: whether a bucket takes its whole size, as on a GPU; a CPU's takes what is written to it.
    """

    sizes: tuple[int, ...]
    num_trained: int
    num_ranks: int
    buckets_are_touched: bool = True


def state_memory(zero: ZeroSettings, weights: Weights, accumulates: bool) -> StateMemory:
    """What a rank holds besides what its passes make.

    Args:
        zero: of the run.
        weights: of the model.
        accumulates: whether a step has several micro batches.
    """
    trained = WEIGHT_BYTES * weights.num_trained
    if zero.stage == 0:
        everything = WEIGHT_BYTES * sum(weights.sizes)
        flat = min(trained, WEIGHT_BYTES * PLAIN_BUCKET) if weights.num_ranks > 1 else 0
        return StateMemory(
            resting={PARAMETERS: everything, OPTIMIZER: 2 * trained},
            starting={PARAMETERS: everything},
            passing={GRADIENTS: trained} if accumulates else {},
            keeps_gradients=not accumulates,
            reducing={GRADIENTS: trained, COLLECTIVES: flat},
            updating={GRADIENTS: trained},
        )
    bucket: float = WEIGHT_BYTES * zero.bucket * zero.num_buckets
    if not weights.buckets_are_touched:
        bucket = min(bucket, trained)
    share = trained / weights.num_ranks
    if zero.stage == 3:
        return _stage_3(zero, weights, bucket, share)
    return _stage_1_or_2(zero, weights, accumulates, bucket, share)


def _stage_1_or_2(zero: ZeroSettings, weights: Weights, accumulates: bool, bucket: float, share: float) -> StateMemory:
    trained, everything = WEIGHT_BYTES * weights.num_trained, WEIGHT_BYTES * sum(weights.sizes)
    keeps_all = zero.stage == 1
    reduced = 0.0 if keeps_all else (2 if accumulates else 1) * share
    # While a bucket that holds all gradients is reduced, it takes the place of what comes out.
    being_reduced = share if keeps_all and bucket < trained else 0
    memory = StateMemory(
        resting={PARAMETERS: everything, OPTIMIZER: 3 * share},
        starting={PARAMETERS: everything, COLLECTIVES: trained},
        passing={GRADIENTS: trained if keeps_all and accumulates else reduced, COLLECTIVES: bucket},
        keeps_gradients=keeps_all and not accumulates,
        reducing={GRADIENTS: trained if keeps_all else reduced, COLLECTIVES: bucket + being_reduced},
        updating={GRADIENTS: share, COLLECTIVES: share},
    )
    if zero.offload_optimizer:
        # The host has the share of the weights twice, the gradients and both averages; under stage 2 also the sum of
        # the micro batches. A buffer for the largest parameter's gradient is there and on the device.
        largest = WEIGHT_BYTES * max(weights.sizes)
        memory.resting[OPTIMIZER] = largest
        memory.passing[GRADIENTS] = trained if keeps_all and accumulates else 0
        memory.reducing = {GRADIENTS: trained if keeps_all else 0, COLLECTIVES: bucket}
        memory.updating = {}
        memory.host_bytes = share * (6 if accumulates and not keeps_all else 5) + largest
    return memory


def _stage_3(zero: ZeroSettings, weights: Weights, bucket: float, share: float) -> StateMemory:
    everything = WEIGHT_BYTES * sum(weights.sizes)
    kept_whole, gathered = 0, 0
    if weights.num_ranks > 1:
        kept_whole = WEIGHT_BYTES * sum(size for size in weights.sizes if size <= zero.persistent)
        cut = everything - kept_whole
        # What a module reads is gathered however large it is.
        most = max(zero.max_live, max(weights.sizes))
        gathered = min(cut, WEIGHT_BYTES * most) + min(cut, WEIGHT_BYTES * zero.prefetch)
    parameters = everything / weights.num_ranks
    memory = StateMemory(
        resting={PARAMETERS: parameters + kept_whole, GRADIENTS: share, OPTIMIZER: 3 * share, COLLECTIVES: bucket},
        starting={PARAMETERS: everything, COLLECTIVES: bucket},
        passing={COLLECTIVES: gathered},
        keeps_gradients=False,
        reducing={COLLECTIVES: gathered},
        updating={COLLECTIVES: min(share, WEIGHT_BYTES * zero.sub_group)},
    )
    if zero.offload_optimizer:
        memory.resting |= {GRADIENTS: 0, OPTIMIZER: 0}
        memory.updating = {}
        memory.host_bytes = 5 * share
    if zero.offload_parameters:
        memory.resting[PARAMETERS] = kept_whole
        memory.host_bytes += parameters
    return memory
