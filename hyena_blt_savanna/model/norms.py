"""Root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.precision import no_autocast, widen


class NormConfig(Config):
    """How activations are normalised."""

    epsilon: float = Field(1e-6, gt=0)
    """Keeps the division finite."""
    epsilon_inside_root: bool = True
    """True: x / sqrt(mean(x^2) + epsilon). False: x / (sqrt(mean(x^2)) + epsilon), as in Savanna and Vortex."""

    def build(self, width: int) -> RMSNorm:
        """A norm over `width` channels."""
        return RMSNorm(width, self)


class RMSNorm(nn.Module):
    """Divides by the root mean square of the channels, then scales each channel.

    Source: Zhang and Sennrich 2019 (arXiv:1910.07467); Savanna's `RMSNorm` for epsilon outside the root.
    """

    def __init__(self, width: int, config: NormConfig | None = None) -> None:
        super().__init__()
        self.config = config or NormConfig()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last dimension.

        Args:
            x: [..., M], any floating dtype; computed in fp32 at least.

        Returns:
            [..., M], dtype of x.
        """
        wide = widen(x)
        y = _Normalise.apply(wide, self.scale.to(wide.dtype), self.config.epsilon, self.config.epsilon_inside_root)
        assert isinstance(y, Tensor)
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.scale.numel()}, epsilon={self.config.epsilon}, inside_root={self.config.epsilon_inside_root}"


class _Normalise(torch.autograd.Function):
    """Saves x and one number a position; autograd's own graph saves x three times over."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, epsilon: float, inside: bool) -> Tensor:
        # The norm is one reduction without a squared copy of x.
        root = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        inverse = (root.square() + epsilon).rsqrt() if inside else 1 / (root + epsilon)
        ctx.save_for_backward(x, scale, root, inverse)
        ctx.inside, ctx.epsilon = inside, epsilon
        return (x * inverse).mul_(scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, root, inverse = ctx.saved_tensors
        dy_x = dy * x
        width = x.shape[-1]
        with no_autocast(x):
            dscale = torch.mv(dy_x.reshape(-1, width).t(), inverse.reshape(-1))
            along = torch.mv(dy_x.reshape(-1, width), scale).view_as(inverse)
        # d(inverse)/dx = -slope x / width. A position of zeros has no direction: where the root is next to nothing
        # beside epsilon, the slope may be anything finite.
        slope = inverse**3 if ctx.inside else inverse**2 / root.clamp_min(1e-8 * ctx.epsilon)
        dx = (dy * scale).mul_(inverse)
        dx.addcmul_(x, slope.mul_(along).div_(-width))
        return dx, dscale, None, None
