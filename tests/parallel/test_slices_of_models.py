"""Whole models on slices of windows equal one rank on the windows: logits, loss and every gradient."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from hyena_blt_savanna.data.batches import Batch
from hyena_blt_savanna.data.slices import slice_batch
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig, Objective
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, PADDING
from hyena_blt_savanna.testing.context_ranks import ModelCase, RankOutcome, check_slices, run_cases, run_model
from hyena_blt_savanna.testing.ranks import run_ranks

RANKS = [2, 4]
LONGEST = 6
HYENA = {"se_groups": 4, "mr_groups": 4, "mr_taps": 9, "li_groups": 8}
STACK = {"width": 8, "num_heads": 4, "blocks": ["hyena_mr", "hyena_li", "attention"], "hyena": HYENA}
HYBRID = {
    "kind": "hyena_blt",
    "local_width": 8,
    "max_patch_bases": LONGEST,
    "kmers": {"sizes": [2, 3]},
    "global_model": STACK,
}
GATED = {"blocks": ["gated_convolution"], "num_taps": 3, "hidden_width": 8}
HYBRIDS: dict[str, dict[str, Any]] = {
    "gated": {"encoder": GATED, "decoder": {**GATED, "blocks": ["gated_convolution"] * 2}},
    "hyena": {
        "encoder": {"blocks": ["hyena_se", "hyena_mr"], "hyena": HYENA},
        "decoder": {"blocks": ["hyena_mr"], "hyena": HYENA},
    },
    "attention": {
        "encoder": {"blocks": ["attention"], "attention": {"window": 5}},
        "decoder": {"blocks": ["attention"], "attention": {"window": 4}},
        "positions": {"place": True, "periods": [3, 10.5]},
    },
    # The decoder reads nothing but the last patch, and no base reaches back further than itself.
    "nothing": {"kmers": {"sizes": [1]}, "encoder": {"blocks": []}, "decoder": {"blocks": []}},
    "cross-attention": {
        "encoder": {**GATED, "to_patches": {"kind": "cross_attention", "num_queries": 2}},
        "decoder": {**GATED, "from_patches": {"kind": "cross_attention", "num_vectors": 2}},
    },
    "summary": {
        "encoder": {**GATED, "to_patches": {"kind": "summary"}},
        "decoder": {**GATED, "from_patches": {"kind": "broadcast"}},
        "positions": {"place": True, "patch_length": False},
    },
    "auxiliary": {
        "encoder": GATED,
        "decoder": GATED,
        "auxiliary": {"patch_length": 0.7, "entropy": 0.3, "reconstruction": 0.5},
    },
    "dropout": {"encoder": GATED, "decoder": GATED, "kmers": {"sizes": [1, 3], "dropout": 0.4}},
}


def windows(num_rows: int, num_patches: int, longest: int, seed: int) -> Batch:
    """Patches of all lengths from 1 on; the rows have different numbers of them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (num_rows, num_patches), generator=generator, dtype=torch.int32)
    lengths[:, 0] = 1
    for row in range(1, num_rows):
        lengths[row, num_patches - 7 * row :] = 0
    num_bases = int(lengths.sum(1).max())
    bases = torch.tensor(list(b"ACGTN"))[torch.randint(0, 5, (num_rows, num_bases), generator=generator)]
    weights = torch.rand(num_rows, num_bases, generator=generator)
    outside = torch.arange(num_bases) >= lengths.sum(1, keepdim=True)
    entropies = 1.386 * torch.rand(num_rows, num_bases, generator=generator)
    bases[:, 0] = END_OF_DOCUMENT
    weights[:, 0] = 0
    # In fp64, so that sums in another order differ by nothing that a fault could hide in.
    weights, entropies = (values.masked_fill(outside, 0).double() for values in (weights, entropies))
    return Batch(bases.masked_fill(outside, PADDING), lengths, weights, num_cut_patches=2, entropies=entropies)


def model_case(config: dict[str, Any], batch: Batch, objective: Objective = "next_base") -> ModelCase:
    torch.manual_seed(1)
    model = TypeAdapter(HyenaBLTConfig | IsotropicConfig).validate_python(config).build().double()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.abs().max() == 0:
                weight.normal_(std=0.3)
    return ModelCase(config, {name: value.clone() for name, value in model.state_dict().items()}, batch, objective)


@functools.cache
def cases() -> dict[str, ModelCase]:
    found = {}
    for index, (name, parts) in enumerate(HYBRIDS.items()):
        # With 22 patches and 4 ranks, slices have fewer patches than some models read to the left.
        for num_rows, num_patches in ((1, 45), (3, 22)):
            batch = windows(num_rows, num_patches, LONGEST, seed=index)
            found[f"{name}, {num_rows}"] = model_case({**HYBRID, **parts}, batch)
    isotropic = {"kind": "isotropic", "stack": STACK, "kmers": {"sizes": [2, 5], "dropout": 0.3}}
    for num_rows in (1, 3):
        found[f"isotropic, {num_rows}"] = model_case(isotropic, windows(num_rows, 61, 1, seed=9))
        batch = windows(num_rows, 22, LONGEST, seed=10)
        found[f"autoencoder, {num_rows}"] = model_case({**HYBRID, **HYBRIDS["attention"]}, batch, "autoencoder")
    # The last rank has no patch of its own: 9 patches in slices of 3.
    found["an empty slice"] = model_case({**HYBRID, **HYBRIDS["auxiliary"]}, windows(1, 9, LONGEST, seed=20))
    # The last window of a validation stream may be that short.
    found["fewer patches than ranks"] = model_case({**HYBRID, **HYBRIDS["attention"]}, windows(1, 2, LONGEST, seed=21))
    found["fewer bases than ranks"] = model_case(isotropic, windows(1, 3, 1, seed=22))
    return found


@functools.cache
def outcomes(num_ranks: int) -> list[RankOutcome]:
    """Of all cases, by rank: the ranks are started once."""
    return run_ranks(run_cases, num_ranks, num_ranks, {}, cases())


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("name", list(cases()))
def test_slices_equal_whole_windows(name: str, num_ranks: int) -> None:
    case = cases()[name]
    whole = run_model(case)
    parts = [outcome.models[name] for outcome in outcomes(num_ranks)]
    # Angles and scores of local attention are in fp32, and angles count from the first key of a slice; errors of
    # entropies are in fp32 too.
    in_fp32 = any(part in name for part in ("attention", "autoencoder", "auxiliary", "empty"))
    tolerance = 1e-7 if in_fp32 else 1e-12
    check_slices(whole, parts, tolerance)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_each_base_is_scored_once(num_ranks: int) -> None:
    batch = windows(3, 22, LONGEST, seed=5)
    slices = [slice_batch(batch, rank, num_ranks, 4) for rank in range(num_ranks)]
    assert len({part.patch_lengths.shape[1] - part.left_patches for part in slices}) == 1
    for row in range(3):
        weights = torch.cat([part.loss_weights[row][part.loss_weights[row] > 0] for part in slices])
        assert torch.equal(weights, batch.loss_weights[row][batch.loss_weights[row] > 0])
        for part in slices:
            num_here = int(part.patch_lengths[row].sum())
            first = int(part.first_positions[row])
            assert torch.equal(part.bases[row, :num_here], batch.bases[row, first : first + num_here])
            assert (part.bases[row, num_here:] == PADDING).all()
            assert int(part.patch_lengths[row, : part.left_patches].sum()) <= num_here
    assert sum(part.num_bases for part in slices) == batch.num_bases
    assert sum(part.num_cut_patches for part in slices) == 2
