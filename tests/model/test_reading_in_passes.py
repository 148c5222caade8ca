"""A stream that is read in passes of any length gives what one pass gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model.isotropic import Isotropic, IsotropicConfig
from hyena_blt_savanna.parallel.stream import Stream, StreamState

STACKS: dict[str, dict[str, Any]] = {
    "convolutions": {"blocks": ["hyena_se", "hyena_mr", "hyena_se"], "hyena": {"mr_taps": 20, "se_taps": 4}},
    "attention": {"blocks": ["attention", "attention"], "attention": {"window": 9}},
    "all": {"blocks": ["hyena_mr", "attention", "hyena_se"], "attention": {"window": 6}, "hyena": {"mr_taps": 18}},
    "one tap": {
        "blocks": ["hyena_se", "attention"],
        "attention": {"window": 1},
        "hyena": {"se_taps": 1, "featurizer_taps": 1},
    },
}


def config(stack: str, kmers: bool) -> IsotropicConfig:
    tree = {"width": 12, "num_heads": 2} | STACKS[stack]
    return IsotropicConfig.parse({"stack": tree, "kmers": {"sizes": [1, 3, 6]} if kmers else None})


def build(stack: str, kmers: bool, stream: Stream) -> Isotropic:
    torch.manual_seed(1)
    model = config(stack, kmers).build(stream).double().requires_grad_(False)
    # Where weights are small, so is what a mistake would change.
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)
    return model


def sequence(length: int) -> Tensor:
    bases = torch.tensor(list(b"ACGTN"))[torch.randint(0, 5, (2, length))]
    bases[:, 0] = 0
    return bases


@pytest.mark.parametrize("kmers", [True, False])
@pytest.mark.parametrize("stack", STACKS)
def test_passes_join_without_a_seam(stack: str, kmers: bool) -> None:
    stream = Stream()
    model = build(stack, kmers, stream)
    bases = sequence(120)
    whole = model(bases)
    for lengths in ([120], [1] * 120, [1, 2, 50, 3, 1, 1, 62], [60, 60]):
        state: StreamState = []
        parts = []
        for part in bases.split(lengths, dim=1):
            with stream.reading(state):
                parts.append(model(part))
        # Rotary angles are fp32 whatever the weights are, and count from another position in each pass.
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
        reach = model.config.reach_bases
        assert reach is not None
        assert max((kept.shape[-2 if kept.ndim == 4 else -1] for kept in state), default=0) < reach


@pytest.mark.parametrize("kmers", [True, False])
@pytest.mark.parametrize("stack", STACKS)
def test_the_reach_is_what_a_base_reads(stack: str, kmers: bool) -> None:
    model = build(stack, kmers, Stream())
    reach = model.config.reach_bases
    assert reach is not None
    bases = sequence(100)
    changed = bases.clone()
    changed[:, 10] = torch.where(bases[:, 10] == ord("A"), ord("C"), ord("A"))
    difference = (model(changed) - model(bases)).abs().amax(dim=(0, 2))
    # Fourier transforms spread rounding errors over all positions.
    moved = (difference > 1e-14).nonzero().flatten()
    assert moved.min() == 10
    # The farthest base counts for next to nothing in fp64, but for something.
    assert moved.max() == 10 + reach - 1


def test_a_state_keeps_no_more_than_it_needs() -> None:
    stream = Stream()
    model = build("all", True, stream)
    state: StreamState = []
    with stream.reading(state):
        model(sequence(1000))
    assert sum(kept.untyped_storage().nbytes() for kept in state) < 16 * 1000 < 8 * 12 * 1000
    with pytest.raises(AssertionError, match="two passes"), stream.reading(state), stream.reading([]):
        pass


@pytest.mark.parametrize(
    ("changes", "reach"),
    [
        ({"blocks": ["hyena_se"]}, 1 + 2 + 6),
        ({"blocks": ["hyena_se", "hyena_mr"]}, 1 + 8 + 129),
        ({"blocks": ["hyena_se", "hyena_li"]}, None),
        ({"blocks": ["attention"]}, None),
        ({"blocks": ["attention", "attention"], "attention": {"window": 512}}, 1 + 2 * 511),
    ],
)
def test_reach_by_hand(changes: dict[str, Any], reach: int | None) -> None:
    tree: dict[str, Any] = {"stack": {"width": 8} | changes}
    assert IsotropicConfig.parse(tree).reach_bases == reach
    tree["kmers"] = {"sizes": [2, 5]}
    assert IsotropicConfig.parse(tree).reach_bases == (None if reach is None else reach + 4)


def test_kmers_are_added_to_the_bases() -> None:
    plain, with_kmers = (config("convolutions", kmers).build() for kmers in (False, True))
    assert set(with_kmers.state_dict()) - set(plain.state_dict()) == {"kmers.weight"}
    assert with_kmers.kmers is not None
    assert with_kmers.head is with_kmers.embedding
    with_kmers.load_state_dict(plain.state_dict(), strict=False)
    bases = sequence(50)
    states = with_kmers.stack(with_kmers.embedding(bases) + with_kmers.kmers(bases))
    torch.testing.assert_close(with_kmers(bases), with_kmers.head(states)[..., :512])
    with torch.no_grad():
        with_kmers.kmers.weight.zero_()
    torch.testing.assert_close(with_kmers(bases), plain(bases))
    with_kmers(bases).sum().backward()
    assert with_kmers.kmers.weight.grad is not None
    assert with_kmers.kmers.weight.grad.abs().sum() > 0
