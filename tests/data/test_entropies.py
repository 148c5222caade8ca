"""Entropies on a grid."""

from __future__ import annotations

import numpy as np

from hyena_blt_savanna.data.entropies import ENTROPY_STEP_NATS, on_grid


def test_nearest_multiple_of_the_step() -> None:
    steps = np.array([0, 1, 22_713, 14_000])
    nats = on_grid((steps + [0.0, 0.4, -0.4, 0.49]) * ENTROPY_STEP_NATS)
    assert nats.dtype == np.float32
    assert (nats.astype(np.float64) / ENTROPY_STEP_NATS == steps).all()


def test_sums_do_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    nats = on_grid(rng.uniform(0, np.log(4), 100_000))
    assert nats.sum(dtype=np.float64) == nats[rng.permutation(len(nats))].sum(dtype=np.float64)
