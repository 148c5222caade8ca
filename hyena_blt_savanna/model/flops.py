"""Floating-point operations of one forward pass, from the configuration alone.

Counted are multiplications and additions, one each, of what grows with width: matrix products, convolutions,
attention and filters. Left out are norms, activations, gates, look-ups: a few operations a channel.

Here are the formulas of the primitives. Each configuration of a part of a model has a method `flops` that puts the
part together from them, beside the class it describes, and gives operations by part; `count_flops` asks a whole
architecture. A backward pass costs twice as much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from torch import nn

from hyena_blt_savanna.model.fourier_convolution import next_fast_length

if TYPE_CHECKING:
    from hyena_blt_savanna.model.hyena_blt import Objective

LONGEST_COUNTED_DIRECTLY = 16
"""Up to so many taps, a convolution counts as one product a tap; beyond, as transforms of the whole sequence."""
BACKWARD_RATIO = 2
"""A backward pass multiplies each matrix twice, once for the gradient of each factor."""


class Architecture(Protocol):
    """The configuration of a whole model."""

    def flops(
        self, num_bases: int, num_patches: int, objective: Objective = "next_base", training: bool = False
    ) -> dict[str, float]:
        """Operations of one forward pass over one sequence, by part.

        Args:
            num_bases: L.
            num_patches: P; not read by models of single bases. One that finds its own patches takes 0 as well, for
                as many as it is drawn to.
            objective: what is trained; not read by models that know one only.
            training: whether the model's own losses, which are computed in training only, count too; not read by
                models without any. Still of the forward pass alone.
        """
        ...


def count_flops(
    model: nn.Module | Architecture,
    num_bases: int,
    num_patches: int = 0,
    objective: Objective = "next_base",
    training: bool = False,
) -> dict[str, float]:
    """Operations of one forward pass over one sequence.

    Args:
        model: a model with its configuration as `config`, or the configuration of one.
        num_bases: L.
        num_patches: P; see `Architecture`.
        objective: the autoencoder of patches leaves the hybrid's global model out.
        training: whether what a model computes in training only, for losses of its own, counts too.

    Returns:
        Operations by part, and their sum, `total`. A stack's parts are `projections`, `mlp`, `short_convolutions`,
        `fourier_convolutions`, `filters` and `attention`.
    """
    config: Architecture = model.config if isinstance(model, nn.Module) else model  # type: ignore[assignment]
    parts = config.flops(num_bases, num_patches, objective, training)
    return {**parts, "total": sum(parts.values())}


def add_parts(*counts: Mapping[str, float]) -> dict[str, float]:
    """The sums of parts of the same name, in the order in which the names first come."""
    sums: dict[str, float] = {}
    for parts in counts:
        for name, count in parts.items():
            sums[name] = sums.get(name, 0.0) + count
    return sums


def linear(num_positions: int, num_inputs: int, num_outputs: int) -> float:
    """A linear map at each position: 2 a position, input and output. [m, k] by [k, n] is 2 m k n."""
    return 2.0 * num_positions * num_inputs * num_outputs


def convolution(length: int, num_taps: int, channels: int, groups: int) -> dict[str, float]:
    """A causal depthwise convolution, and how it is counted as the part's name.

    Whatever backend computes it: operations belong to a model, not to the machine that it happens to run on.

    Args:
        length: L.
        num_taps: K; more than L are cut off.
        channels: D.
        groups: G, the number of filters.

    Returns:
        `short_convolutions` up to LONGEST_COUNTED_DIRECTLY taps, `fourier_convolutions` beyond.
    """
    if num_taps <= LONGEST_COUNTED_DIRECTLY:
        return {"short_convolutions": shifted_convolution(length, num_taps, channels)}
    return {"fourier_convolutions": fourier_convolution(length, num_taps, channels, groups)}


def shifted_convolution(length: int, num_taps: int, channels: int) -> float:
    """One product a tap: 2 K a position and channel, K at most L."""
    return 2.0 * min(num_taps, length) * channels * length


def fourier_convolution(length: int, num_taps: int, channels: int, groups: int) -> float:
    """A real transform there and one back for each channel, one for each filter, and a product of the spectra.

    A real transform of size n, the next fast length from L + K - 1 on, is 2.5 n log2 n; the complex product of n / 2
    values at 6 each is 3 n a channel.
    """
    size = next_fast_length(length + min(num_taps, length) - 1)
    transform = real_transform(size)
    return float(round(channels * (2 * transform + 3 * size) + groups * transform))


def real_transform(size: int) -> float:
    """2.5 n log2 n, the usual count of a real Fourier transform of size n: half of a complex one's 5 n log2 n."""
    return 2.5 * size * math.log2(size)


def modal_filter(length: int, groups: int, order: int) -> float:
    """Sums of O exponentials as one matrix product over O: 2 O a position and filter."""
    return 2.0 * order * groups * length


def attention(length: int, width: int, window: int | None = None) -> float:
    """Causal attention: 4 operations a pair and channel (query times key, weight times value), all heads together.

    Pairs: L^2 / 2; in a window of w positions, at most L, L w - w^2 / 2.
    """
    reach = min(window or length, length)
    return 2.0 * reach * (2 * length - reach) * width


def cross_attention(num_queries: int, num_keys: int, width: int) -> float:
    """Attention of each query over so many keys: 4 operations a pair and channel, all heads together."""
    return 4.0 * num_queries * num_keys * width
