"""Filters that several channels share are one filter a channel whose taps are alike: outputs, and gradients summed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hyena_blt_savanna.model.blocks import Block, build_mixer
from hyena_blt_savanna.model.stack import StackConfig

WIDTH, GROUPS = 24, 6
SHARED = ("operator.taps", "operator.log_step", "operator.log_rate", "operator.residues", "operator.decay")


def config(kind: str, groups: int | None) -> StackConfig:
    # The decays are repeated as the filters are: group g of the scale belongs to its own channels.
    hyena = {f"{kind}_groups": groups, "mr_taps": 32}
    return StackConfig.parse({"width": WIDTH, "blocks": [f"hyena_{kind}"], "hyena": hyena})


def build(level: str, kind: str, groups: int | None) -> nn.Module:
    tree = config(kind, groups)
    if level == "block":
        return Block(f"hyena_{kind}", "gelu", tree)
    mixer = build_mixer(f"hyena_{kind}", tree)
    return mixer if level == "mixer" else Operator(mixer)


class Operator(nn.Module):
    """The operator of a mixer, from the three inputs side by side."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.operator = mixer.operator

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(*x.permute(2, 0, 1).contiguous().chunk(3)).permute(1, 2, 0)


@pytest.mark.parametrize("length", [1, 77, 250])
@pytest.mark.parametrize("kind", ["se", "mr", "li"])
@pytest.mark.parametrize("level", ["operator", "mixer", "block"])
def test_shared_filters_are_repeated_ones(level: str, kind: str, length: int) -> None:
    torch.manual_seed(0)
    shared, apart = build(level, kind, GROUPS).double(), build(level, kind, None).double()
    with torch.no_grad():
        for weight in shared.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    repeated = {
        name: weight.repeat_interleave(WIDTH // GROUPS, 0) if name.endswith(SHARED) else weight
        for name, weight in shared.state_dict().items()
    }
    apart.load_state_dict(repeated)
    x = torch.randn(2, length, 3 * WIDTH if level == "operator" else WIDTH, dtype=torch.double)
    direction = torch.randn_like(shared(x))
    torch.testing.assert_close(shared(x), apart(x))
    (shared(x) * direction).sum().backward()
    (apart(x) * direction).sum().backward()
    for (name, ours), theirs in zip(shared.named_parameters(), apart.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        whole = theirs.grad.unflatten(0, (GROUPS, -1)).sum(1) if name.endswith(SHARED) else theirs.grad
        torch.testing.assert_close(ours.grad, whole, msg=lambda text, name=name: f"{name}: {text}")
