"""The grid that entropies lie on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ENTROPY_STEP_NATS = 2.0**-15
"""Distance of neighbours on the grid: 0.00003 nats; entropies of four letters are below 1.387, the largest is 2."""


def on_grid(nats: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The nearest entropies on the grid, float32; halves go to the even one."""
    return (np.rint(nats / ENTROPY_STEP_NATS) * ENTROPY_STEP_NATS).astype(np.float32)
