"""Laws of every kind of local module: causality, reach, gradients, cost; and what a configuration may not ask for."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.hyena_blt import HyenaBLT, HyenaBLTConfig
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.testing.flop_counting import count_by_part

NUM_BASES, LONGEST = 60, 6
GATED = {"blocks": ["gated_convolution"], "hidden_width": 24}
SHORT = {"mr_taps": 12, "se_taps": 4}
VARIANTS: dict[str, dict[str, Any]] = {
    "no blocks": {"encoder": {"blocks": []}, "decoder": {"blocks": []}},
    "gated": {"encoder": GATED, "decoder": GATED | {"blocks": ["gated_convolution"] * 2}},
    "hyena": {
        "encoder": {"blocks": ["hyena_se", "hyena_mr"], "hyena": SHORT},
        "decoder": {"blocks": ["hyena_se"], "hyena": SHORT},
    },
    "fourier": {"encoder": {"blocks": ["hyena_mr"], "hyena": {"mr_taps": 40}}, "decoder": {"blocks": []}},
    "attention": {
        "encoder": {"blocks": ["attention"], "attention": {"window": 7}},
        "decoder": {"blocks": ["gated_convolution", "attention"], "num_heads": 2, "attention": {"window": 5}},
    },
    "cross-attention": {
        "encoder": GATED | {"to_patches": {"kind": "cross_attention", "num_queries": 2}},
        "decoder": GATED | {"from_patches": {"kind": "cross_attention", "num_vectors": 3}},
    },
    "summary and broadcast": {
        "encoder": GATED | {"to_patches": {"kind": "summary"}},
        "decoder": GATED | {"from_patches": {"kind": "broadcast"}},
    },
    "no length": {"encoder": GATED, "decoder": GATED, "positions": {"patch_length": False}},
    "place": {"encoder": GATED, "decoder": GATED, "positions": {"place": True}},
    "all positions": {
        "encoder": GATED,
        "decoder": GATED | {"from_patches": {"kind": "broadcast"}},
        "positions": {"place": True, "periods": [3, 10.5, 20]},
    },
}
REACHES = {
    "no blocks": 0,
    "gated": 3 * 3,
    "hyena": (2 + 3) + (2 + 11) + (2 + 3),
    "fourier": 2 + 39,
    "attention": 6 + 3 + 4,
}
"""Beyond that of the k-mers, which is 2; 3 + 3 in the variants that are not named."""


def config(variant: str) -> HyenaBLTConfig:
    tree = {"local_width": 16, "max_patch_bases": LONGEST, "kmers": {"sizes": [1, 3]}}
    stack = {"width": 24, "num_heads": 2, "blocks": ["hyena_se", "hyena_li", "attention"]}
    return HyenaBLTConfig.parse(tree | {"global_model": stack} | VARIANTS[variant])


def build(variant: str) -> HyenaBLT:
    torch.manual_seed(0)
    model = config(variant).build()
    # Where weights are small or zero, so is what a mistake would change.
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model.double()


def random_bases() -> Tensor:
    torch.manual_seed(1)
    return torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (1, NUM_BASES))]


def with_other_base(bases: Tensor, t: int) -> Tensor:
    changed = bases.clone()
    changed[:, t] = torch.where(bases[:, t] == ord("A"), ord("C"), ord("A"))
    return changed


def cut(bases: Tensor) -> Tensor:
    """Lengths by a rule that looks back: a patch starts behind each A and each GT; the last one is unfinished."""
    lengths, length = [], 0
    text = bytes(bases[0].tolist())
    for t in range(len(text)):
        length += 1
        if length == LONGEST or text[t : t + 1] == b"A" or text[max(t - 1, 0) : t + 1] == b"GT":
            lengths.append(length)
            length = 0
    return torch.tensor([lengths + [0] * (len(text) - len(lengths))])


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_changing_a_base_changes_no_logit_before_it(variant: str, recomputed: bool) -> None:
    model, bases = build(variant), random_bases()
    lengths = cut(bases)
    before = model(bases, lengths)
    for t in range(0, NUM_BASES, 3):
        changed = with_other_base(bases, t)
        difference = (model(changed, cut(changed) if recomputed else lengths) - before).abs().amax((0, 2))
        # Rotary angles and softmax shares are fp32, and Fourier transforms spread rounding errors.
        assert difference[:t].sum() < 1e-5
        assert difference[t] > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_reach_is_what_the_local_modules_read(variant: str) -> None:
    """The states of bases alone carry a base so far, where each patch is told the same."""
    model, bases = build(variant), random_bases()
    reach = 2 + REACHES.get(variant, 6)
    assert model.config.local_reach_bases == reach
    lengths = cut(bases)
    layout = lay_out(lengths, NUM_BASES, LONGEST)
    patches = torch.randn(1, NUM_BASES, 24, dtype=torch.double)

    def read(given: Tensor) -> Tensor:
        return model.decoder(model.encoder(given, layout)[0], patches, lengths)

    difference = (read(with_other_base(bases, 9)) - read(bases)).abs().amax((0, 2))
    moved = (difference > 1e-12).nonzero().flatten()
    assert moved.min() == 9
    assert moved.max() == 9 + reach


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_part_that_knows_the_patch_before_it_scores_like_the_whole(variant: str) -> None:
    model, bases = build(variant), random_bases()
    lengths = cut(bases)
    _, patches = model.encoder(bases, lay_out(lengths, NUM_BASES, LONGEST))
    after = model.global_model(patches)
    whole = model(bases, lengths)
    first = 3
    start = int(lengths[0, :first].sum())
    part, lengths = bases[:, start:], lengths[:, first:]
    states, _ = model.encoder(part, lay_out(lengths, NUM_BASES - start, LONGEST), first_position=start)
    logits = model.decoder(states, after[:, first:], lengths, before_BM=after[:, first - 1])
    reach = model.config.local_reach_bases
    assert reach < NUM_BASES - start
    torch.testing.assert_close(logits[:, reach:], whole[:, start + reach :], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_learns_and_padded_patches_do_no_harm(variant: str) -> None:
    model, bases = build(variant), random_bases().expand(2, -1)
    lengths = torch.cat([cut(bases[:1]), torch.tensor([[LONGEST] * (NUM_BASES // LONGEST) + [0] * 50])])
    # A global model may do what it likes where patches are padding; that must not come back.
    for objective in ("next_base", "autoencoder"):
        model.zero_grad()
        model(bases, lengths, objective).square().mean().backward()
        for name, weight in model.named_parameters():
            unread = objective == "autoencoder" and (name.startswith("global_model.") or name == "decoder.start")
            assert unread == (weight.grad is None), name
            assert unread or (weight.grad.isfinite().all() and weight.grad.abs().sum() > 0), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_operations_are_those_that_torch_counts(variant: str) -> None:
    """On patches of 2 bases where there is room for 6: attention reads the places that stay empty, too."""
    lengths = torch.full((1, 300), 2, dtype=torch.int32)
    theirs = count_by_part(config(variant).build().eval(), torch.randint(65, 85, (1, 600)), lengths)
    ours = config(variant).flops(600, 300)
    for part in ("local_encoder", "local_decoder", "head"):
        # The base behind the last one reads a patch, but has no state that asks for it.
        assert theirs[part] == pytest.approx(ours[part], rel=0.005)


def test_only_the_finished_patch_knows_its_length() -> None:
    """Patches of 4 and of 6 bases: states agree, and so do the logits up to where the shorter one ends."""
    model, bases = build("all positions"), random_bases()[:, :12]
    short, long = torch.tensor([[6, 4]]), torch.tensor([[6, 6]])
    vectors = [model.encoder(bases, lay_out(lengths, 12, LONGEST))[1] for lengths in (short, long)]
    torch.testing.assert_close(vectors[0][:, 0], vectors[1][:, 0])
    difference = (model(bases, short) - model(bases, long)).abs().amax((0, 2))
    assert difference[:9].sum() < 1e-9 < 1e-4 < difference[9]
    with torch.no_grad():
        before = model(bases, long)
        model.encoder.lengths.weight[6] += 1
        difference = (model(bases, long) - before).abs().amax((0, 2))
    assert difference[:5].sum() < 1e-9 < 1e-4 < difference[5]


@pytest.mark.parametrize("blocks", [[], ["gated_convolution"], ["attention"]])
def test_settings_of_blocks_that_are_not_there_are_not_read(blocks: list[str]) -> None:
    unread = {"blocks": blocks, "hyena": {"se_groups": 5}, "num_heads": 4 if "attention" in blocks else 3}
    tree = {"local_width": 16, "global_model": {"width": 24, "blocks": ["hyena_se"]}, "encoder": unread}
    model = HyenaBLTConfig.parse(tree).build()
    assert len(model.encoder.blocks) == len(blocks)
    assert model.config.local_reach_bases > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": {"blocks": ["hyena_li"]}},
            r"encoder\.blocks: there is no local block hyena_li; choose from gated",
        ),
        (
            {"decoder": {"blocks": ["attention"], "attention": {"window": None}}},
            r"decoder: attention\.window is null; attention over single bases needs a window",
        ),
        (
            {"encoder": {"blocks": ["attention"], "num_heads": 3}},
            r"encoder\.num_heads = 3 does not cut local_width = 16",
        ),
        ({"encoder": {"blocks": ["attention"], "num_heads": 16}}, r"encoder\.num_heads = 16 .* heads of even width"),
        (
            {"decoder": {"blocks": ["hyena_se"], "hyena": {"se_groups": 5}}},
            r"decoder\.hyena\.se_groups = 5 does not divide the width 16; choose a divisor",
        ),
        ({"encoder": {"num_blocks": 1}}, r"encoder\.num_blocks: unknown key; .*blocks"),
        ({"encoder": {"to_patches": {"kind": "mean"}}}, r"encoder\.to_patches: .*'mean'.*'places', 'cross_attention'"),
        ({"encoder": {"to_patches": {"kind": "cross_attention", "num_queries": 0}}}, r"num_queries: .*\(given: 0\)"),
        (
            {"encoder": {"to_patches": {"kind": "cross_attention", "num_heads": 3}}},
            r"encoder\.to_patches\.num_heads = 3 does not divide local_width = 16",
        ),
        ({"decoder": {"from_patches": {"kind": "cross_attention", "num_vectors": 1}}}, r"num_vectors: .*\(given: 1\)"),
        (
            {"decoder": {"from_patches": {"kind": "cross_attention", "num_heads": 5}}},
            r"decoder\.from_patches\.num_heads = 5 does not divide local_width = 16",
        ),
        ({"positions": {"periods": [3, 1]}}, r"positions\.periods: .*above 1.*\(given: \[3, 1\]\)"),
        ({"positions": {"periods": [3, 3]}}, r"positions\.periods: .*different numbers"),
        ({"kmers": {"dropout": 1.0}}, r"kmers\.dropout: .*less than 1 \(given: 1\.0\)"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    tree = {"local_width": 16, "global_model": {"width": 24, "blocks": ["hyena_se"]}}
    with pytest.raises(ConfigError, match=message) as error:
        HyenaBLTConfig.parse(tree | changes)
    assert ": 1 mistake(s)\n" in str(error.value)
