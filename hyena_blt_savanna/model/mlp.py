"""The gated MLP of a block."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.flops import linear
from hyena_blt_savanna.model.initialisation import small_init_std, wang_init_std
from hyena_blt_savanna.model.linear import Linear

Activation = Literal["gelu", "silu", "identity"]


class MLPConfig(Config):
    """Width and activation of the gated MLPs."""

    width: int | None = Field(None, gt=0)
    """Hidden width F; None: two thirds of four times the model's width, so that the weights are 8 M^2."""
    round_up_to: int = Field(16, gt=0)
    """The derived width is rounded up to a multiple of this (128 in Evo 2 7B)."""
    activation: Literal["gelu", "silu", "identity", "gelu_until_long"] = "gelu"
    """Of the gate: GELU exact, or SiLU. `gelu_until_long`: GELU in the blocks before the first hyena_mr or hyena_li,
    identity from there on, as the Evo 2 weights were trained."""

    def hidden_width(self, width: int) -> int:
        """F for a model of `width` channels."""
        derived = int(2 * 4 * width / 3)
        return self.width or -(-derived // self.round_up_to) * self.round_up_to

    def flops(self, length: int, width: int) -> dict[str, float]:
        """Operations of one MLP over a sequence: gate, up and down, 6 M F a position."""
        return {"mlp": 3 * linear(length, width, self.hidden_width(width))}

    def activations(self, blocks: list[str]) -> list[Activation]:
        """The activation of each block's MLP."""
        if self.activation != "gelu_until_long":
            return [self.activation] * len(blocks)
        long = [index for index, name in enumerate(blocks) if name in ("hyena_mr", "hyena_li")]
        first = long[0] if long else len(blocks)
        return ["gelu" if index < first else "identity" for index in range(len(blocks))]


class GatedMLP(nn.Module):
    """down( activation(gate u) * (up u) ), without biases.

    Initialised with `small_init` (gate, up) and `wang_init` (down).

    Source: Shazeer 2020 (arXiv:2002.05202); Savanna's `ParallelGLU`.
    """

    def __init__(self, width: int, hidden_width: int, activation: Activation, num_blocks: int) -> None:
        super().__init__()
        self.activation = activation
        self.gate = Linear(width, hidden_width, bias=False)
        self.up = Linear(width, hidden_width, bias=False)
        self.down = Linear(hidden_width, width, bias=False)
        nn.init.normal_(self.gate.weight, std=small_init_std(width))
        nn.init.normal_(self.up.weight, std=small_init_std(width))
        nn.init.normal_(self.down.weight, std=wang_init_std(width, num_blocks))

    def forward(self, u: Tensor) -> Tensor:
        """[B, L, M] to [B, L, M]."""
        gate, up = self.gate(u), self.up(u)
        if self.activation == "gelu":
            return self.down(_GELUProduct.apply(gate, up))
        return self.down((functional.silu(gate) if self.activation == "silu" else gate) * up)


class _GELUProduct(torch.autograd.Function):
    """gelu(a) * b that keeps a and b for the backward pass, and computes gelu(a) again: a quarter less memory.

    No tensor is made besides the results: over a million bases these are the largest there are.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return functional.gelu(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        da = dy * b
        torch.ops.aten.gelu_backward(da, a, grad_input=da)
        return da, functional.gelu(a).mul_(dy)
