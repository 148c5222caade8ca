"""Where arithmetic leaves the weights' dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """The tensor in fp32 at least: filters, norms and rotary angles are computed there whatever the weights are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def no_autocast(x: Tensor) -> torch.autocast:
    """A context on the tensor's device in which matrix products keep the dtype they are given."""
    return torch.autocast(x.device.type, enabled=False)
