"""The large products of a block, vectors by weights, behind one function: what computes them is told from outside.

A layer owns its weights as plain parameters, whatever multiplies them; names, shapes and dtypes of a state dictionary
are the same for every precision. Without a product of another kind, torch multiplies in the dtype that autocast says.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Product(Protocol):
    """Vectors times a weight, by something else than torch in the dtype at hand; see `fp8`."""

    @property
    def is_on(self) -> bool:
        """Whether it is to be used now."""

    def __call__(self, x: Tensor, weight: Tensor, channels_first: bool) -> Tensor:
        """x W^T of x [N, I] and W [O, I], with gradients for both: [N, O], or [O, N] with channels first."""


class Projection(nn.Module):
    """A layer that multiplies by a weight [O, I] through `project`.

    Attributes:
        product: takes the place of torch's; None leaves it to torch.
    """

    weight: Tensor
    product: Product | None = None


class Linear(nn.Linear, Projection):
    """torch's linear map, whose product can be of another kind."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        y = project(x.reshape(-1, x.shape[-1]), self.weight, self.bias, self.product)
        return y.view(*x.shape[:-1], -1)


def project(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, product: Product | None = None, channels_first: bool = False
) -> Tensor:
    """x W^T + b.

    Args:
        x: [N, I].
        weight: [O, I].
        bias: [O]; not with channels first.
        product: of the layer; None, or one that is off, leaves it to torch.
        channels_first: give the transpose, which is computed as such.

    Returns:
        [N, O], or [O, N].
    """
    assert bias is None or not channels_first
    if product is None or not product.is_on:
        return torch.mm(weight, x.t()) if channels_first else functional.linear(x, weight, bias)
    y = product(x, weight, channels_first)
    return y if bias is None else y + bias.to(y.dtype)
