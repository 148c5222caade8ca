"""Products in FP8 against factors that are rounded by hand and multiplied in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hyena_blt_savanna.model import fp8
from hyena_blt_savanna.model.fp8 import (
    Fp8Layers,
    Fp8Recipe,
    choose_backend,
    power_of_two_scale,
    product_errors,
    use_fp8,
)
from hyena_blt_savanna.model.kernels import KernelError, Probe
from hyena_blt_savanna.model.linear import Linear
from hyena_blt_savanna.model.mixers import InputProjection, OutputProjection
from hyena_blt_savanna.model.stack import Stack, StackConfig

CPU = torch.device("cpu")
BLOCKS = ["hyena_se", "hyena_mr", "hyena_li", "attention"]


def make_stack(blocks: list[str] = BLOCKS, **settings: object) -> Stack:
    torch.manual_seed(0)
    tree = {"width": 32, "num_heads": 4, "blocks": blocks, "hyena": {"mr_taps": 8}, **settings}
    return StackConfig.parse(tree).build()


def alone(num_rows: int = 37, history_steps: int = 3, **settings: object) -> tuple[Linear, Fp8Layers, Tensor]:
    """A layer of odd sides in FP8, and something for it to read."""
    stack = nn.Module()
    torch.manual_seed(0)
    layer = Linear(20, 24, bias=True)
    stack.blocks = nn.ModuleList([layer])
    recipe = Fp8Recipe.parse({"backend": "torch", "bf16_blocks": 0, "history_steps": history_steps, **settings})
    layers = use_fp8(stack, recipe, CPU)  # type: ignore[arg-type]
    return layer, layers, torch.randn(num_rows, 20, requires_grad=True)


def rounded(x: Tensor, largest: float, bits: tuple[int, int]) -> Tensor:
    """By the definition of the format: so many bits of mantissa, and a smallest normal number 2 ** exponent."""
    mantissa, least = bits
    top = {3: 448.0, 2: 57344.0}[mantissa]
    scale = 1.0
    while largest * scale > top:
        scale /= 2
    while largest * scale * 2 <= top:
        scale *= 2
    scaled = (x.double() * scale).clamp(-top, top)
    exponents = scaled.abs().clamp(min=2.0**least).log2().floor()
    unit = 2 ** (exponents - mantissa)
    return (scaled / unit).round() * unit / scale


def forward8(x: Tensor, largest: float | None = None) -> Tensor:
    return rounded(x, float(x.abs().max()) if largest is None else largest, (3, -6))


def gradient8(x: Tensor, largest: float | None = None) -> Tensor:
    return rounded(x, float(x.abs().max()) if largest is None else largest, (2, -14))


def close(found: Tensor, wanted: Tensor) -> None:
    """Up to the order of fp32's sums."""
    assert float((found.detach().double() - wanted.detach()).abs().max() / wanted.detach().abs().max()) < 1e-6


def test_the_plain_reference_rounds_as_torch_does() -> None:
    x = torch.randn(4000) * torch.logspace(-8, 3, 4000)
    for dtype, by_hand in ((torch.float8_e4m3fn, forward8), (torch.float8_e5m2, gradient8)):
        scale = power_of_two_scale(x.abs().max(), dtype)
        torch.testing.assert_close((x * scale).to(dtype).double() / scale, by_hand(x), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "top"), [(torch.float8_e4m3fn, 448.0), (torch.float8_e5m2, 57344.0)])
def test_scales_are_the_largest_powers_of_two_that_fit(dtype: torch.dtype, top: float) -> None:
    largest = torch.tensor([1e-20, 0.3, 0.5, 1.0, 1.75, 1.7500001, 448.0, 57344.0, 1e20])
    scales = power_of_two_scale(largest, dtype)
    assert torch.equal(scales.log2(), scales.log2().round())
    assert ((scales * largest).double() <= top).all()
    assert ((scales * largest).double() * 2 > top).all()
    assert power_of_two_scale(torch.zeros(()), dtype).isfinite()
    assert power_of_two_scale(torch.tensor([torch.inf, torch.nan]), dtype).isnan().all()


@pytest.mark.parametrize("num_rows", [37, 32])
def test_a_layer_forward_and_back(num_rows: int) -> None:
    layer, _, x = alone(num_rows)
    y = layer(x)
    close(y, forward8(x.detach()) @ forward8(layer.weight.detach()).T + layer.bias.double())
    dy = torch.randn(num_rows, 24)
    y.backward(dy)
    assert x.grad is not None
    close(x.grad, gradient8(dy) @ forward8(layer.weight.detach()))
    close(layer.weight.grad, gradient8(dy).T @ forward8(x.detach()))
    close(layer.bias.grad, dy.double().sum(0))
    # Far from it without rounding.
    assert float((y - nn.functional.linear(x, layer.weight, layer.bias)).detach().abs().max()) > 1e-3


