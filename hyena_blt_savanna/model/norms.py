"""Root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.fused import kernels_for
from hyena_blt_savanna.model.precision import no_autocast, product_dtype, widen


class NormConfig(Config):
    """How activations are normalised."""

    epsilon: float = Field(1e-6, gt=0)
    """Keeps the division finite."""
    epsilon_inside_root: bool = True
    """True: x / sqrt(mean(x^2) + epsilon). False: x / (sqrt(mean(x^2)) + epsilon), as in Savanna and Vortex."""

    def build(self, width: int, before_product: bool = False) -> RMSNorm:
        """A norm over `width` channels; see `RMSNorm`."""
        return RMSNorm(width, self, before_product)


class RMSNorm(nn.Module):
    """Divides by the root mean square of the channels, then scales each channel.

    Args:
        width: M.
        config: where epsilon stands.
        before_product: nothing but matrix products reads the result: autocast would narrow it for each of them, and it
            comes narrowed.

    Source: Zhang and Sennrich 2019 (arXiv:1910.07467); Savanna's `RMSNorm` for epsilon outside the root.
    """

    def __init__(self, width: int, config: NormConfig | None = None, before_product: bool = False) -> None:
        super().__init__()
        self.before_product = before_product
        self.config = config or NormConfig()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last dimension.

        Args:
            x: [..., M], any floating dtype; computed in fp32 at least.

        Returns:
            [..., M], dtype of x, or the one that autocast gives to matrix products.
        """
        dtype = product_dtype(x) if self.before_product else x.dtype
        y = _Normalise.apply(x, self.scale, self.config.epsilon, self.config.epsilon_inside_root, dtype)
        assert isinstance(y, Tensor)
        return y

    def extra_repr(self) -> str:
        return f"{self.scale.numel()}, epsilon={self.config.epsilon}, inside_root={self.config.epsilon_inside_root}"


class _Normalise(torch.autograd.Function):
    """Saves x and one number a position; autograd's own graph saves x three times over."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, epsilon: float, inside: bool, dtype: torch.dtype) -> Tensor:
        ctx.inside, ctx.epsilon = inside, epsilon
        wide_scale = widen(scale)
        kernels = kernels_for(x, wide_scale)
        if kernels is not None:
            y, root = kernels.normalise(x, wide_scale, epsilon, inside, dtype)
        else:
            wide = widen(x)
            # The norm is one reduction without a squared copy of x.
            root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
            y = (wide * _inverse(root, epsilon, inside)).mul_(wide_scale).to(dtype)
        ctx.save_for_backward(x, scale, root)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, root = ctx.saved_tensors
        wide_scale = widen(scale)
        kernels = kernels_for(x, wide_scale, dy)
        if kernels is not None:
            dx, dscale = kernels.normalise_backward(x, wide_scale, root, ctx.epsilon, ctx.inside, dy)
            return dx, dscale.to(scale.dtype), None, None, None
        wide, dy = widen(x), dy.to(root.dtype)
        inverse = _inverse(root, ctx.epsilon, ctx.inside)
        dy_x = dy * wide
        width = x.shape[-1]
        with no_autocast(x):
            dscale = torch.mv(dy_x.reshape(-1, width).t(), inverse.reshape(-1))
            along = torch.mv(dy_x.reshape(-1, width), wide_scale).view_as(inverse)
        # d(inverse)/dx = -slope x / width. A position of zeros has no direction: where the root is next to nothing
        # beside epsilon, the slope may be anything finite.
        slope = inverse**3 if ctx.inside else inverse**2 / root.clamp_min(1e-8 * ctx.epsilon)
        dx = (dy * wide_scale).mul_(inverse)
        dx.addcmul_(wide, slope.mul_(along).div_(-width))
        return dx.to(x.dtype), dscale.to(scale.dtype), None, None, None


def _inverse(root: Tensor, epsilon: float, inside: bool) -> Tensor:
    return (root.square() + epsilon).rsqrt() if inside else 1 / (root + epsilon)
