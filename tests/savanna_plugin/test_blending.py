from __future__ import annotations

import numpy as np

from hyena_blt_savanna.savanna_plugin import blending
from hyena_blt_savanna.savanna_plugin.blending import Blend


def by_savannas_rule(weights: list[float], num: int) -> list[tuple[int, int]]:
    """`build_blending_indices` of Savanna's helpers.cpp, line by line."""
    normal = np.array(weights, dtype=np.float64) / sum(weights)
    current, found = [0] * len(weights), []
    for sample in range(num):
        errors = [normal[i] * max(float(sample), 1.0) - current[i] for i in range(len(weights))]
        chosen = max(range(len(weights)), key=lambda i: (errors[i], -i))
        found.append((chosen, current[chosen]))
        current[chosen] += 1
    return found


def test_datasets_take_turns_by_savannas_rule(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(blending, "_CHUNK", 16)
    for weights in ([1.0], [0.7, 0.1, 0.2], [3, 3], [5.0, 1e-3]):
        wanted = by_savannas_rule(weights, 100)
        blend = Blend(weights)
        assert [blend.place_of(index) for index in range(100)] == wanted
        # From anywhere, as where a run is resumed, and back.
        for index in (99, 3, 64, 15, 16):
            assert Blend(weights).place_of(index) == blend.place_of(index) == wanted[index]
