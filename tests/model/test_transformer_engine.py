"""What TransformerEngine is given: it stands in as its documentation has it, and multiplies in fp32 on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from hyena_blt_savanna.model import fp8, transformer_engine
from hyena_blt_savanna.model.fp8 import Fp8Layers, Fp8Recipe, use_fp8
from hyena_blt_savanna.model.kernels import KernelError, Probe
from hyena_blt_savanna.model.stack import Stack, StackConfig

CARD = torch.device("cuda")


class Autocast:
    """Nested regions; scales are updated when the outermost one ends."""

    depth = 0
    recipe: Any = None
    num_updates = 0

    def __init__(self, enabled: bool, recipe: Any) -> None:
        self.enabled, self.given = enabled, recipe

    def __enter__(self) -> Self:
        Autocast.depth += 1
        Autocast.recipe = self.given if self.enabled else None
        return self

    def __exit__(self, *error: object) -> None:
        Autocast.depth -= 1
        if Autocast.depth == 0 and self.enabled:
            Autocast.num_updates += 1


class TheirLinear(nn.Module):
    """A layer whose weight is its own, unless another is lent."""

    def __init__(self, inputs: int, outputs: int, bias: bool, params_dtype: torch.dtype, device: str) -> None:
        super().__init__()
        assert not bias
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=params_dtype, device=device))
        self.seen = 0.0

    def forward(self, x: Tensor) -> Tensor:
        assert Autocast.depth > 0
        assert Autocast.recipe is not None
        assert x.is_contiguous()
        assert len(x) % 16 == 0
        self.seen = max(self.seen, float(x.detach().abs().max()))
        return x @ self.weight.T.to(x.dtype)

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.seen]).view(torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.seen = float(state.view(torch.float32))


def recipe_named(name: str) -> Any:
    return lambda **settings: SimpleNamespace(name=name, **settings)


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"autocast": Autocast, "Linear": TheirLinear}
    recipes = SimpleNamespace(
        **{name: recipe_named(name) for name in ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling")}
    )
    monkeypatch.setattr(transformer_engine, "load", lambda library, attribute: names[attribute])
    monkeypatch.setattr(transformer_engine, "_recipes", lambda: recipes)
    monkeypatch.setattr(fp8, "probe", lambda name: Probe(name, "2.20.2", None))
    monkeypatch.setattr(Autocast, "num_updates", 0)


def make_stack(**settings: object) -> Stack:
    torch.manual_seed(0)
    tree = {"width": 32, "num_heads": 4, "blocks": ["hyena_se", "attention", "hyena_mr"], "hyena": {"mr_taps": 8}}
    return StackConfig.parse({**tree, **settings}).build()


def layers_of(stack: Stack, **settings: object) -> Fp8Layers:
    return use_fp8(stack, Fp8Recipe.parse({"bf16_blocks": 0, **settings}), CARD)


def test_a_stack_with_lent_weights() -> None:
    """Values, gradients and names are those of the same stack without it."""
    plain, stack = make_stack(), make_stack()
    layers = layers_of(stack)
    assert layers.numerics == {
        "recipe": "current",
        "backend": "transformer_engine",
        "bf16_blocks": 0,
        "version": "2.20.2",
    }
    assert list(stack.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in stack.named_parameters()] == [name for name, _ in plain.named_parameters()]
    x, direction = torch.randn(2, 2, 21, 32)
    results = []
    for module in (plain, stack):
        with layers.passing():
            y = module(x)
        (y * direction).sum().backward()
        results.append((y.detach(), *(parameter.grad for parameter in module.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with layers.off():
        assert torch.equal(stack(x), plain(x))


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("current", {"name": "Float8CurrentScaling"}),
        ("block", {"name": "Float8BlockScaling"}),
        ("delayed", {"name": "DelayedScaling", "amax_history_len": 7, "amax_compute_algo": "max"}),
    ],
)
def test_recipes(recipe: str, wanted: dict[str, Any]) -> None:
    stack = make_stack()
    with layers_of(stack, recipe=recipe, history_steps=7).passing():
        assert vars(Autocast.recipe) == wanted
        stack(torch.randn(1, 16, 32))
    # Once a pass, not once a layer.
    assert Autocast.num_updates == 1


def test_delayed_state_lies_beside_the_weights() -> None:
    stack = make_stack()
    layers = layers_of(stack, recipe="delayed")
    with layers.passing():
        stack(torch.randn(1, 16, 32))
    state = layers.state()
    assert len(state) == 3 * 5
    other = layers_of(make_stack(), recipe="delayed")
    other.load_state(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state().items())
    other.load_state({})
    layers.end_step(lambda largest: largest)
    layers.forget_step()
    assert all(torch.equal(value, state[name]) for name, value in layers.state().items())
    assert layers_of(make_stack()).state() == {}


def test_what_it_can_not_do() -> None:
    with pytest.raises(KernelError, match=r"blocks.0.mlp.gate is 40 x 32: change the width .* use fp8.backend=torch"):
        layers_of(make_stack(mlp={"width": 40}))
    with pytest.raises(KernelError, match=r"activation checkpointing computes blocks again .*recipe=current or block"):
        layers_of(make_stack(activation_checkpointing=True), recipe="delayed")
    layers_of(make_stack(activation_checkpointing=True), recipe="block")
