"""Random windows, cut into random patches, on random numbers of ranks: slices equal the whole."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import distributed as dist

from hyena_blt_savanna.data.batches import Batch
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, PADDING
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel
from hyena_blt_savanna.parallel.group_context import GroupContext
from hyena_blt_savanna.testing.context_ranks import ModelCase, check_slices, run_model
from hyena_blt_savanna.testing.ranks import run_ranks

MOST_RANKS, LONGEST = 4, 5
CONFIG = {
    "local_width": 8,
    "max_patch_bases": LONGEST,
    "kmers": {"sizes": [1, 3], "dropout": 0.2},
    "positions": {"periods": [3]},
    "encoder": {"blocks": ["gated_convolution"], "num_taps": 3, "hidden_width": 8},
    # Channels, filters and heads that 2, 3 and 4 ranks can share.
    "global_model": {
        "width": 24,
        "num_heads": 12,
        "blocks": ["hyena_mr", "hyena_li", "attention"],
        "hyena": {"mr_taps": 9, "mr_groups": 4, "li_groups": 12},
    },
    "decoder": {"blocks": ["gated_convolution"], "num_taps": 2, "hidden_width": 8},
    "auxiliary": {"patch_length": 0.5, "reconstruction": 0.5},
}
LENGTHS = st.lists(st.integers(1, LONGEST), max_size=24)


def batch_of(rows: list[list[int]], num_padded: int, seed: int) -> Batch:
    """Windows of such patches behind a byte in front, some bases without weight, and more padding than they need."""
    generator = torch.Generator().manual_seed(seed)
    num_patches = 1 + max(map(len, rows)) + num_padded
    lengths = torch.tensor([[1, *row] + [0] * (num_patches - 1 - len(row)) for row in rows], dtype=torch.int32)
    num_bases = max(int(lengths.sum(1).max()), num_patches)
    bases = torch.tensor(list(b"ACGTN"))[torch.randint(0, 5, (len(rows), num_bases), generator=generator)]
    weights = torch.rand(len(rows), num_bases, generator=generator).double() * (bases != ord("N"))
    outside = torch.arange(num_bases) >= lengths.sum(1, keepdim=True)
    bases[:, 0] = END_OF_DOCUMENT
    weights[:, 0] = 0
    return Batch(bases.masked_fill(outside, PADDING), lengths, weights.masked_fill(outside, 0))


def check_random_windows() -> int:
    """Every rank draws the same cases, and every rank learns whether all agree: so hypothesis goes the same way on all.

    Returns:
        How many cases were drawn.
    """
    contexts: dict[int, ContextParallel] = {1: SINGLE_RANK}
    for num_ranks in range(2, MOST_RANKS + 1):
        contexts[num_ranks] = GroupContext(dist.new_group(list(range(num_ranks))))
    torch.manual_seed(0)
    model = HyenaBLTConfig.parse(CONFIG).build()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    state = {name: value.double() for name, value in model.state_dict().items()}
    num_cases = 0

    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        num_ranks=st.integers(2, MOST_RANKS),
        rows=st.lists(LENGTHS, min_size=1, max_size=3),
        num_padded=st.integers(0, 3),
        seed=st.integers(0, 1000),
    )
    def slices_equal_the_whole(num_ranks: int, rows: list[list[int]], num_padded: int, seed: int) -> None:
        nonlocal num_cases
        num_cases += 1
        case = ModelCase({"kind": "hyena_blt", **CONFIG}, state, batch_of(rows, num_padded, seed))
        part = run_model(case, contexts[num_ranks]) if dist.get_rank() < num_ranks else None
        parts = [None] * MOST_RANKS
        dist.all_gather_object(parts, part)
        check_slices(run_model(case), parts[:num_ranks], 1e-7)

    slices_equal_the_whole()
    return num_cases


def test_random_slices_equal_the_whole() -> None:
    found = run_ranks(check_random_windows, MOST_RANKS, timeout_seconds=300)
    assert min(found) == max(found) >= 40
