"""Slices on gloo ranks equal the whole: exchanges, operators and models."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.parallel.context import SINGLE_RANK
from hyena_blt_savanna.parallel.mesh import Mesh, ParallelConfig
from hyena_blt_savanna.testing.context_ranks import (
    BUILDERS,
    HaloCase,
    ModuleCase,
    run_cases,
    run_module,
)
from hyena_blt_savanna.testing.ranks import run_ranks

RANKS = [2, 4]
KINDS = ["hyena_se", "hyena_mr", "hyena_li", "hyena_implicit", "attention"]
STACK = {"width": 16, "num_heads": 4, "hyena": {"se_groups": 8, "mr_groups": 4, "li_groups": 8}}
"""At 4 ranks a slice of 60 positions is shorter than the halo of hyena_mr."""


def module_cases() -> dict[str, ModuleCase]:
    torch.manual_seed(0)
    x = torch.randn(3, 240, 16, dtype=torch.double)
    bases = torch.tensor(list(b"ACGTN"))[torch.randint(0, 5, (1, 240))]
    stacks = {name: ("stack", {**STACK, "blocks": [name]}, x) for name in KINDS}
    stacks["windowed"] = ("stack", {**STACK, "blocks": ["attention"], "attention": {"window": 70}}, x)
    body = {**STACK, "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"]}
    stacks["checkpointed"] = ("stack", {**body, "activation_checkpointing": True}, x)
    # One row, tables of words that reach into the slice to the left, and the head of the tied embedding.
    stacks["isotropic"] = ("isotropic", {"stack": body, "kmers": {"sizes": [2, 5]}}, bases)
    cases = {}
    for name, (kind, config, given) in stacks.items():
        module = BUILDERS[kind](config, SINGLE_RANK).double()
        shape = module(given).shape
        state = {key: value.clone() for key, value in module.state_dict().items()}
        cases[name] = ModuleCase(kind, config, state, given, torch.randn(shape, dtype=torch.double))
    return cases


def halo_cases(num_ranks: int) -> dict[str, HaloCase]:
    """Short, as long as a slice, longer than one, longer than all; the sequence last or in the middle; integers."""
    torch.manual_seed(num_ranks)
    cases = {}
    for length in (1, 5, 6, 7, 13, 40):
        for name, shape in (("last", (4, 2, 6)), ("middle", (2, 6, 3)), ("integers", (2, 6))):
            sequence_dim = shape.index(6)
            slices = [torch.randn(shape, dtype=torch.double) for _ in range(num_ranks)]
            if name == "integers":
                slices = [(100 * part).long() for part in slices]
            of_halo = tuple(length if size == 6 else size for size in shape)
            weights = [torch.randn(of_halo, dtype=torch.double) for _ in range(num_ranks)]
            cases[f"{name} {length}"] = HaloCase(slices, length, sequence_dim, weights)
    return cases


@functools.cache
def outcomes(num_ranks: int) -> list[Any]:
    """Of all cases on the slices of one window, by rank: the ranks are started once."""
    swapped = torch.randn(2, 8, 3, 8 * num_ranks, generator=torch.Generator().manual_seed(3))
    return run_ranks(run_cases, num_ranks, num_ranks, module_cases(), {}, halo_cases(num_ranks), swapped)


def whole_halos(case: HaloCase, slices: list[Tensor]) -> list[Tensor]:
    """What lies left of each slice in the joined sequence, zeros in front of it."""
    dim = case.sequence_dim
    zeros = torch.zeros_like(slices[0].narrow(dim, 0, 1)).repeat_interleave(case.length, dim)
    joined = torch.cat([zeros, *slices], dim)
    return [joined.narrow(dim, rank * slices[0].shape[dim], case.length) for rank in range(len(slices))]


@pytest.mark.parametrize("num_ranks", RANKS)
def test_halos_are_what_lies_left(num_ranks: int) -> None:
    for name, case in halo_cases(num_ranks).items():
        slices = [part.clone().requires_grad_(part.is_floating_point()) for part in case.slices]
        expected = whole_halos(case, slices)
        found = [outcome.halos[name] for outcome in outcomes(num_ranks)]
        for (halo, _), whole in zip(found, expected, strict=True):
            torch.testing.assert_close(halo, whole.detach(), msg=lambda text, name=name: f"{name}: {text}")
        if slices[0].requires_grad:
            sum((halo * weight).sum() for halo, weight in zip(expected, case.weights, strict=True)).backward()
            for (_, gradient), part in zip(found, slices, strict=True):
                wanted = torch.zeros_like(part) if part.grad is None else part.grad
                torch.testing.assert_close(gradient, wanted, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("num_ranks", RANKS)
def test_channels_are_swapped_for_the_sequence_and_back(num_ranks: int) -> None:
    x = torch.randn(2, 8, 3, 8 * num_ranks, generator=torch.Generator().manual_seed(3))
    for rank, outcome in enumerate(outcomes(num_ranks)):
        gathered, back, own = outcome.swaps
        assert torch.equal(gathered, x.chunk(num_ranks, 1)[rank])
        assert torch.equal(own, gathered)
        assert torch.equal(back, x.chunk(num_ranks, 3)[rank])


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("name", [*KINDS, "windowed", "checkpointed", "isotropic"])
def test_slices_equal_the_whole(name: str, num_ranks: int) -> None:
    case = module_cases()[name]
    whole = run_module(case)
    parts = [outcome.modules[name] for outcome in outcomes(num_ranks)]
    torch.testing.assert_close(torch.cat([part.output for part in parts], 1), whole.output)
    if whole.input_gradient is not None:
        torch.testing.assert_close(torch.cat([part.input_gradient for part in parts], 1), whole.input_gradient)
    assert set(whole.gradients) == set.intersection(*(set(part.gradients) for part in parts))
    for key, gradient in whole.gradients.items():
        torch.testing.assert_close(
            sum(part.gradients[key] for part in parts), gradient, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_each_window_has_its_own_ranks() -> None:
    names = ["hyena_se", "hyena_li"]
    cases = {name: case for name, case in module_cases().items() if name in names}
    on_mesh = run_ranks(run_cases, 4, 2, cases)
    for name in names:
        whole = run_module(cases[name]).output
        for window in (on_mesh[:2], on_mesh[2:]):
            torch.testing.assert_close(torch.cat([outcome.modules[name].output for outcome in window], 1), whole)


@pytest.mark.parametrize(("rank", "place"), [(0, (0, 0)), (1, (0, 1)), (2, (0, 2)), (3, (1, 0)), (5, (1, 2))])
def test_context_ranks_are_neighbours(rank: int, place: tuple[int, int]) -> None:
    mesh = Mesh.of(ParallelConfig(context=3), rank, 6)
    assert (mesh.data, mesh.context) == place
    assert (mesh.num_data, mesh.num_context) == (2, 3)


def test_ranks_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"context = 4 does not divide the 6 ranks.*choose from 1, 2, 3, 6, or"):
        Mesh.of(ParallelConfig(context=4), 0, 6)


def test_one_context_rank_exchanges_nothing() -> None:
    assert Mesh.of(ParallelConfig(), 1, 2).build_context() is SINGLE_RANK


def test_single_rank_is_the_identity() -> None:
    x = torch.randn(4, 2, 8)
    assert SINGLE_RANK.gather_sequence(x, 0, 2) is x
    assert SINGLE_RANK.scatter_sequence(x, 0, 2) is x
    assert SINGLE_RANK.own_channels(x, 0) is x
    assert SINGLE_RANK.halo(x, 3, 2) is None
    assert (SINGLE_RANK.num_ranks, SINGLE_RANK.rank) == (1, 0)
