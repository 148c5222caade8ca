"""The ways to pool against loops over patches."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.model.to_patches import CrossAttention, Places, Summary, ToPatchesConfig

LENGTHS = torch.tensor([[1, 3, 5, 2, 0], [5, 4, 1, 0, 0]])
NUM_BASES, LONGEST, WIDTH, PATCH_WIDTH = 13, 5, 8, 6
KINDS: dict[str, dict[str, Any]] = {
    "places": {"kind": "places"},
    "cross_attention": {"kind": "cross_attention", "num_queries": 3, "num_heads": 2},
    "one query": {"kind": "cross_attention", "num_queries": 1, "num_heads": 4},
    "summary": {"kind": "summary"},
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = TypeAdapter(ToPatchesConfig).validate_python(KINDS[kind])
    return config.build(WIDTH, PATCH_WIDTH, LONGEST).double()


def pooled(module: nn.Module, bases_JD: Tensor) -> Tensor:
    """The vector of one patch of J bases, by the formulas."""
    if isinstance(module, Places):
        weights = module.weight.view(PATCH_WIDTH, LONGEST, WIDTH)
        return sum(weights[:, place] @ base for place, base in enumerate(bases_JD))
    if isinstance(module, Summary):
        return module.out.weight @ torch.cat([bases_JD.mean(0), bases_JD.max(0).values, bases_JD[-1]])
    assert isinstance(module, CrossAttention)
    found = []
    heads, width = module.config.num_heads, WIDTH // module.config.num_heads
    for query in range(module.config.num_queries):
        for head in range(heads):
            score = module.scores.weight[head * module.config.num_queries + query]
            value = module.values.weight[head * width : (head + 1) * width]
            # Plain fp32 weights, as the module's.
            shares = (bases_JD @ score).float().softmax(0).double()
            found.append(sum(share * (value @ base) for share, base in zip(shares, bases_JD, strict=True)))
    return module.out.weight @ torch.cat(found)


@pytest.mark.parametrize("kind", KINDS)
def test_each_patch_is_what_its_bases_give_alone(kind: str) -> None:
    module = build(kind)
    x = torch.randn(2, NUM_BASES, WIDTH, dtype=torch.double, requires_grad=True)
    found = module(x, lay_out(LENGTHS, NUM_BASES, LONGEST))
    assert found.shape == (2, 5, PATCH_WIDTH)
    assert found.isfinite().all()
    ours, theirs = [], []
    for row in range(2):
        start = 0
        for patch, length in enumerate(LENGTHS[row].tolist()):
            if length:
                ours.append(found[row, patch])
                theirs.append(pooled(module, x[row, start : start + length]))
            start += length
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-6, atol=1e-6)
    direction = torch.randn(len(ours), PATCH_WIDTH, dtype=torch.double)
    inputs = [x, *module.parameters()]
    for mine, wanted in zip(
        torch.autograd.grad((torch.stack(ours) * direction).sum(), inputs),
        torch.autograd.grad((torch.stack(theirs) * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_and_gradients_are_finite(kind: str) -> None:
    module = build(kind).float()
    layout = lay_out(LENGTHS, NUM_BASES, LONGEST)
    x = torch.randn(2, NUM_BASES, WIDTH, requires_grad=True)
    exact = module(x, layout)
    with torch.autocast("cpu", torch.bfloat16):
        close = module(x, layout)
    real = LENGTHS > 0
    assert (close[real].float() - exact[real]).abs().max() < 0.05 * exact[real].abs().max()
    close[real].float().square().sum().backward()
    for tensor in (x, *module.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0
