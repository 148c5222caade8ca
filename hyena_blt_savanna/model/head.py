"""The last map of a model, and what its logits cost the bases without ever having the logits of all of them.

Logits of a million bases over 512 bytes are 2 GB, their softmax and its gradient as much again. But what is trained is
one number, and its gradient at a base needs the logits of that base alone: so the map and the loss go over the bases
in chunks, and the gradient of each chunk is computed at once, while its logits are there.

Source: fused linear cross-entropy (Liger Kernel, Hsu et al. 2024, arXiv:2410.10989, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.model.base_nats import weighted_nats
from hyena_blt_savanna.model.precision import no_autocast


@dataclass(frozen=True)
class Targets:
    """The bases that states are asked for.

    Attributes:
        bases: int64 [B, L]; states at t - 1 score base t.
        loss_weights: float32 [B, L]; weight of base t as a target, 0 for letters without a column.
        class_of_byte: int64 [512], column of each byte; -1 for bytes that are never scored.
        chunk_bases: bases whose logits exist at a time; None: all of them.
    """

    bases: Tensor
    loss_weights: Tensor
    class_of_byte: Tensor
    chunk_bases: int | None = None

    def nats_of_logits(self, logits: Tensor) -> Tensor:
        """Weighted nats of logits [B, L, C]: a scalar, float32 at least."""
        return weighted_nats(logits, self.bases, self.loss_weights, self.class_of_byte)

    def nats_of_states(self, x_BLD: Tensor, weight: Tensor) -> Tensor:
        """Weighted nats of the logits that a linear map makes of states.

        Args:
            x_BLD: [B, L, D].
            weight: [C, D].

        Returns:
            A scalar, float32 at least. Where the chunks are several, its backward pass may run once.
        """
        if self.chunk_bases is None:
            return self.nats_of_logits(functional.linear(x_BLD, weight))
        # Nothing follows a row's last base.
        classes = functional.pad(self.class_of_byte[self.bases[:, 1:]], (0, 1), value=-1).flatten()
        weights = functional.pad(self.loss_weights[:, 1:], (0, 1)).flatten().masked_fill(classes < 0, 0)
        nats: Tensor = _ChunkedNats.apply(
            x_BLD.flatten(0, 1), weight, classes.clamp(min=0), weights, self.chunk_bases, torch.is_grad_enabled()
        )
        return nats


class Head(nn.Linear):
    """A linear map to logits, without a bias; or to what they cost.

    It does both so that its weight is only ever used inside its own forward, which is where ZeRO 3 gathers it.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes, bias=False)

    def forward(self, x_BLD: Tensor, targets: Targets | None = None) -> Tensor:
        """States [B, L, D] to logits [B, L, C]; with targets, to their weighted nats, a scalar."""
        return super().forward(x_BLD) if targets is None else targets.nats_of_states(x_BLD, self.weight)


class _ChunkedNats(torch.autograd.Function):
    """Rows of states [N, D], weight [C, D], classes int64 [N], weights [N]: their nats.

    The gradients are made in the forward pass, up to the factor that the backward pass is given: logits are never
    computed twice, and what is kept in between is as large as the states.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, classes: Tensor, weights: Tensor, chunk_bases: int, with_gradients: bool
    ) -> Tensor:
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        wide = torch.promote_types(dtype, torch.float32)
        narrow_weight = weight.to(dtype)
        needs_x, needs_weight = (with_gradients and needed for needed in ctx.needs_input_grad[:2])
        dx = torch.empty_like(x, dtype=dtype) if needs_x else None
        dweight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        nats = torch.zeros((), dtype=torch.float64, device=x.device)
        for rows in (slice(first, first + chunk_bases) for first in range(0, len(x), chunk_bases)):
            states, columns, weight_of_base = x[rows].to(dtype), classes[rows, None], weights[rows, None].to(wide)
            with no_autocast(x):
                log_shares = functional.linear(states, narrow_weight).to(wide).log_softmax(-1)
                nats -= (log_shares.gather(1, columns) * weight_of_base).sum(dtype=torch.float64)
                if dx is None and dweight is None:
                    continue
                dlogits = log_shares.exp_().scatter_add_(1, columns, torch.full_like(weight_of_base, -1))
                dlogits = dlogits.mul_(weight_of_base).to(dtype)
                if dx is not None:
                    torch.mm(dlogits, narrow_weight, out=dx[rows])
                if dweight is not None:
                    dweight += dlogits.t() @ states
        ctx.gradients = dx, dweight
        return nats.to(wide)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "a second backward pass"
        dx, dweight = (None if part is None else part.mul_(gradients[0]) for part in ctx.gradients)
        ctx.gradients = None
        return dx, dweight, None, None, None, None
