"""Learned chunks against H-Net's own numbers, and against plain loops."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model.routing import (
    Router,
    Routing,
    chunk_index,
    decaying_sum,
    ratio_loss,
    running_mean,
    selected_probabilities,
    straight_through,
    take_rows,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "blt"
CASES = {case["case"]: case for case in json.loads((GOLDEN / "hnet_routing.json").read_text())["cases"]}


def golden(case: str) -> dict[str, Tensor]:
    """A case's arrays; documents that lie end to end become one row."""
    with np.load(GOLDEN / "hnet_routing.npz") as arrays:
        names = [name for name in arrays.files if name.startswith(f"{case}/")]
        found = {name.removeprefix(f"{case}/"): torch.from_numpy(arrays[name]) for name in names}
    if "cu_seqlens" in found:
        for name in ("h", "boundary_prob", "boundary_mask", "selected_probs", "chunked"):
            found[name] = found[name][None]
    return found


def route(found: dict[str, Tensor]) -> tuple[Routing, Tensor]:
    h = found["h"]
    router = Router(h.shape[-1])
    router.load_state_dict({"query.weight": found["wq"], "key.weight": found["wk"]})
    is_first = torch.zeros(h.shape[:2], dtype=torch.bool)
    if "cu_seqlens" in found:
        is_first[:, found["cu_seqlens"][:-1]] = True
    is_real = found.get("mask", torch.ones_like(is_first))
    with torch.no_grad():
        return router(h, is_first, is_real), is_real


@pytest.mark.parametrize("case", CASES)
def test_routing_equals_the_golden(case: str) -> None:
    found = golden(case)
    routing, _ = route(found)
    torch.testing.assert_close(routing.probabilities, found["boundary_prob"][..., 1], rtol=0, atol=1e-6)
    assert routing.starts.equal(found["boundary_mask"])
    assert int(routing.starts.sum()) == CASES[case]["n_boundaries"]
    torch.testing.assert_close(selected_probabilities(routing), found["selected_probs"][..., 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_chunks_equal_the_golden(case: str) -> None:
    found = golden(case)
    first, _ = chunk_index(found["boundary_mask"])
    chunks = take_rows(found["h"], first)
    # What stands behind a row's last chunk is arbitrary there and here.
    taken = found.get("next_mask", torch.ones(chunks.shape[:2], dtype=torch.bool))
    assert chunks.shape == found["chunked"].shape
    assert chunks[taken].equal(found["chunked"][taken])


@pytest.mark.parametrize("case", CASES)
def test_ratio_loss_equals_the_golden(case: str) -> None:
    """There, padding counts and a batch is one."""
    routing, _ = route(golden(case))
    one_row = Routing(routing.probabilities.view(1, -1), routing.starts.view(1, -1))
    everything = torch.ones_like(one_row.starts)
    for chunk_bases, expected in CASES[case]["ratio_loss_by_N"].items():
        [found] = ratio_loss(one_row, everything, float(chunk_bases)).tolist()
        assert found == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("case", [name for name in CASES if name in ("h1", "h2")])
def test_running_mean_equals_the_golden(case: str) -> None:
    """The way back to positions, as the reference takes it step by step."""
    found = golden(case)
    first, chunk = chunk_index(found["boundary_mask"])
    probabilities = found["boundary_prob"][..., 1].gather(1, first)
    back = take_rows(running_mean(found["chunked"], probabilities), chunk)
    real = found["mask"]
    torch.testing.assert_close(back[real], found["dechunk_step_out"][real], rtol=0, atol=1e-5)


def plain_mean(chunks: Tensor, probabilities: Tensor) -> Tensor:
    z, steps = torch.zeros_like(chunks[:, 0]), []
    for k in range(chunks.shape[1]):
        p = probabilities[:, k, None].clamp(1e-4, 1 - 1e-4)
        z = p * chunks[:, k] + (1 - p) * z
        steps.append(z)
    return torch.stack(steps, 1)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65, 1200])
def test_running_mean_equals_a_loop(length: int) -> None:
    torch.manual_seed(length)
    chunks = torch.randn(2, length, 3, dtype=torch.double, requires_grad=True)
    p = torch.rand(2, length, dtype=torch.double)
    # Certain starts, and chunks that hardly count: the mean remembers thousands of them.
    p = torch.where(p < 0.2, 0.0, torch.where(p > 0.9, 1.0, p)).requires_grad_()
    weight = torch.randn(2, length, 3, dtype=torch.double)
    ours, theirs = running_mean(chunks, p), plain_mean(chunks, p)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, (chunks, p), weight), torch.autograd.grad(theirs, (chunks, p), weight), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_running_mean_in_fp32_and_under_autocast() -> None:
    chunks, p = torch.randn(2, 3000, 4), torch.rand(2, 3000)
    expected = plain_mean(chunks.double(), p.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = running_mean(chunks.bfloat16().float(), p)
        assert found.dtype == torch.float32
        torch.testing.assert_close(running_mean(chunks, p).double(), expected, rtol=0, atol=2e-5)


def test_long_memory_neither_overflows_nor_fades() -> None:
    p = torch.full((1, 200_000), 1e-4)
    found = running_mean(torch.ones(1, 200_000, 1), p)
    assert found[0, -1, 0].item() == pytest.approx(1, abs=1e-4)
    sure = running_mean(torch.randn(1, 200_000, 1), torch.ones(1, 200_000))
    assert torch.isfinite(sure).all()


def test_a_decaying_sum_is_linear_in_its_length() -> None:
    kept: list[int] = []
    x, decays = torch.randn(1, 4096, 8, requires_grad=True), -torch.rand(1, 4096)

    def saved(length: int) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            assert decaying_sum(x[:, :length], decays[:, :length].requires_grad_()).requires_grad
        return sum(kept)

    assert saved(4096) < 2.1 * saved(2048)


def test_padding_counts_for_nothing() -> None:
    torch.manual_seed(0)
    probabilities = torch.rand(2, 30)
    is_real = torch.arange(30) < torch.tensor([30, 17])[:, None]
    routing = Routing(probabilities, (probabilities > 0.5) & is_real)
    short = Routing(probabilities[1:, :17], routing.starts[1:, :17])
    torch.testing.assert_close(
        ratio_loss(routing, is_real, 4.0)[1:], ratio_loss(short, torch.ones(1, 17, dtype=torch.bool), 4.0)
    )


def test_ratio_loss_is_one_at_the_wanted_ratio_and_draws_to_it() -> None:
    probabilities = torch.full((1, 80), 1 / 8, requires_grad=True)
    everything = torch.ones(1, 80, dtype=torch.bool)
    starts = torch.arange(80)[None] % 8 == 0
    assert ratio_loss(Routing(probabilities, starts), everything, 8.0).item() == pytest.approx(1)
    for wanted, every in ((1, 4), (-1, 16)):
        loss = ratio_loss(Routing(probabilities, torch.arange(80)[None] % every == 0), everything, 8.0)
        [gradient] = torch.autograd.grad(loss.sum(), probabilities)
        # Too many chunks: a smaller probability lowers the loss; too few: a greater one.
        assert (wanted * gradient > 0).all()


def test_straight_through() -> None:
    p = torch.rand(5, requires_grad=True)
    ones = straight_through(p)
    assert ones.equal(torch.ones(5))
    ones.backward(torch.arange(5.0))
    assert p.grad is not None
    assert p.grad.equal(torch.arange(5.0))
