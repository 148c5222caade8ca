"""Stacks of blocks: causality, lengths, checkpointing, dtypes, mistakes."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.attention import Attention, AttentionConfig
from hyena_blt_savanna.model.blocks import MIXERS, build_mixer
from hyena_blt_savanna.model.initialisation import small_init_std, wang_init_std
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.mlp import Activation, GatedMLP, MLPConfig
from hyena_blt_savanna.model.operators import HyenaConfig
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import NUM_SCORED, SCORED

ALL = ["hyena_se", "hyena_mr", "hyena_li", "hyena_implicit", "attention"]


def config(**changes: Any) -> StackConfig:
    return StackConfig(**({"width": 16, "num_heads": 2, "blocks": ALL, "hyena": HyenaConfig(mr_groups=4)} | changes))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("length", [3, 150, 257])
def test_mixers_are_causal(name: str, length: int) -> None:
    mixer = build_mixer(name, config()).double()
    check_causality(mixer, torch.randn(2, length, 16, dtype=torch.double))


@pytest.mark.parametrize("length", [2, 200])
def test_stack_is_causal(length: int) -> None:
    check_causality(config().build().double(), torch.randn(1, length, 16, dtype=torch.double))


def check_causality(module: nn.Module, x: Tensor) -> None:
    """Nothing changes before a changed position; something does at it, and behind it."""
    position = x.shape[1] // 2
    changed = x.clone()
    changed[:, position] += 1
    difference = (module(changed) - module(x)).abs().amax(dim=(0, 2))
    assert difference[:position].max() < 1e-12
    assert difference[position] > 1e-4
    if position + 1 < x.shape[1]:
        assert difference[position + 1] > 1e-8


@pytest.mark.parametrize("name", ALL)
def test_a_prefix_gives_the_same(name: str) -> None:
    """Lengths that are no power of two, and shorter than the filters."""
    mixer = build_mixer(name, config()).double()
    x = torch.randn(2, 301, 16, dtype=torch.double)
    whole = mixer(x)
    for length in (1, 2, 6, 127, 300):
        torch.testing.assert_close(mixer(x[:, :length]), whole[:, :length])


def test_rows_of_a_batch_do_not_meet() -> None:
    stack = config().build().double()
    x = torch.randn(3, 40, 16, dtype=torch.double)
    torch.testing.assert_close(stack(x), torch.cat([stack(row[None]) for row in x]))


@pytest.mark.parametrize("name", ["hyena_se", "hyena_mr", "hyena_li", "hyena_implicit"])
def test_interleaving_is_a_permutation_of_rows(name: str) -> None:
    plain = build_mixer(name, config())
    interleaved = build_mixer(name, config(hyena=HyenaConfig(mr_groups=4, interleaved_projection=True)))
    state = dict(plain.state_dict())
    for key in ("in_projection.weight", "featurizer.taps"):
        state[key] = torch.stack(state[key].chunk(3), 1).flatten(0, 1)
    interleaved.load_state_dict(state)
    x = torch.randn(1, 50, 16)
    torch.testing.assert_close(interleaved(x), plain(x))


def test_attention_by_hand() -> None:
    attention = Attention(8, 2, AttentionConfig.parse({"rotary": {"base": 100, "position_scale": 2}})).double()
    x = torch.randn(1, 5, 8, dtype=torch.double)
    packed = attention.in_projection(x).view(5, 2, 3, 4)
    query, key = complex_turn(packed[:, :, 0]), complex_turn(packed[:, :, 1])
    scores = torch.einsum("qhd,khd->hqk", query, key.conj()).real / 2
    weights = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    mixed = torch.einsum("hqk,khd->qhd", weights, packed[:, :, 2]).reshape(1, 5, 8)
    torch.testing.assert_close(attention(x), attention.out_projection(mixed), rtol=1e-5, atol=1e-6)


def complex_turn(x: Tensor) -> Tensor:
    """The pair (i, i + 2) of four channels as one complex number, turned by position / 2 x 100^(-i / 2)."""
    angles = torch.arange(5)[:, None, None] / 2 * torch.tensor([1.0, 0.1])
    return torch.complex(x[..., :2], x[..., 2:]) * torch.polar(torch.ones_like(angles), angles)


def test_checkpointing_changes_nothing() -> None:
    plain = config().build()
    saving = config(activation_checkpointing=True).build()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 70, 16)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        ours = saving(x)
    with_checkpoints = sum(kept)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        theirs = plain(x)
    assert with_checkpoints < sum(kept) / 4
    assert ours.equal(theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, one), other in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None, name
        assert one.grad.equal(other.grad), name


@pytest.mark.parametrize("name", ALL)
def test_memory_is_linear_in_length(name: str) -> None:
    stack = config(blocks=[name]).build()

    def saved_bytes(length: int) -> int:
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(1, length, 16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            kept = stack(x)
        assert kept.requires_grad
        return sum(storages.values())

    assert saved_bytes(4096) < 2.1 * saved_bytes(2048)
    # 28 values a channel, weights included: nothing of the size of a spectrum or of L x L.
    # The network behind the implicit filters keeps three values for each of its 64 x 3 hidden numbers, whatever the
    # batch and the width are.
    network = 3 * 64 * 3 if name == "hyena_implicit" else 0
    assert saved_bytes(4096) < 4 * (28 * 16 + network) * 4096


@pytest.mark.parametrize("name", ALL)
def test_bf16(name: str) -> None:
    stack = config(blocks=[name]).build()
    x = torch.randn(2, 200, 16)
    expected = stack(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(stack(x).float(), expected, rtol=0.05, atol=0.05)
    stack.bfloat16()
    half = stack(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.1)
    half.sum().backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in stack.parameters())


def test_initial_weights() -> None:
    torch.manual_seed(0)
    stack = config(width=256, num_heads=4).build()
    for block in stack.blocks:
        close = {"rel": 0.02}
        assert block.mixer.in_projection.weight.std().item() == pytest.approx(small_init_std(256), **close)
        assert block.mixer.out_projection.weight.std().item() == pytest.approx(wang_init_std(256, len(ALL)), **close)
        assert block.mlp.down.weight.std().item() == pytest.approx(wang_init_std(256, len(ALL)), **close)
        assert not block.mixer.out_projection.bias.any()
    assert stack.blocks[0].mixer.operator.taps.abs().max() <= 7**-0.5
    li = stack.blocks[2].mixer.operator
    assert 0.01 <= li.log_step.exp().min() < li.log_step.exp().max() <= 0.1
    assert (li.log_rate == -1).all()
    assert li.residues.std().item() == pytest.approx(0.1 / 4, **close)
    assert (li.skip == 1).all()
    assert (small_init_std(40), wang_init_std(16, 4)) == (0.1, 0.125)


def test_mlp_widths_and_activations() -> None:
    # Evo 2 7B: two thirds of 4 x 4096, rounded up to a multiple of 128.
    assert MLPConfig(round_up_to=128).hidden_width(4096) == 11008
    assert MLPConfig(width=11264).hidden_width(4096) == 11264
    assert MLPConfig(round_up_to=16).hidden_width(64) == 176
    late = MLPConfig(activation="gelu_until_long")
    assert late.activations(["hyena_se", "attention", "hyena_mr", "hyena_se"]) == ["gelu"] * 2 + ["identity"] * 2
    assert late.activations(["hyena_se", "attention"]) == ["gelu"] * 2
    assert MLPConfig(activation="identity").activations(ALL) == ["identity"] * len(ALL)
    assert MLPConfig().activations(ALL) == ["gelu"] * len(ALL)


@pytest.mark.parametrize("activation", ["gelu", "silu", "identity"])
def test_mlp_equals_the_formula(activation: Activation) -> None:
    mlp = GatedMLP(8, 16, activation, num_blocks=2).double()
    x = torch.randn(2, 5, 8, dtype=torch.double, requires_grad=True)
    gate = x @ mlp.gate.weight.T
    # GELU by the normal distribution's own integral: exact, not its tanh approximation.
    share = {"gelu": (1 + torch.erf(gate / 2**0.5)) / 2, "silu": 1 / (1 + (-gate).exp()), "identity": 1}
    gate = gate * share[activation]
    theirs = (gate * (x @ mlp.up.weight.T)) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x), theirs)
    inputs, weight = [x, *mlp.parameters()], torch.randn_like(x)
    for ours, expected in zip(
        torch.autograd.grad(mlp(x), inputs, weight), torch.autograd.grad(theirs, inputs, weight), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_biases_and_final_norm_can_be_left_out() -> None:
    stack = config(
        blocks=[name for name in ALL if name != "hyena_implicit"],
        hyena=HyenaConfig(output_bias=False),
        attention=AttentionConfig(output_bias=False),
        final_norm=False,
    ).build()
    assert not [name for name, _ in stack.named_parameters() if "bias" in name or name.startswith("norm")]
    assert stack(torch.randn(1, 9, 16)).shape == (1, 9, 16)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"width": 16, "blocks": ["hyena_xl"]},
            "hyena_xl; choose from hyena_se, hyena_mr, hyena_li, hyena_implicit, att",
        ),
        ({"width": 16, "blocks": []}, "blocks"),
        ({"width": 16, "num_heads": 3, "blocks": ["attention"]}, "num_heads = 3"),
        ({"width": 6, "num_heads": 2, "blocks": ["attention"]}, "heads of even width"),
        ({"width": 16, "blocks": ["hyena_li"], "hyena": {"li_groups": 3}}, "li_groups = 3 does not divide"),
        ({"width": 16, "blocks": ["hyena_li"], "hyena": {"li_grups": 4}}, "did you mean 'li_groups'"),
    ],
)
def test_mistakes_are_named(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StackConfig.parse(tree)


def test_mistakes_in_modules_are_named_too() -> None:
    with pytest.raises(ConfigError, match="num_heads = 3"):
        Attention(16, 3, AttentionConfig())
    with pytest.raises(ConfigError, match="there is no 'hyena_xl'; choose from hyena_se"):
        build_mixer("hyena_xl", config())
    # What no block uses is not looked at.
    assert StackConfig(width=16, num_heads=3, blocks=["hyena_se"], hyena=HyenaConfig(mr_groups=5)).build()
    assert list(MIXERS) == ALL


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_isotropic(head: Literal["tied", "untied"]) -> None:
    tied = head == "tied"
    model = IsotropicConfig(stack=config(), head=head, round_vocabulary_to=96).build().double()
    assert model.embedding.weight.shape == (576, 16)
    assert (model.head is model.embedding) == tied
    bases = torch.randint(0, 256, (2, 30))
    logits = model(bases)
    assert logits.shape == (2, 30, 512)
    changed = bases.clone()
    changed[:, 11] = 255 - changed[:, 11]
    difference = (model(changed) - logits).abs().amax(dim=(0, 2))
    assert difference[:11].max() < 1e-12 < difference[11]
    assert model(bases, torch.full((2, 30), 1)).equal(logits)
    assert model.class_of_byte.equal(torch.arange(512))
    states = model.stack(model.embedding(bases))
    torch.testing.assert_close(logits, states @ (model.embedding if tied else model.head).weight[:512].T)


def test_a_head_of_the_scored_bytes() -> None:
    model = IsotropicConfig(stack=config(), head="scored").build().double()
    bases = torch.randint(0, 256, (2, 30))
    logits = model(bases)
    assert logits.shape == (2, 30, NUM_SCORED)
    torch.testing.assert_close(logits, model.states(bases) @ model.head.weight.T)
    assert model.class_of_byte[list(SCORED)].tolist() == list(range(NUM_SCORED))
    assert (model.class_of_byte >= 0).sum() == NUM_SCORED


def test_an_architecture_is_read_from_its_own_words() -> None:
    tree = IsotropicConfig(stack=config()).to_dict()
    assert IsotropicConfig.parse(tree).build() is not None
    assert tree["kind"] == "isotropic"
