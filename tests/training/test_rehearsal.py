"""A rehearsed pass keeps what a real one keeps, to the byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.parallel.context import SINGLE_RANK
from hyena_blt_savanna.testing.measured_memory import MemoryCase, live_bytes_and_parts
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training.live_memory import LiveMemory
from hyena_blt_savanna.training.rank_memory import rank_memory
from hyena_blt_savanna.training.rehearsal import Pass, batch_of, count_pass, rehearse
from hyena_blt_savanna.training.state_memory import ZeroSettings

APART = ("parameters", "gradients")
STACK = {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"]}
KEPT = {**STACK, "activation_checkpointing": True}
GATED = {"blocks": ["gated_convolution"], "num_taps": 3, "hidden_width": 24}
HYBRID: dict[str, Any] = {
    "kind": "hyena_blt",
    "local_width": 8,
    "kmers": {"sizes": [2, 3]},
    "encoder": GATED,
    "global_model": STACK,
    "decoder": GATED,
}
ATTENTIVE = {
    "encoder": {"blocks": ["attention"], "attention": {"window": 16}, "to_patches": {"kind": "summary"}},
    "global_model": {**STACK, "blocks": ["hyena_li"]},
    "decoder": {"blocks": ["hyena_se"], "from_patches": {"kind": "cross_attention", "num_vectors": 2}},
}
ISOTROPIC = {"kind": "isotropic", "stack": STACK}
ONE_RANK: dict[str, MemoryCase] = {
    "hybrid": MemoryCase(HYBRID, 600, 2, loss_chunk_bases=256),
    "checkpointed": MemoryCase({**HYBRID, "global_model": KEPT}, 600, 2),
    "bf16": MemoryCase(HYBRID, 600, precision="bf16"),
    "attentive": MemoryCase({**HYBRID, **ATTENTIVE}, 600, 2),
    "auxiliary": MemoryCase({**HYBRID, "auxiliary": {"patch_length": 1.0, "entropy": 1.0, "reconstruction": 1.0}}, 600),
    "isotropic": MemoryCase({**ISOTROPIC, "kmers": {"sizes": [2]}}, 400, 2, loss_chunk_bases=None),
    "isotropic checkpointed": MemoryCase({**ISOTROPIC, "stack": KEPT, "head": "scored"}, 400),
    "words": MemoryCase(
        {"kind": "kmer_tokens", "word_bases": 8, "global_model": {**STACK, "blocks": ["hyena_se"]}}, 80
    ),
}
TWO_RANKS = {name: replace(ONE_RANK[name], num_context=2) for name in ("hybrid", "checkpointed", "isotropic")}

LAYERS = {"width": 64, "blocks": ["hyena_se", "hyena_li"]}
WEIGHTS = {"kind": "isotropic", "stack": LAYERS, "head": "scored"}
BUCKETS = {
    "reduce_bucket_size": 20_000,
    "stage3_max_live_parameters": 20_000,
    "stage3_prefetch_bucket_size": 10_000,
    "stage3_param_persistence_threshold": 12_000,
}
OFFLOADED = {"offload_optimizer": {"device": "cpu"}}


def weights_case(stage: int, num_micro_batches: int, num_context: int, offloaded: bool = False) -> MemoryCase:
    """Mostly weights, in buckets that are smaller than they are."""
    zero = {"stage": stage, **BUCKETS, **(OFFLOADED if offloaded else {})}
    return MemoryCase(WEIGHTS, 32, 1, num_micro_batches, num_context, zero)


UNDER_ZERO = [
    weights_case(0, 1, 1),
    weights_case(1, 1, 1),
    weights_case(1, 2, 2),
    weights_case(2, 1, 2),
    weights_case(2, 2, 1),
    weights_case(3, 2, 2),
    weights_case(1, 2, 1, offloaded=True),
    weights_case(2, 1, 1, offloaded=True),
    weights_case(3, 1, 1, offloaded=True),
]


@pytest.fixture(scope="module")
def two_ranks() -> list[Any]:
    return run_ranks(live_bytes_and_parts, 2, UNDER_ZERO, list(TWO_RANKS.values()), timeout_seconds=600)


@pytest.mark.parametrize("name", list(ONE_RANK))
def test_a_rehearsal_counts_what_a_pass_keeps(name: str):
    wanted = ONE_RANK[name].one_pass()
    rehearsed = rehearse(wanted)
    assert rehearsed == count_pass(wanted, batch_of(wanted, 0), SINGLE_RANK, LiveMemory(rehearsal=False, apart=APART))
    assert rehearsed.with_gradients["activations"] > 10_000


def test_a_rehearsal_exchanges_what_context_ranks_exchange(two_ranks: list[Any]):
    _, real = two_ranks[1]
    assert [rehearse(case.one_pass()) for case in TWO_RANKS.values()] == real


def test_memory_under_deepspeed_is_what_was_planned(two_ranks: list[Any]):
    measured = [max(first, second) for first, second in zip(two_ranks[0][0], two_ranks[1][0], strict=True)]
    for case, most in zip(UNDER_ZERO, measured, strict=True):
        zero = ZeroSettings.of({"zero_optimization": case.zero})
        planned = rank_memory(rehearse(case.one_pass()), zero, 2, case.num_micro_batches > 1, is_gpu=False)
        assert planned.total_bytes == pytest.approx(most, rel=0.05), case


def test_a_pass_needs_half_of_it_on_two_ranks_and_twice_for_two_windows():
    one = MemoryCase(HYBRID, 60_000).one_pass()
    few, many = (sum(rehearse(replace(one, micro_batch_windows=count)).without_gradients.values()) for count in (1, 2))
    shared = sum(rehearse(replace(one, num_context=2)).without_gradients.values())
    assert many / few == pytest.approx(2, rel=0.02)
    assert few / shared == pytest.approx(2, rel=0.1)


def test_what_is_kept_for_gradients_counts_only_where_they_are():
    wanted = ONE_RANK["hybrid"].one_pass()
    all_trained, local = rehearse(wanted), rehearse(replace(wanted, frozen=("global_model.*",)))
    assert sum(local.sizes) == sum(all_trained.sizes) > all_trained.num_trained - local.num_trained > 0
    assert local.without_gradients["activations"] < all_trained.without_gradients["activations"]


def test_models_that_find_their_own_patches_are_refused():
    stack = {"width": 8, "blocks": ["hyena_se"]}
    config = HNetConfig.parse({"kind": "hnet", "encoder": stack, "main_network": stack, "decoder": stack})
    with pytest.raises(ConfigError, match="hnet finds its own patches"):
        rehearse(Pass(config, 100, 1))
