"""Standard deviations of initial weights."""

from __future__ import annotations

import math


def small_init_std(width: int) -> float:
    """Standard deviation of embeddings and input projections: sqrt(2 / (5 width)).

    Source: Nguyen and Salazar 2019 (arXiv:1910.05895), `small_init` of GPT-NeoX and Savanna.
    """
    return math.sqrt(2 / (5 * width))


def wang_init_std(width: int, num_blocks: int) -> float:
    """Standard deviation of projections that end a residual branch: 2 / (num_blocks sqrt(width)).

    Source: Wang and Komatsuzaki (mesh-transformer-jax), `wang_init` of GPT-NeoX and Savanna.
    """
    return 2 / (num_blocks * math.sqrt(width))
