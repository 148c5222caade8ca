"""Filters computed by a small network from the lag: the implicit filters of Hyena and HyenaDNA."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hyena_blt_savanna.model.precision import WideLinear, no_autocast

if TYPE_CHECKING:
    from hyena_blt_savanna.model.operators import HyenaConfig

INIT_STD = 0.02
"""Of the network's weights; its biases start at 0 (HyenaDNA's `_init_weights`)."""
LEAST_FREQUENCY = 1e-4
"""Of the slowest complex exponential, in turns of the configured length."""


class ImplicitFilter(nn.Module):
    """h[d, t] = network(embedding(t))[d] (exp(-decay[d] t / (T - 1)) + shift) for each lag t.

    The embedding is time, 0 to 1 over T positions, and the real and imaginary parts of exp(-2 pi i f t / T) at a few
    frequencies f. The network has sine activations of learned frequencies. Decays are spread evenly over the
    channels. A tap depends on its lag alone, so that the filters of a shorter sequence are the first taps of those of
    a longer one, and they go on behind T.

    Source: Poli et al. 2023 (arXiv:2302.10866, sections 3.3 and D.3); Nguyen et al. 2023 (arXiv:2306.15794);
    `HyenaFilter` of HazyResearch/hyena-dna.

    Args:
        width: D, number of filters.
        config: its `implicit_...` fields.
    """

    def __init__(self, width: int, config: HyenaConfig) -> None:
        super().__init__()
        self.width, self.length, self.shift = width, config.implicit_length, config.implicit_shift
        self.num_frequencies = (config.implicit_embedding_width - 1) // 2
        rate = -math.log(config.implicit_decay_target)
        self.slowest, self.fastest = rate / config.implicit_slow_decay, rate / config.implicit_fast_decay
        hidden_width = config.implicit_hidden_width
        widths = [config.implicit_embedding_width] + [hidden_width] * (1 + config.implicit_num_hidden)
        self.hidden = nn.ModuleList(WideLinear(ins, outs) for ins, outs in pairwise(widths))
        self.out = WideLinear(hidden_width, width, bias=False)
        # One set of frequencies for all layers, as in HyenaDNA.
        self.frequencies = nn.Parameter(torch.full((hidden_width,), config.implicit_frequency))
        for layer in [*self.hidden, self.out]:
            assert isinstance(layer, WideLinear)
            nn.init.normal_(layer.weight, std=INIT_STD)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, length: int) -> Tensor:
        """The first taps of all filters, [D, length], index = lag, fp32 at least."""
        dtype = torch.promote_types(self.frequencies.dtype, torch.float32)
        device = self.frequencies.device
        # Angles are taken in fp64: in fp32 those of a million positions would be off by a hundredth of a turn.
        steps = torch.arange(length, dtype=torch.float64, device=device)
        time = (steps / (self.length - 1)).to(dtype)
        frequencies = torch.linspace(
            LEAST_FREQUENCY, self.num_frequencies - 1, self.num_frequencies, dtype=torch.float64, device=device
        )
        angles = steps[:, None] * (2 * math.pi / self.length * frequencies)
        x = torch.cat([time[:, None], angles.cos().to(dtype), -angles.sin().to(dtype)], dim=1)
        with no_autocast(x):
            for layer in self.hidden:
                x = torch.sin(self.frequencies.to(dtype) * layer(x))
            taps: Tensor = self.out(x).t()
        decays = torch.linspace(self.slowest, self.fastest, self.width, dtype=dtype, device=device)
        return taps * (torch.exp(-decays[:, None] * time) + self.shift)
