"""Products of a stack's blocks in 8-bit floating point, by torch or TransformerEngine; the rest of a model is in bf16.

Both factors of a product, and on the way back the gradient of its result, are scaled so that their largest value fits,
and rounded: to e4m3 forward, to e5m2 gradients. Scales are powers of two here, so that scaling itself rounds nothing.

| recipe    | a tensor is scaled by                                                                | by                |
|-----------|--------------------------------------------------------------------------------------|-------------------|
| `current` | its own largest value                                                                | torch, TE         |
| `delayed` | the largest value of the last steps in its place, of all ranks; its own in the first | torch, TE         |
| `block`   | the largest value of each stretch or square of 128                                   | TE                |

A step's scales are fixed when it begins: neither micro batches nor blocks that are computed again change them, and all
ranks have the same. What lies beyond the largest value of the last steps is clipped to it. Infinities and NaN stay what
they are under any recipe, so that a diverging step is seen.

Source: Micikevicius et al. 2022 (arXiv:2209.05433), formats and scaling by tensor; TransformerEngine's recipes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.kernels import KernelError, probe
from hyena_blt_savanna.model.linear import Projection
from hyena_blt_savanna.model.precision import no_autocast, product_dtype
from hyena_blt_savanna.model.stack import Stack, StackConfig

Backend = Literal["torch", "transformer_engine"]

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
LEAST_CAPABILITY = (8, 9)
"""Of a CUDA device that multiplies in FP8."""
_LEFT, _RIGHT, _GRADIENT = range(3)
"""Places of a product: its factors, and the gradient of its result."""
_SIDE = 16
"""Sides of the factors are filled up with zeros to multiples of this, as the kernels want them."""
_SMALLEST = 1e-30
"""Tensors with a smaller largest value, such as those of zeros, are scaled as if they had this one."""


class Fp8Recipe(Config):
    """How products are computed in FP8."""

    recipe: Literal["current", "delayed", "block"] = "current"
    """What the scales follow: the tensor itself, the steps before, or each 128 of its values."""
    backend: Literal["auto", "transformer_engine", "torch"] = "auto"
    """auto: TransformerEngine where it can be used, torch's own FP8 elsewhere."""
    history_steps: PositiveInt = 16
    """Steps whose largest values decide the scales; read by `delayed` only."""
    bf16_blocks: NonNegativeInt = 1
    """So many blocks at the start and as many at the end of the stack stay in bf16."""