def test_products_as_torch_itself_computes_them() -> None:
    """torch's own product on a CPU, a plain loop, is the one that a card has a kernel for."""
    left, right = torch.randn(16, 32).to(fp8.FORWARD), torch.randn(48, 32).to(fp8.FORWARD).t()
    scales = torch.tensor(0.25), torch.tensor(2.0)
    theirs = torch._scaled_mm(left, right, scale_a=scales[0], scale_b=scales[1], out_dtype=torch.float32)
    close(fp8._multiply(left, scales[0], right, scales[1], torch.float32), theirs.double())
    gradient = torch.randn(16, 48).to(fp8.BACKWARD)
    theirs = torch._scaled_mm(gradient, right.t(), scale_a=scales[0], scale_b=scales[1], out_dtype=torch.float32)
    close(fp8._multiply(gradient, scales[0], right.t(), scales[1], torch.float32), theirs.double())


def test_what_a_card_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the left factor and columns of the right one lie together, and all sides are multiples of 16."""
    given = []

    def look(left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, *rest: object, **more: object):
        given.append((left, right))
        return plain(left, left_scale, right, right_scale, *rest, **more)

    plain: Callable[..., Tensor] = fp8._multiply
    monkeypatch.setattr(fp8, "_multiply", look)
    layer, _, x = alone()
    layer(x).sum().backward()
    assert [(left.dtype, right.dtype) for left, right in given] == [
        (fp8.FORWARD, fp8.FORWARD),
        (fp8.BACKWARD, fp8.FORWARD),
        (fp8.FORWARD, fp8.BACKWARD),
    ]
    for left, right in given:
        assert left.is_contiguous()
        assert right.t().is_contiguous()
        assert not [side for side in (*left.shape, *right.shape) if side % 16]


@pytest.mark.parametrize("interleaved", [True, False])
def test_projections_in_every_layout(interleaved: bool) -> None:
    stack = nn.Module()
    torch.manual_seed(0)
    stack.blocks = nn.ModuleList([InputProjection(16, interleaved), OutputProjection(16, True, 2)])
    into, out = stack.blocks
    u = torch.randn(2, 21, 16, requires_grad=True)
    plain = into(u), out(into(u).chunk(3)[0])
    layers = use_fp8(stack, Fp8Recipe(backend="torch", bf16_blocks=0), CPU)  # type: ignore[arg-type]
    weight = into.weight.detach()
    weight = weight.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1) if interleaved else weight
    z = into(u)
    close(z.flatten(1), forward8(weight) @ forward8(u.detach()).flatten(0, 1).T)
    y = z.chunk(3)[0].detach().requires_grad_()
    found = out(y)
    close(found, forward8(y.detach()).permute(1, 2, 0) @ forward8(out.weight.detach()).T + out.bias.double())
    dy = torch.randn_like(found)
    found.backward(dy)
    close(y.grad, (gradient8(dy) @ forward8(out.weight.detach())).permute(2, 0, 1))
    with layers.off():
        assert torch.equal(into(u), plain[0])
        assert torch.equal(out(into(u).chunk(3)[0]), plain[1])


def test_delayed_scales() -> None:
    layer, layers, _ = alone(recipe="delayed", history_steps=2)
    seen = []
    for factor in (1.0, 8.0, 0.1, 0.1, 0.1):
        x, dy = factor * torch.randn(32, 20), factor * torch.randn(32, 24)
        x.requires_grad_()
        # Two micro batches of which the second is the smaller: the larger decides.
        for share in (1.0, 0.5):
            found = layer(share * x)
            largest = [max(each) for each in zip(*seen[-2:], strict=True)] if seen else [share * float(x.abs().max())]
            close(found, forward8(share * x.detach(), largest[0]) @ forward8(layer.weight.detach()).T + layer.bias)
            x.grad = None
            found.backward(share * dy)
            wanted = gradient8(share * dy, largest[1] if seen else None) @ forward8(layer.weight.detach())
            close(x.grad, share * wanted)
        seen.append((float(x.detach().abs().max()), float(dy.abs().max())))
        with torch.no_grad():
            layer(1000 * x)
        layers.end_step(lambda largest: largest)
        # A step that is forgotten, and one that is only looked at, leave no trace.
        layer(1000 * x).sum().backward()
        layers.forget_step()


def test_delayed_scales_follow_the_largest_of_all_ranks() -> None:
    layer, layers, x = alone(recipe="delayed")
    layer(x)
    layers.end_step(lambda largest: largest * 8)
    found = layer(x)
    largest = 8 * float(x.detach().abs().max())
    weight = layer.weight.detach()
    close(found, forward8(x.detach(), largest) @ forward8(weight, 8 * float(weight.abs().max())).T + layer.bias)


def test_delayed_state_goes_on_where_it_was() -> None:
    layer, layers, x = alone(recipe="delayed")
    for factor in (1.0, 3.0):
        layer(factor * x).square().sum().backward()
        layers.end_step(lambda largest: largest)
    state = layers.state()
    assert {name: tuple(value.shape) for name, value in state.items()} == {"blocks.0.": (3, 3)}
    # Clipped to what was seen.
    wanted = layer(20 * x)
    layers.load_state({})
    assert not torch.equal(layer(20 * x), wanted)
    layers.load_state(state)
    assert torch.equal(layer(20 * x), wanted)
    # What is held must not change with the run.
    layers.end_step(lambda largest: largest)
    assert torch.equal(layers.state()["blocks.0."][1:], state["blocks.0."][:-1])
    current = alone()[1]
    assert current.state() == {}
    current.load_state({})


@pytest.mark.parametrize("recipe", ["current", "delayed"])
def test_infinities_are_not_swallowed(recipe: str) -> None:
    layer, layers, x = alone(recipe=recipe)
    layer(x).sum().backward()
    layers.end_step(lambda largest: largest)
    for bad in (torch.inf, torch.nan):
        dirty = x.detach().clone()
        dirty[3, 5] = bad
        assert not layer(dirty).isfinite().any()
        clean = x.detach().requires_grad_()
        dy = torch.ones(37, 24)
        dy[2, 2] = bad
        layer(clean).backward(dy)
        assert clean.grad is not None
        assert not clean.grad.isfinite().any()
        layers.forget_step()
    assert layer(x).isfinite().all()


def test_blocks_and_names() -> None:
    stack = make_stack()
    before = {name: (value.shape, value.dtype) for name, value in stack.state_dict().items()}
    recipe = Fp8Recipe(backend="torch")
    layers = use_fp8(stack, recipe, CPU)
    assert {name: (value.shape, value.dtype) for name, value in stack.state_dict().items()} == before
    chosen = {name for name, module in stack.named_modules() if getattr(module, "product", None) is not None}
    layers_of_block = ("mixer.in_projection", "mixer.out_projection", "mlp.gate", "mlp.up", "mlp.down")
    assert chosen == {f"blocks.{index}.{name}" for index in (1, 2) for name in layers_of_block}
    wanted = {"recipe": "current", "backend": "torch", "bf16_blocks": 1, "version": torch.__version__}
    assert layers.numerics == wanted
    delayed = use_fp8(stack, Fp8Recipe(backend="torch", recipe="delayed", bf16_blocks=0), CPU)
    assert delayed.numerics["history_steps"] == 16
    # Heads, norms, filters and the rest are no projections.
    assert len(delayed.state()) == 4 * len(layers_of_block)


@pytest.mark.parametrize("is_checkpointing", [False, True])
def test_a_stack_under_autocast(is_checkpointing: bool) -> None:
    """Values near bf16's; the way back through blocks that are computed again is the same."""
    plain = make_stack(activation_checkpointing=is_checkpointing).train()
    stack = make_stack().train()
    x, direction = torch.randn(2, 2, 40, 32)
    results = {}
    for name, module in (("fp8", stack), ("fp8 again", plain)):
        use_fp8(module, Fp8Recipe(backend="torch", recipe="delayed"), CPU)
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        (y.float() * direction).sum().backward()
        results[name] = (y.detach(), *(parameter.grad for parameter in module.parameters()))
    assert all(torch.equal(*pair) for pair in zip(*results.values(), strict=True))
    twin = make_stack()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = twin(x)
    (wanted.float() * direction).sum().backward()
    difference = (results["fp8"][0] - wanted).abs().max() / wanted.abs().max()
    assert 1e-4 < float(difference) < 0.1
    for found, parameter in zip(results["fp8"][1:], twin.parameters(), strict=True):
        assert found.dtype == torch.float32
        assert float((found - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-20)) < 0.3


