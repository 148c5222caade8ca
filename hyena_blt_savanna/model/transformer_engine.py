"""Products in FP8 by TransformerEngine 2: the weights stay ours, the scaling is its own.

A `Linear` of TransformerEngine lies beside each layer, outside the module tree, and is lent the layer's weight for the
time of a call: no parameter, name or `_extra_state` of it ever reaches a state dictionary, ZeRO cuts and gathers the
weights as always, and a checkpoint of one precision loads in any other. Weights in fp32 are rounded straight to FP8.

What is said of the library here is from its documentation and its source, release 2.20.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from hyena_blt_savanna.model.fp8 import Fp8Layers, Fp8Recipe
from hyena_blt_savanna.model.kernels import KernelError, load
from hyena_blt_savanna.model.linear import Projection

_SIDE = 16
"""Rows of a product are filled up to a multiple of this; the sides of a weight have to be one."""


class TransformerEngineFp8(Fp8Layers):
    """Products by TransformerEngine.

    Delayed scales are updated, over all ranks, when a forward pass ends; so they follow micro batches and not steps.

    Args:
        layers: by name; each is given its product.
        recipe: current, delayed or block.
        numerics: see `Fp8Layers`.

    Raises:
        KernelError: a weight has sides that it doesn't take.
    """

    def __init__(self, layers: Mapping[str, Projection], recipe: Fp8Recipe, numerics: Mapping[str, Any]) -> None:
        super().__init__(numerics)
        self._is_delayed = recipe.recipe == "delayed"
        self._autocast = load("transformer_engine", "autocast")
        self._recipe = _recipe(recipe)
        linear = load("transformer_engine", "Linear")
        self._linears: dict[str, Any] = {}
        for name, layer in layers.items():
            num_outputs, num_inputs = layer.weight.shape
            if num_outputs % _SIDE or num_inputs % _SIDE:
                raise KernelError(
                    f"TransformerEngine multiplies in FP8 by weights whose sides are multiples of {_SIDE}, and {name} "
                    f"is {num_outputs} x {num_inputs}: change the width of the model or of its MLP, or use "
                    "fp8.backend=torch"
                )
            self._linears[name] = linear(num_inputs, num_outputs, bias=False, params_dtype=torch.float32, device="meta")
            layer.product = _Product(self, self._linears[name])

    def passing(self) -> AbstractContextManager[Any]:
        """Around a forward pass; at the outermost end, delayed scales are updated."""
        context: AbstractContextManager[Any] = self._autocast(enabled=self.is_on, recipe=self._recipe)
        return context

    def end_step(self, largest_of_ranks: Callable[[Tensor], Tensor]) -> None:
        pass

    def forget_step(self) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        """TransformerEngine's own state of each layer, uint8, where scales are delayed."""
        if not self._is_delayed:
            return {}
        return {name: linear.get_extra_state().cpu() for name, linear in self._linears.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, linear in self._linears.items():
            if name in state:
                linear.set_extra_state(state[name])


class _Product:
    """A layer's product; see `linear.Product`."""

    def __init__(self, layers: TransformerEngineFp8, linear: Any) -> None:
        self._layers = layers
        self._linear = linear

    @property
    def is_on(self) -> bool:
        return self._layers.is_on

    def __call__(self, x: Tensor, weight: Tensor, channels_first: bool) -> Tensor:
        num_missing = -len(x) % _SIDE
        filled = functional.pad(x, (0, 0, 0, num_missing)) if num_missing else x
        # Blocks that are computed again are so outside of `passing`.
        with self._layers.passing():
            y: Tensor = functional_call(self._linear, {"weight": weight}, (filled.contiguous(),))
        y = y[: len(x)]
        return y.t() if channels_first else y


def _recipe(recipe: Fp8Recipe) -> Any:
    """TransformerEngine's recipe."""
    recipes = _recipes()
    if recipe.recipe == "delayed":
        return recipes.DelayedScaling(amax_history_len=recipe.history_steps, amax_compute_algo="max")
    return recipes.Float8CurrentScaling() if recipe.recipe == "current" else recipes.Float8BlockScaling()


def _recipes() -> Any:
    return importlib.import_module("transformer_engine.common.recipe")