class Fp8Layers(ABC):
    """The layers of a model that multiply in FP8, and what they know of the tensors they have seen.

    None of it is in the model's state dictionary: `state` is kept beside it.

    Attributes:
        is_on: whether products are computed in FP8; see `off`.
        numerics: what decides the values of the products: recipe, backend and its version, blocks left out.
    """

    def __init__(self, numerics: Mapping[str, Any]) -> None:
        self.is_on = True
        self.numerics = dict(numerics)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The same weights, multiplied by torch in the dtype at hand."""
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True

    def passing(self) -> AbstractContextManager[Any]:
        """Around each forward pass of the model."""
        return nullcontext()

    @abstractmethod
    def end_step(self, largest_of_ranks: Callable[[Tensor], Tensor]) -> None:
        """The weights have been updated; every rank calls.

        Args:
            largest_of_ranks: the element-wise maxima of a tensor over all ranks.
        """

    @abstractmethod
    def forget_step(self) -> None:
        """The step was not learned from; nothing of it may decide later scales."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What the next step's values depend on besides the weights, by name; the same on all ranks."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `state` of the same numerics; from an empty one as at the first step."""


def choose_backend(recipe: Fp8Recipe, device: torch.device) -> Backend:
    """What computes the products on a device.

    Raises:
        KernelError: what is asked for can't be had there.
    """
    engine_reason = probe("transformer_engine").reason
    if engine_reason is None and device.type != "cuda":
        engine_reason = f"it computes on CUDA devices only, and this one is {device.type}"
    if recipe.backend != "torch" and engine_reason is None:
        return "transformer_engine"
    if recipe.backend == "transformer_engine":
        raise KernelError(f"fp8.backend transformer_engine can't be used: {engine_reason}; or use fp8.backend=torch")
    if recipe.recipe == "block":
        raise KernelError(
            "fp8.recipe block is TransformerEngine's"
            + (f", which can't be used: {engine_reason}" if engine_reason else "")
            + "; torch's own FP8 has current and delayed: use one of them, or fp8.backend=transformer_engine"
        )
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        have, want = (".".join(map(str, pair)) for pair in (torch.cuda.get_device_capability(device), LEAST_CAPABILITY))
        raise KernelError(f"precision fp8: {device} has compute capability {have}, and FP8 needs {want}: use bf16")
    return "torch"


def use_fp8(stack: Stack, recipe: Fp8Recipe, device: torch.device) -> Fp8Layers:
    """Lets the projections and MLPs of a stack's inner blocks multiply in FP8 from now on.

    Args:
        stack: whose weights are still whole, before ZeRO cuts them.
        recipe: leaves at least one block.
        device: where it will compute.

    Raises:
        KernelError: what is asked for can't be had there, or not for layers of such widths.
    """
    backend, num_blocks = choose_backend(recipe, device), len(stack.blocks)
    layers = {
        f"blocks.{index}.{name}": module
        for index in range(recipe.bf16_blocks, num_blocks - recipe.bf16_blocks)
        for name, module in stack.blocks[index].named_modules()
        if isinstance(module, Projection)
    }
    assert layers, "the run's configuration leaves some blocks"
    numerics = {"recipe": recipe.recipe, "backend": backend, "bf16_blocks": recipe.bf16_blocks}
    if recipe.recipe == "delayed":
        numerics["history_steps"] = recipe.history_steps
    if backend == "torch":
        return TorchFp8(layers, recipe, {**numerics, "version": torch.__version__}, device)
    if recipe.recipe == "delayed" and stack.config.activation_checkpointing:
        raise KernelError(
            "TransformerEngine updates delayed scales at the end of a forward pass, and activation checkpointing "
            "computes blocks again with other ones: use fp8.recipe=current or block, or fp8.backend=torch"
        )
    from hyena_blt_savanna.model.transformer_engine import TransformerEngineFp8

    return TransformerEngineFp8(layers, recipe, {**numerics, "version": probe("transformer_engine").version})


def product_errors(backend: Backend, device: torch.device) -> dict[str, float]:
    """How far a layer in FP8 is from one in fp32: the norm of the difference over the norm of what is wanted.

    Some hundredths are FP8's own rounding.

    Args:
        backend: that computes it.
        device: where.

    Raises:
        KernelError: it can't be used there.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(shape, generator=generator).to(device) for shape in ((72, 64), (96, 64), (72, 96)))
    x, weight, dy = numbers
    config = StackConfig.parse({"width": 64, "mlp": {"width": 96}, "blocks": ["hyena_se"]})
    with torch.random.fork_rng(devices=[]):
        stack = config.build().to(device)
    use_fp8(stack, Fp8Recipe(backend=backend, bf16_blocks=0), device)
    layer = stack.blocks[0].get_submodule("mlp.gate")
    layer.get_parameter("weight").data.copy_(weight)
    x.requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        y = layer(x)
    y.backward(dy.to(y.dtype))
    found = {"y": y.detach(), "dx": x.grad, "dw": layer.get_parameter("weight").grad}
    with torch.no_grad():
        wanted = {"y": x @ weight.T, "dx": dy @ weight, "dw": dy.T @ x}
    return {name: float((found[name] - each).norm() / each.norm()) for name, each in wanted.items()}


