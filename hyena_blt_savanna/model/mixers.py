"""The Hyena mixer: input projection, featurizer, operator, output projection."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hyena_blt_savanna.model.back_to_back import takes_back_to_back
from hyena_blt_savanna.model.cuda_convolution import subquadratic_back_to_back
from hyena_blt_savanna.model.initialisation import small_init_std, wang_init_std
from hyena_blt_savanna.model.linear import Projection, project
from hyena_blt_savanna.model.operators import HyenaConfig, HyenaMR, HyenaOperator, HyenaSE, convolve_slice
from hyena_blt_savanna.model.precision import widen
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel


class HyenaMixer(nn.Module):
    """Projects to x1, x2, v, runs a short filter over each of their channels, applies the operator, projects back.

    Source: Ku et al. 2025 (arXiv:2503.01868); Savanna's `ParallelSequenceMixer`.
    """

    def __init__(
        self,
        width: int,
        operator: HyenaOperator,
        config: HyenaConfig,
        num_blocks: int = 1,
        context: ContextParallel = SINGLE_RANK,
    ) -> None:
        super().__init__()
        self.in_projection = InputProjection(width, config.interleaved_projection)
        self.featurizer = Featurizer(width, config.featurizer_taps, config.interleaved_projection, context)
        self.operator = operator
        self.out_projection = OutputProjection(width, config.output_bias, num_blocks)

    def forward(self, u: Tensor) -> Tensor:
        """[B, L, M] to [B, L, M]."""
        z = self.in_projection(u)
        if self._is_for_one_kernel(z):
            assert isinstance(self.operator, HyenaSE | HyenaMR)
            short, taps = self.featurizer.filters(), self.operator.filters(z.shape[-1])
            return self.out_projection(subquadratic_back_to_back(z, short, taps, self.operator.skip))
        x1, x2, v = self.featurizer(z).chunk(3)
        return self.out_projection(self.operator(x1, x2, v))

    def _is_for_one_kernel(self, z: Tensor) -> bool:
        # By the shapes alone: under ZeRO 3, weights that are read outside of their own module are gathered once more.
        if not isinstance(self.operator, HyenaSE | HyenaMR) or self.featurizer.context is not SINGLE_RANK:
            return False
        return takes_back_to_back(z, self.featurizer.num_taps, self.operator.num_taps)


def thirds(rows: Tensor, interleaved: bool) -> Tensor:
    """Rows [3 M, ...] of a weight in the order all of x1, then x2, then v."""
    return rows.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1) if interleaved else rows


class InputProjection(Projection):
    """[B, L, M] to [3 M, B, L]. Initialised with `small_init`."""

    def __init__(self, width: int, interleaved: bool) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        nn.init.normal_(self.weight, std=small_init_std(width))

    def forward(self, u: Tensor) -> Tensor:
        """Projects; the channels come out as all of x1, then x2, then v."""
        batch, length, width = u.shape
        # The weight is put in order, not the activations: it is small.
        weight = thirds(self.weight, self.interleaved)
        flat = project(u.reshape(-1, width), weight, product=self.product, channels_first=True)
        return flat.view(-1, batch, length)


class Featurizer(nn.Module):
    """A short causal filter of its own for each of the 3 M channels. Taps start uniform within 1 / sqrt(K)."""

    def __init__(self, width: int, num_taps: int, interleaved: bool, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__()
        self.interleaved = interleaved
        self.context = context
        self.num_taps = num_taps
        self.taps = nn.Parameter(torch.empty(3 * width, num_taps))
        nn.init.uniform_(self.taps, -1 / math.sqrt(num_taps), 1 / math.sqrt(num_taps))

    def forward(self, z: Tensor) -> Tensor:
        """[3 M, B, L] to [3 M, B, L]."""
        return convolve_slice(z, self.filters(), self.context)

    def filters(self) -> Tensor:
        """[3 M, K], fp32, index = lag; of all of x1, then x2, then v."""
        return thirds(widen(self.taps), self.interleaved)


class OutputProjection(Projection):
    """[M, B, L] to [B, L, M]. Initialised with `wang_init`, its bias with zeros."""

    def __init__(self, width: int, bias: bool, num_blocks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        nn.init.normal_(self.weight, std=wang_init_std(width, num_blocks))

    def forward(self, y: Tensor) -> Tensor:
        """Projects back to one vector a position."""
        width, batch, length = y.shape
        flat = project(y.reshape(width, -1).t(), self.weight, self.bias, self.product)
        return flat.view(batch, length, -1)
