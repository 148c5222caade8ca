"""Reading base by base gives the logits of one parallel pass, with memories that do not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model.decoding import Decoder, StackReader
from hyena_blt_savanna.model.isotropic import Isotropic, IsotropicConfig
from hyena_blt_savanna.model.memories import modal_state
from hyena_blt_savanna.model.stack import StackConfig

MODELS: dict[str, dict[str, Any]] = {
    "hyena_se": {"stack": {"blocks": ["hyena_se"] * 2, "hyena": {"se_groups": 3}}},
    "hyena_mr": {"stack": {"blocks": ["hyena_mr"] * 2, "hyena": {"mr_taps": 20, "mr_groups": 4}}},
    "hyena_li": {"stack": {"blocks": ["hyena_li"] * 2, "hyena": {"li_groups": 6, "li_order": 5}}},
    "hyena_implicit": {"stack": {"blocks": ["hyena_implicit"] * 2, "hyena": {"implicit_length": 64}}},
    "attention": {"stack": {"blocks": ["attention"] * 2, "attention": {"rotary": {"position_scale": 4.0}}}},
    "windowed": {"stack": {"blocks": ["attention"] * 2, "attention": {"window": 7}}},
    "one position": {
        "stack": {
            "blocks": ["attention", "hyena_se"],
            "attention": {"window": 1},
            "hyena": {"se_taps": 1, "featurizer_taps": 1, "output_bias": False},
        }
    },
    "upstream": {
        "stack": {
            "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"],
            "hyena": {"interleaved_projection": True, "mr_taps": 30},
            "mlp": {"activation": "gelu_until_long"},
            "norm": {"epsilon_inside_root": False},
        }
    },
    "words": {"stack": {"blocks": ["hyena_se"]}, "kmers": {"sizes": [1, 3, 6]}, "head": "scored"},
    "single letters": {"stack": {"blocks": ["hyena_li"], "final_norm": False}, "kmers": {"sizes": [1]}},
}


def build(name: str) -> Isotropic:
    tree = MODELS[name]
    stack = {"width": 12, "num_heads": 2} | tree["stack"]
    torch.manual_seed(2)
    model = IsotropicConfig.parse(tree | {"stack": stack}).build().eval().requires_grad_(False)
    for part, weight in model.named_parameters():
        # Sines of a high frequency make a large number of a rounding error where their weights are large.
        weight.add_((0.02 if "implicit_filter" in part else 0.2) * torch.randn_like(weight))
    return model


def sequence(length: int) -> Tensor:
    bases = torch.tensor(list(b"ACGTN"))[torch.randint(0, 5, (2, length))]
    bases[:, 0] = 0
    return bases


def read(model: Isotropic, bases: Tensor, num_first: int) -> Tensor:
    """Logits [B, L - num_first + 1, C] after a first stretch and each base behind it."""
    decoder = Decoder(model)
    logits = [decoder.prefill(bases[:, :num_first])]
    logits += [decoder.step(base) for base in bases[:, num_first:].unbind(1)]
    return torch.stack(logits, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("num_first", [1, 40])
@pytest.mark.parametrize("name", MODELS)
def test_steps_equal_the_parallel_pass(name: str, num_first: int, dtype: torch.dtype, tolerance: float) -> None:
    model = build(name).to(dtype)
    bases = sequence(100)
    ours, whole = read(model, bases, num_first), model(bases)[:, num_first - 1 :]
    assert ours.shape == whole.shape
    assert float((ours - whole).abs().max() / whole.abs().max()) <= tolerance


@pytest.mark.parametrize("name", MODELS)
def test_rows_at_different_positions_are_read_side_by_side(name: str) -> None:
    """Joined, repeated, put in another order and left out on the way."""
    model = build(name)
    bases, first = sequence(100), (70, 1, 12)
    of_row = bases[0], bases[1], bases[1].flip(0)
    decoders = [Decoder(model) for _ in first]
    logits = [decoder.prefill(row[None, :length]) for decoder, row, length in zip(decoders, of_row, first, strict=True)]
    decoder, *others = decoders
    decoder.join(others)
    rows = torch.tensor([2, 0, 1, 0])
    decoder.select(rows)
    found = [[of_row] for of_row in torch.cat(logits)[rows]]
    for step in range(25):
        if step == 20:
            rows = rows[:3]
            decoder.select(torch.tensor([0, 1, 2]))
        stepped = decoder.step(torch.stack([of_row[row][first[row] + step] for row in rows]))
        for place, of_place in enumerate(stepped):
            found[place].append(of_place)
    for place, row in enumerate((2, 0, 1)):
        whole = model(of_row[row][None])[0, first[row] - 1 : first[row] + 25]
        assert float((torch.stack(found[place]) - whole).abs().max() / whole.abs().max()) <= 1e-5
    assert len(found[3]) == 21
    torch.testing.assert_close(torch.stack(found[3]), torch.stack(found[1][:21]))


@pytest.mark.parametrize("length", [1, 2, 9, 10, 100, 257])
def test_modal_state_equals_the_sum(length: int) -> None:
    rates = torch.rand(3, 4, dtype=torch.double) + 0.01
    p = torch.randn(6, 2, length, dtype=torch.double)
    lags = torch.arange(length - 1, -1, -1)
    expected = torch.zeros(6, 2, 4, dtype=torch.double)
    for channel in range(6):
        for order in range(4):
            shrunk = torch.exp(-rates[channel // 2, order] * lags)
            expected[channel, :, order] = (p[channel] * shrunk).sum(-1)
    torch.testing.assert_close(modal_state(p, rates), expected)


def tensors_of(thing: Any, seen: set[int]) -> list[Tensor]:
    """What an object holds, however deep, but for the weights of modules."""
    if id(thing) in seen or isinstance(thing, torch.nn.Module):
        return []
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        return [thing]
    parts = list(thing) if isinstance(thing, list | tuple) else list(getattr(thing, "__dict__", {}).values())
    return [tensor for part in parts for tensor in tensors_of(part, seen)]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_remembered_does_not_grow(name: str) -> None:
    decoder = Decoder(build(name))
    decoder.prefill(sequence(10))
    held = []
    for base in sequence(150).unbind(1):
        decoder.step(base)
        held.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(decoder, set())))
    assert min(held) > 0
    if name in ("attention", "upstream", "hyena_implicit"):
        assert held[-1] > 1.5 * held[0]
    else:
        # Once the window has moved to the front of its buffer.
        assert held[-1] == held[100] < 200_000


@pytest.mark.parametrize("name", ["hyena_mr", "hyena_li", "windowed", "words"])
def test_a_long_prompt_is_not_kept(name: str) -> None:
    held = []
    for length in (40, 600):
        decoder = Decoder(build(name))
        decoder.prefill(sequence(length))
        held.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(decoder, set())))
    assert held[0] == held[1]


@torch.no_grad()
def test_a_stack_reads_vectors() -> None:
    torch.manual_seed(0)
    stack = StackConfig(width=8, num_heads=2, blocks=["hyena_li", "attention", "hyena_mr"]).build()
    reader, x = StackReader.of(stack), torch.randn(3, 40, 8)
    parts = [reader.prefill(x[:, :15]), *(reader.step(x[:, t])[:, None] for t in range(15, 40))]
    torch.testing.assert_close(torch.cat(parts, 1), stack(x).detach(), rtol=1e-5, atol=1e-5)


def test_bf16_weights() -> None:
    model = build("upstream").bfloat16()
    bases = sequence(90)
    ours, whole = read(model, bases, 60), model(bases)[:, 59:]
    assert ours.dtype == torch.bfloat16
    assert float((ours - whole).abs().max() / whole.abs().max()) < 0.03
