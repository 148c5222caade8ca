"""The block of the local modules: a short dense causal convolution that gates itself.

At the width of the local modules a depthwise filter costs as much time as a dense one of several taps, because it
moves the same memory and does no arithmetic to speak of; so the taps, the gate and the widening of an MLP are one
matrix product here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyena_blt_savanna.model.chunks import in_chunks

CHUNK_BASES = 8192
"""Bases that are widened at a time where activations are computed again."""


class GatedConvolution(nn.Module):
    """y = x + W_out(a * sigmoid(b)), with [a, b] = W_in applied to the last K bases of LayerNorm(x).

    Args:
        width: D.
        hidden_width: H, channels of a and of b.
        num_taps: K, the base itself and the K - 1 before it.
        activation_checkpointing: keep x alone for the backward pass, and compute the rest again.
    """

    def __init__(self, width: int, hidden_width: int, num_taps: int, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.norm = nn.LayerNorm(width, bias=False)
        self.widen = GatedCausalLinear(width, hidden_width, num_taps)
        self.narrow = nn.Linear(hidden_width, width, bias=False)

    def reset_parameters(self, num_layers: int) -> None:
        """Normal weights; the way out is scaled down by the depth of the whole residual stream."""
        nn.init.normal_(self.widen.weight, std=self.widen.in_features**-0.5)
        nn.init.normal_(self.narrow.weight, std=(self.narrow.in_features * 2 * num_layers) ** -0.5)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]; position t reads t - K + 1 to t."""
        if self.activation_checkpointing and self.training:
            mixed: Tensor = checkpoint(self._mix, x_BLD, use_reentrant=False, preserve_rng_state=False)
            return mixed
        return self._mix(x_BLD)

    def _mix(self, x_BLD: Tensor) -> Tensor:
        in_one_piece = not (self.activation_checkpointing and self.training)
        return x_BLD + self.narrow(self.widen(self.norm(x_BLD), None if in_one_piece else CHUNK_BASES))


class GatedCausalLinear(nn.Linear):
    """a * sigmoid(b) of a dense causal convolution without a bias; its weight is [2 H, K * D], the oldest tap first.

    A module of its own because ZeRO 3 gathers a weight around the forward of the module that owns it.
    """

    def __init__(self, width: int, hidden_width: int, num_taps: int) -> None:
        super().__init__(num_taps * width, 2 * hidden_width, bias=False)
        self.num_taps = num_taps

    def forward(self, x_BLD: Tensor, chunk_bases: int | None = None) -> Tensor:
        """[B, L, D] -> [B, L, H]; a and b of so many bases at a time, computed again for the gradient, or of all."""
        if chunk_bases is None:
            return self._gated(x_BLD, self.weight)
        return in_chunks(self._gated, x_BLD, (self.weight,), self.num_taps - 1, chunk_bases)

    def _gated(self, x_BLD: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.glu(causal_linear(x_BLD, weight, self.num_taps))


def causal_linear(x_BLD: Tensor, weight: Tensor, num_taps: int) -> Tensor:
    """A dense causal convolution as one matrix product.

    Args:
        x_BLD: [B, L, D].
        weight: [E, K * D], the oldest tap first.
        num_taps: K.

    Returns:
        [B, L, E].
    """
    return _CausalLinear.apply(x_BLD, weight, num_taps)


class _CausalLinear(torch.autograd.Function):
    """Keeps x for the backward pass, not the K times larger matrix of its windows."""

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, weight: Tensor, num_taps: int) -> Tensor:
        if torch.is_autocast_enabled(x_BLD.device.type):
            dtype = torch.get_autocast_dtype(x_BLD.device.type)
            x_BLD, weight = x_BLD.to(dtype), weight.to(dtype)
        ctx.num_taps = num_taps
        ctx.save_for_backward(x_BLD, weight)
        return nn.functional.linear(_windows(x_BLD, num_taps), weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, weight = ctx.saved_tensors
        y = gradients[0].to(x_BLD.dtype)
        batch, length, width = x_BLD.shape
        grad_weight = y.flatten(0, 1).T @ _windows(x_BLD, ctx.num_taps).flatten(0, 1)
        grad_windows = (y @ weight).view(batch, length, ctx.num_taps, width)
        grad_x = grad_windows[:, :, -1].clone()
        for back in range(1, min(ctx.num_taps, length)):
            grad_x[:, : length - back] += grad_windows[:, back:, -1 - back]
        return grad_x, grad_weight, None


def _windows(x_BLD: Tensor, num_taps: int) -> Tensor:
    """[B, L, K * D]: at each position the last K positions, oldest first, zeros before the first."""
    length = x_BLD.shape[1]
    padded = nn.functional.pad(x_BLD, (0, 0, num_taps - 1, 0))
    return torch.cat([padded[:, tap : tap + length] for tap in range(num_taps)], -1)
