"""The ways to read a patch against loops over bases."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from hyena_blt_savanna.model.from_patches import Broadcast, CrossAttention, FromPatchesConfig, Places
from hyena_blt_savanna.model.patches import lay_out

# The first row ends with bases of an unfinished patch, which nothing is said to.
LENGTHS = torch.tensor([[1, 3, 5, 2, 0], [5, 4, 1, 3, 0]])
NUM_BASES, LONGEST, WIDTH, PATCH_WIDTH = 13, 5, 8, 6
KINDS: dict[str, dict[str, Any]] = {
    "places": {"kind": "places"},
    "broadcast": {"kind": "broadcast"},
    "cross_attention": {"kind": "cross_attention", "num_vectors": 3, "num_heads": 2},
}


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    config = TypeAdapter(FromPatchesConfig).validate_python(KINDS[kind])
    module: nn.Module = config.build(WIDTH, PATCH_WIDTH, LONGEST).double()
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return module


def read(module: nn.Module, vector: Tensor, state: Tensor, place: int) -> Tensor:
    """What one base gets from one vector, by the formulas."""
    if isinstance(module, Places):
        rows = slice(place * WIDTH, (place + 1) * WIDTH)
        return module.weight[rows] @ vector + module.bias[rows]
    if isinstance(module, Broadcast):
        return module.out.weight @ vector + module.out.bias
    assert isinstance(module, CrossAttention)
    heads, vectors = module.config.num_heads, module.config.num_vectors
    width = WIDTH // heads
    keys, values = (module.keys_and_values.weight @ vector).view(2, vectors, heads, width)
    query = (module.query.weight @ module.norm(state)).view(heads, width)
    found = []
    for head in range(heads):
        shares = (keys[:, head] @ query[head] / width**0.5).float().softmax(0).double()
        found.append(sum(share * value for share, value in zip(shares, values[:, head], strict=True)))
    return module.out.weight @ torch.cat(found)


@pytest.mark.parametrize("kind", KINDS)
def test_each_base_reads_the_vector_of_its_patch(kind: str) -> None:
    module = build(kind)
    vectors = torch.randn(2, 5, PATCH_WIDTH, dtype=torch.double, requires_grad=True)
    states = torch.randn(2, NUM_BASES - 1, WIDTH, dtype=torch.double, requires_grad=True)
    found = module(vectors, states, lay_out(LENGTHS, NUM_BASES, LONGEST))
    assert found.shape == (2, NUM_BASES, WIDTH)
    assert found[0, 11:].abs().max() == 0
    ours, theirs = [], []
    for row in range(2):
        base = 0
        for patch, length in enumerate(LENGTHS[row].tolist()):
            for place in range(length):
                # No state predicts the first base.
                if base:
                    ours.append(found[row, base])
                    theirs.append(read(module, vectors[row, patch], states[row, base - 1], place))
                base += 1
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-6, atol=1e-6)
    direction = torch.randn(len(ours), WIDTH, dtype=torch.double)
    inputs = [vectors, *module.parameters()] + ([states] if kind == "cross_attention" else [])
    for mine, wanted in zip(
        torch.autograd.grad((torch.stack(ours) * direction).sum(), inputs),
        torch.autograd.grad((torch.stack(theirs) * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close(kind: str) -> None:
    module = build(kind).float()
    layout = lay_out(LENGTHS, NUM_BASES, LONGEST)
    vectors, states = torch.randn(2, 5, PATCH_WIDTH), torch.randn(2, NUM_BASES - 1, WIDTH)
    exact = module(vectors, states, layout)
    with torch.autocast("cpu", torch.bfloat16):
        close = module(vectors, states, layout)
    assert (close.float() - exact).abs().max() < 0.05 * exact.abs().max()
    close.float().square().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
