"""Where arithmetic leaves the weights' dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def widen(x: Tensor) -> Tensor:
    """The tensor in fp32 at least: filters, norms and rotary angles are computed there whatever the weights are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_dtype(x: Tensor) -> torch.dtype:
    """What a tensor is multiplied in: its own dtype, or autocast's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def no_autocast(x: Tensor) -> torch.autocast:
    """A context on the tensor's device in which matrix products keep the dtype they are given."""
    return torch.autocast(x.device.type, enabled=False)


class WideLinear(nn.Linear):
    """A linear map that is computed in fp32 at least, whatever its weights, its input and autocast are."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., number of inputs] to [..., number of outputs]."""
        bias = None if self.bias is None else widen(self.bias)
        with no_autocast(x):
            return functional.linear(widen(x), widen(self.weight), bias)