def test_what_a_layer_loses() -> None:
    errors = product_errors("torch", CPU)
    assert set(errors) == {"y", "dx", "dw"}
    # Two factors of 3 bits, or one of 3 and one of 2.
    assert 0.02 < errors["y"] < 0.05
    assert 0.04 < errors["dx"] < 0.08
    assert 0.04 < errors["dw"] < 0.08


def test_frozen_weights_have_no_gradient() -> None:
    layer, _, x = alone()
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize(
    ("recipe", "reason", "message"),
    [
        ({"backend": "transformer_engine"}, "not installed; to install it: pip", "not installed.*fp8.backend=torch"),
        ({"backend": "transformer_engine"}, None, "computes on CUDA devices only, and this one is cpu"),
        ({"recipe": "block"}, "not installed", "block is TransformerEngine's, which can't be used: not installed"),
        ({"recipe": "block", "backend": "torch"}, None, "use one of them, or fp8.backend=transformer_engine"),
    ],
)
def test_refused_backends(
    monkeypatch: pytest.MonkeyPatch, recipe: dict[str, str], reason: str | None, message: str
) -> None:
    monkeypatch.setattr(fp8, "probe", lambda name: Probe(name, "2.20.2", reason))
    with pytest.raises(KernelError, match=message):
        choose_backend(Fp8Recipe.parse(recipe), CPU)


def test_devices_that_have_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    card, auto = torch.device("cuda"), Fp8Recipe()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(KernelError, match=r"cuda has compute capability 8.0, and FP8 needs 8.9: use bf16"):
        choose_backend(auto, card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose_backend(auto, card) == choose_backend(auto, CPU) == "torch"
    monkeypatch.setattr(fp8, "probe", lambda name: Probe(name, "2.20.2", None))
    assert choose_backend(auto, card) == "transformer_engine"
    assert choose_backend(auto, CPU) == choose_backend(Fp8Recipe(backend="torch"), card) == "torch"