class TorchFp8(Fp8Layers):
    """Products by torch's FP8.

    On a CPU, where torch has a plain loop only, the rounded factors are multiplied in fp32: the same values but for the
    order of their sums.

    Args:
        layers: by name; each is given its product.
        recipe: current or delayed.
        numerics: see `Fp8Layers`.
        device: of the model.
    """

    def __init__(
        self, layers: Mapping[str, Projection], recipe: Fp8Recipe, numerics: Mapping[str, Any], device: torch.device
    ) -> None:
        super().__init__(numerics)
        self._names = list(layers)
        self._is_delayed = recipe.recipe == "delayed"
        # Of each layer and each place in its product: the largest values of this step, and of the steps before.
        self._largest = torch.zeros(len(layers), 3, device=device)
        self._history = torch.zeros(recipe.history_steps, len(layers), 3, device=device)
        for index, layer in enumerate(layers.values()):
            layer.product = _TorchProduct(self, index)

    def end_step(self, largest_of_ranks: Callable[[Tensor], Tensor]) -> None:
        if self._is_delayed:
            self._history = torch.cat([largest_of_ranks(self._largest)[None], self._history[:-1]])
            self.forget_step()

    def forget_step(self) -> None:
        self._largest = torch.zeros_like(self._largest)

    def state(self) -> dict[str, Tensor]:
        """Largest values [steps, 3] of each layer, the newest first."""
        if not self._is_delayed:
            return {}
        return {name: self._history[:, index].clone() for index, name in enumerate(self._names)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.forget_step()
        if not state or not self._is_delayed:
            self._history.zero_()
            return
        self._history.copy_(torch.stack([state[name] for name in self._names], 1))

    def round(self, layer: int, place: int, x: Tensor, is_recorded: bool) -> tuple[Tensor, Tensor]:
        """A tensor in FP8.

        Args:
            layer: whose product it is for.
            place: in the product.
            x: [R, C].
            is_recorded: whether later steps are scaled by it.

        Returns:
            [R, C], both filled up; and what its values have to be multiplied by.
        """
        dtype = BACKWARD if place == _GRADIENT else FORWARD
        smallest, largest = torch.aminmax(x)
        largest = torch.maximum(-smallest, largest).float()
        if self._is_delayed:
            if is_recorded:
                self._largest[layer, place] = torch.maximum(self._largest[layer, place], largest)
            before = self._history[:, layer, place].amax()
            largest = torch.where((before > 0) & largest.isfinite(), before, largest)
        scale = power_of_two_scale(largest, dtype)
        scaled = x * scale
        if self._is_delayed:
            bound = torch.finfo(dtype).max
            scaled = scaled.clamp_(-bound, bound)
        return _filled_up(scaled.to(dtype)), 1 / scale


def power_of_two_scale(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest power of two by which a value stays within a format; NaN where the value is not finite.

    Args:
        largest: fp32.
        dtype: the format.
    """
    _, exponent = torch.frexp(torch.finfo(dtype).max / largest.clamp(min=_SMALLEST))
    return torch.where(largest.isfinite(), torch.ldexp(torch.ones_like(largest), exponent - 1), torch.nan)


class _TorchProduct:
    """A layer's product; see `linear.Product`."""

    def __init__(self, layers: TorchFp8, index: int) -> None:
        self._layers = layers
        self._index = index

    @property
    def is_on(self) -> bool:
        return self._layers.is_on

    def __call__(self, x: Tensor, weight: Tensor, channels_first: bool) -> Tensor:
        left, right = (weight, x.t()) if channels_first else (x, weight.t())
        # Within an autograd function gradients are off: whether this is a training's pass is known here.
        y: Tensor = _Fp8Product.apply(left, right, self.round, product_dtype(x), torch.is_grad_enabled())
        return y

    def round(self, place: int, x: Tensor, is_recorded: bool = True) -> tuple[Tensor, Tensor]:
        return self._layers.round(self._index, place, x, is_recorded)


class _Fp8Product(torch.autograd.Function):
    """left [R, K] times right [K, C], which keeps both in FP8 for the way back.

    The kernels want a left factor whose rows, and a right one whose columns, lie together: each factor is kept as the
    way back wants it.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, rounded: Any, dtype: torch.dtype, is_recorded: bool) -> Tensor:
        left8, left_scale = rounded(_LEFT, left, is_recorded)
        right8, right_scale = rounded(_RIGHT, right, is_recorded)
        ctx.rounded, ctx.dtypes, ctx.shape = rounded, (left.dtype, right.dtype), (*left.shape, right.shape[1])
        ctx.save_for_backward(_by_columns(left8), left_scale, right8.contiguous(), right_scale)
        y = _multiply(left8.contiguous(), left_scale, _by_columns(right8), right_scale, dtype, use_fast_sums=True)
        return y[: left.shape[0], : right.shape[1]]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        left8, left_scale, right8, right_scale = ctx.saved_tensors
        num_rows, num_inner, num_columns = ctx.shape
        dy8, dy_scale = ctx.rounded(_GRADIENT, dy)
        dleft, dright = None, None
        if ctx.needs_input_grad[0]:
            dleft = _multiply(dy8.contiguous(), dy_scale, right8.t(), right_scale, ctx.dtypes[0])
            dleft = dleft[:num_rows, :num_inner]
        if ctx.needs_input_grad[1]:
            dright = _multiply(left8.t(), left_scale, _by_columns(dy8), dy_scale, ctx.dtypes[1])
            dright = dright[:num_inner, :num_columns]
        return dleft, dright, None, None, None


def _multiply(
    left8: Tensor,
    left_scale: Tensor,
    right8: Tensor,
    right_scale: Tensor,
    dtype: torch.dtype,
    use_fast_sums: bool = False,
) -> Tensor:
    """left [R, K] times right [K, C], both in FP8 and to be multiplied by their scales."""
    if left8.device.type == "cpu" and type(left8) is Tensor:
        with no_autocast(left8):
            return (left8.float() @ right8.float() * (left_scale * right_scale)).to(dtype)
    return torch._scaled_mm(
        left8, right8, scale_a=left_scale, scale_b=right_scale, out_dtype=dtype, use_fast_accum=use_fast_sums
    )


def _by_columns(x: Tensor) -> Tensor:
    """The same matrix, whose columns lie together in memory."""
    return x.t().contiguous().t()


def _filled_up(x: Tensor) -> Tensor:
    """[R, C] with zeros behind, so that both sides are what the kernels want."""
    sides = [-(-side // _SIDE) * _SIDE for side in x.shape]
    if sides == list(x.shape):
        return x
    filled = x.new_zeros(sides)
    filled[: x.shape[0], : x.shape[1]] = x
    return filled
