"""The causal convolution as it is defined: what every backend is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def by_definition(x: Tensor, taps: Tensor) -> Tensor:
    """y[d, b, t] = sum over k of taps[g, k] x[d, b, t - k], a position at a time.

    Args:
        x: [D, B, L].
        taps: [G, K], index = lag.

    Returns:
        [D, B, L].
    """
    rows = []
    for channel in range(x.shape[0]):
        backwards = taps[channel * taps.shape[0] // x.shape[0]].flip(0)
        columns = []
        for t in range(x.shape[2]):
            num_lags = min(len(backwards), t + 1)
            columns.append(x[channel, :, t + 1 - num_lags : t + 1] @ backwards[len(backwards) - num_lags :])
        rows.append(torch.stack(columns, -1))
    return torch.stack(rows)
