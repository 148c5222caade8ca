"""The Hyena operators: y = x1 * (h (*) p + skip * p) with p = x2 * v.

`(*)` is a causal depthwise convolution; the operators differ in their filter h: a few free taps (hyena_se),
128 taps under a decay that differs between groups (hyena_mr), a sum of exponentials as long as the sequence
(hyena_li): the three of StripedHyena 2. hyena_se has no skip. One filter serves a group of consecutive channels.
HyenaDNA's operator (hyena_implicit) has a filter a channel, as long as the sequence, that a small network computes.

Source: Ku et al. 2025 (arXiv:2503.01868); Savanna's `hyena.py`, `explicit.py`, `implicit_modal.py`; for hyena_implicit
Poli et al. 2023 (arXiv:2302.10866) at order 2, and `HyenaOperator` of HazyResearch/hyena-dna.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.model import flops
from hyena_blt_savanna.model.convolution import causal_convolution, follows_the_rule
from hyena_blt_savanna.model.fused import kernels_for
from hyena_blt_savanna.model.implicit_filter import ImplicitFilter
from hyena_blt_savanna.model.modal_convolution import modal_convolution
from hyena_blt_savanna.model.precision import no_autocast, widen
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel

OperatorKind = Literal["se", "mr", "li", "implicit"]
OPERATOR_KINDS: dict[str, OperatorKind] = {
    "hyena_se": "se",
    "hyena_mr": "mr",
    "hyena_li": "li",
    "hyena_implicit": "implicit",
}
"""What the configuration calls each operator."""
SHORTEST_MODAL = 4096
"""From so many positions on, hyena_li goes chunk by chunk on a CPU: at 16,384 in a third of the time of Fourier space,
at 512 in twice."""


class HyenaConfig(Config):
    """Filters and projections of the hyena_se, hyena_mr, hyena_li and hyena_implicit blocks."""

    featurizer_taps: int = Field(3, ge=1)
    """Length of the short filter behind the input projection."""
    interleaved_projection: bool = False
    """True: row 3c + i of the input projection and the featurizer makes x1, x2, v (i = 0, 1, 2) of channel c, as
    the Evo 2 weights are stored. False: all of x1, then x2, then v."""
    output_bias: bool = True
    """Whether the output projection adds a bias."""
    se_taps: int = Field(7, ge=1)
    """Length of the hyena_se filters."""
    se_groups: int | None = Field(None, ge=1)
    """Number of hyena_se filters; None: one a channel (256 in Evo 2 7B)."""
    mr_taps: int = Field(128, ge=1)
    """Length of the hyena_mr filters."""
    mr_groups: int | None = Field(None, ge=1)
    """Number of hyena_mr filters; None: one a channel (256 in Evo 2 7B)."""
    mr_decay: Literal["strong", "normal", "weak", "none"] = "weak"
    """The slowest group's rate is 1, 0.1 or 0.01 over `mr_decay_length` positions; the fastest's is always 100.
    none: the taps alone, as in weights from Vortex, where the decay is in them already."""
    mr_decay_length: int = Field(8192, ge=2)
    """Positions over which the rates are counted. Savanna takes the length that training was configured for:
    keep the first one when the window grows, or the filters change (8192 in Evo 2 7B)."""
    mr_decay_repeats: int = Field(1, ge=1)
    """How many times the scale of rates is repeated over the groups."""
    mr_init_std: float | None = Field(None, ge=0)
    """Of the hyena_mr taps; None: 1 / sqrt(3 taps), the power of hyena_se's filters. Savanna starts them at
    1e-5 / sqrt(mr_decay_length), next to nothing."""
    li_groups: int | None = Field(None, ge=1)
    """Number of hyena_li filters; None: one a channel, as in Evo 2."""
    li_order: int = Field(16, ge=1)
    """Number of exponentials in a hyena_li filter."""
    li_step_min: float = Field(0.01, gt=0)
    """Smallest initial step of a hyena_li exponential; its rate is exp(-1) times its step."""
    li_step_max: float = Field(0.1, gt=0)
    """Largest initial step."""
    skip_init: float = 1.0
    """Initial skip weight of hyena_mr and hyena_li (Savanna leaves it uninitialised)."""
    implicit_length: int = Field(8192, ge=2)
    """Positions over which the time of the hyena_implicit filters runs from 0 to 1 (HyenaDNA: its longest window).
    Keep the first one when the window grows, or the filters change."""
    implicit_embedding_width: int = Field(5, ge=3)
    """Numbers that a lag is given to the network as: time, and two for each frequency; odd."""
    implicit_hidden_width: int = Field(64, ge=1)
    """Width of the network."""
    implicit_num_hidden: int = Field(2, ge=0)
    """Hidden layers of the network behind the first one."""
    implicit_frequency: float = Field(10.0, gt=0)
    """Initial frequency of the network's sines."""
    implicit_fast_decay: float = Field(0.3, gt=0)
    """Share of `implicit_length` in which the fastest channel's filter decays to `implicit_decay_target`."""
    implicit_slow_decay: float = Field(1.5, gt=0)
    """Likewise the slowest channel's."""
    implicit_decay_target: float = Field(0.01, gt=0, lt=1)
    """What is left of a filter at these shares."""
    implicit_shift: float = Field(0.0, ge=0)
    """Added to every decay; above 0, filters never vanish (0 where HyenaDNA was trained, 0.05 in its stand-alone
    model)."""

    @field_validator("implicit_embedding_width")
    @classmethod
    def _is_odd(cls, width: int) -> int:
        if width % 2 == 0:
            raise ValueError(f"implicit_embedding_width is {width}: time and pairs of numbers make it odd")
        return width

    def num_groups(self, kind: OperatorKind, width: int) -> int:
        """Number of filters of an operator over `width` channels.

        Raises:
            ConfigError: the channels can't be shared out evenly.
        """
        groups = {"se": self.se_groups, "mr": self.mr_groups, "li": self.li_groups, "implicit": None}[kind] or width
        if width % groups:
            raise ConfigError(
                f"hyena.{kind}_groups = {groups} does not divide the width {width}; "
                f"choose a divisor of {width}, or leave it out for one filter a channel"
            )
        if kind == "mr" and groups % self.mr_decay_repeats:
            raise ConfigError(
                f"hyena.mr_decay_repeats = {self.mr_decay_repeats} does not divide the {groups} hyena_mr groups"
            )
        return groups

    def flops(self, kind: OperatorKind, length: int, width: int) -> dict[str, float]:
        """Operations of one mixer over a sequence.

        Three vectors in and one out, 8 M^2 a position; a featurizer over the 3 M channels; the operator's
        convolution over M, whose hyena_li and hyena_implicit filters are as long as the sequence and have to be
        computed: sums of exponentials, or a network of linear maps at each lag.
        """
        groups = self.num_groups(kind, width)
        num_taps = {"se": self.se_taps, "mr": self.mr_taps}.get(kind, length)
        return flops.add_parts(
            {"projections": flops.linear(length, width, 4 * width)},
            flops.convolution(length, self.featurizer_taps, 3 * width, 3 * width),
            flops.convolution(length, num_taps, width, groups),
            {"filters": self._filter_flops(kind, length, groups)} if kind in ("li", "implicit") else {},
        )

    def _filter_flops(self, kind: OperatorKind, length: int, groups: int) -> float:
        if kind == "li":
            return flops.modal_filter(length, groups, self.li_order)
        hidden = self.implicit_hidden_width
        inputs = self.implicit_embedding_width + self.implicit_num_hidden * hidden
        return flops.linear(length, inputs, hidden) + flops.linear(length, hidden, groups)


class HyenaOperator(nn.Module, ABC):
    """What the operators share: gating around a causal convolution."""

    def __init__(self, context: ContextParallel) -> None:
        super().__init__()
        self.context = context

    @abstractmethod
    def filters(self, length: int) -> Tensor:
        """The filters that a sequence of `length` positions meets: [G, K], fp32, index = lag, K at most `length`."""

    def convolve(self, p: Tensor) -> Tensor:
        """The filters' output over whole sequences, of the channels that this rank has of them.

        Args:
            p: [D / C, B, L].
        """
        return causal_convolution(p, self.context.own_channels(self.filters(p.shape[-1]), channel_dim=0))

    @abstractmethod
    def forward(self, x1: Tensor, x2: Tensor, v: Tensor) -> Tensor:
        """Mixes along the sequence.

        Args:
            x1: [D, B, L], gate behind the convolution.
            x2: [D, B, L], gate before it.
            v: [D, B, L].

        Returns:
            [D, B, L], dtype of v.
        """


class HyenaSE(HyenaOperator):
    """Short explicit filters, without a skip. Taps start uniform within 1 / sqrt(K)."""

    skip: None = None

    def __init__(self, width: int, config: HyenaConfig, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__(context)
        self.num_taps = config.se_taps
        self.taps = nn.Parameter(torch.empty(config.num_groups("se", width), config.se_taps))
        bound = 1 / math.sqrt(config.se_taps)
        nn.init.uniform_(self.taps, -bound, bound)

    def filters(self, length: int) -> Tensor:
        return widen(self.taps)[:, :length]

    def forward(self, x1: Tensor, x2: Tensor, v: Tensor) -> Tensor:
        return x1 * convolve_slice(x2 * v, widen(self.taps), self.context)


class HyenaMR(HyenaOperator):
    """Filters of medium length: free taps times a fixed exponential decay whose rate differs between groups."""

    decay: Tensor

    def __init__(self, width: int, config: HyenaConfig, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__(context)
        groups = config.num_groups("mr", width)
        self.num_taps = config.mr_taps
        std = 1 / math.sqrt(3 * config.mr_taps) if config.mr_init_std is None else config.mr_init_std
        self.taps = nn.Parameter(torch.randn(groups, config.mr_taps) * std)
        self.skip = nn.Parameter(torch.full((width,), config.skip_init))
        self.register_buffer("decay", decay_grid(groups, config))

    def _apply(self, fn: Any, recurse: bool = True) -> HyenaMR:
        # The grid stays fp32 when the weights are cast: bf16 would change the filters by half a percent.
        kept = self.decay
        super()._apply(fn, recurse)
        self.decay = self.decay.to(kept.dtype) if kept.is_meta else kept.to(self.decay.device)
        return self

    def filters(self, length: int) -> Tensor:
        return (widen(self.taps) * self.decay)[:, :length]

    def forward(self, x1: Tensor, x2: Tensor, v: Tensor) -> Tensor:
        p = x2 * v
        q = convolve_slice(p, widen(self.taps) * self.decay, self.context)
        return gate(x1, q, self.skip, p)


class HyenaLI(HyenaOperator):
    """Implicit filters as long as the sequence: h[t] = sum over o of residue exp(-exp(log_rate + log_step) t).

    Rates and steps are two weights for one number, as in Savanna: the step starts uniformly within bounds, the
    rate at exp(-1). The poles are real and stable whatever the weights.
    """

    def __init__(self, width: int, config: HyenaConfig, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__(context)
        shape = (config.num_groups("li", width), config.li_order)
        steps = torch.rand(shape) * (config.li_step_max - config.li_step_min) + config.li_step_min
        self.log_step = nn.Parameter(steps.log())
        self.log_rate = nn.Parameter(-torch.ones(shape))
        self.residues = nn.Parameter(0.1 * torch.randn(shape) / math.sqrt(config.li_order))
        self.skip = nn.Parameter(torch.full((width,), config.skip_init))

    def filters(self, length: int) -> Tensor:
        return modal_filter(self._rates(), widen(self.residues), length)

    def forward(self, x1: Tensor, x2: Tensor, v: Tensor) -> Tensor:
        return gated_long_convolution(self, self.skip, x1, x2, v)

    def convolve(self, p: Tensor) -> Tensor:
        if p.device.type != "cpu" or p.shape[-1] < SHORTEST_MODAL or not follows_the_rule():
            return super().convolve(p)
        rates, residues = (self.context.own_channels(each, channel_dim=0) for each in (self._rates(), self.residues))
        return modal_convolution(p, rates, widen(residues))

    def _rates(self) -> Tensor:
        return (widen(self.log_rate) + widen(self.log_step)).exp()


class HyenaImplicit(HyenaOperator):
    """HyenaDNA's: a small network gives each lag a tap of every channel. Skips start from N(0, 1), as there."""

    def __init__(self, width: int, config: HyenaConfig, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__(context)
        self.implicit_filter = ImplicitFilter(width, config)
        self.skip = nn.Parameter(torch.randn(width))

    def filters(self, length: int) -> Tensor:
        taps: Tensor = self.implicit_filter(length)
        return taps

    def forward(self, x1: Tensor, x2: Tensor, v: Tensor) -> Tensor:
        return gated_long_convolution(self, self.skip, x1, x2, v)


def gated_long_convolution(operator: HyenaOperator, skip: Tensor, x1: Tensor, x2: Tensor, v: Tensor) -> Tensor:
    """x1 (h (*) p + skip p), p = x2 v, with filters as long as the sequence: some channels of all of it on each rank.

    Only the convolution looks along the sequence: what is exchanged is p and what becomes of it, not x1, x2 and v.

    Args:
        operator: gives the filters, and knows the ranks.
        skip: [D].
        x1: [D, B, L], like x2 and v.
    """
    context = operator.context
    p = x2 * v
    whole = context.gather_sequence(p, channel_dim=0, sequence_dim=2)
    q = context.scatter_sequence(operator.convolve(whole), channel_dim=0, sequence_dim=2)
    return gate(x1, q, skip, p)


def convolve_slice(p: Tensor, taps: Tensor, context: ContextParallel) -> Tensor:
    """A causal convolution of this rank's slice, with what lies left of it.

    Args:
        p: [D, B, L].
        taps: [G, K], index = lag.
    """
    halo = context.halo(p, taps.shape[1] - 1, sequence_dim=2) if taps.shape[1] > 1 else None
    return causal_convolution(p, taps, halo)


def gate(x1: Tensor, q: Tensor, skip: Tensor, p: Tensor) -> Tensor:
    """x1 (q + skip p) of x1, q and p [D, B, L] and skip [D]."""
    if kernels_for(x1, q, p, skip) is None or not x1.dtype == q.dtype == p.dtype:
        # One pass, and q need not be kept for the backward pass.
        return x1 * torch.addcmul(q, skip.to(p.dtype)[:, None, None], p)
    y = _Gate.apply(x1, q, skip, p)
    assert isinstance(y, Tensor)
    return y


class _Gate(torch.autograd.Function):
    """By kernels, in fp32 whatever is given."""

    @staticmethod
    def forward(ctx: Any, x1: Tensor, q: Tensor, skip: Tensor, p: Tensor) -> Tensor:
        kernels = kernels_for(x1)
        assert kernels is not None
        ctx.save_for_backward(x1, q, skip, p)
        return kernels.gate(x1, q, widen(skip), p)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x1, q, skip, p = ctx.saved_tensors
        kernels = kernels_for(x1)
        assert kernels is not None
        dx1, dq, dskip, dp = kernels.gate_backward(x1, q, widen(skip), p, dy)
        return dx1, dq, dskip.to(skip.dtype), dp


def decay_grid(groups: int, config: HyenaConfig) -> Tensor:
    """exp(-rate[g] t / (mr_decay_length - 1)), fp32 [G, K], the rates log-spaced up to 100 over the groups.

    Source: Savanna's `ExplicitSingleDecayFilter` (`explicit_single_decay`).
    """
    if config.mr_decay == "none":
        return torch.ones(groups, config.mr_taps)
    slowest = {"strong": 0, "normal": -1, "weak": -2}[config.mr_decay]
    rates = torch.logspace(slowest, 2, groups // config.mr_decay_repeats)
    time = torch.arange(config.mr_taps) / (config.mr_decay_length - 1)
    return torch.exp(-rates.repeat(config.mr_decay_repeats)[:, None] * time)


def modal_filter(rates: Tensor, residues: Tensor, length: int) -> Tensor:
    """h[g, t] = sum over o of residues[g, o] exp(-rates[g, o] t) for t below `length`.

    With t = a T + b, exp(-r t) = exp(-r a T) exp(-r b): two tables of about sqrt(length) columns and one matrix
    product over o take the place of G O length exponentials. Both factors are at most 1, so fp32 loses nothing.

    Args:
        rates: [G, O], positive.
        residues: [G, O].

    Returns:
        [G, length].
    """
    fine = math.isqrt(length - 1) + 1
    coarse = -(-length // fine)
    steps = torch.arange(max(fine, coarse), device=rates.device, dtype=rates.dtype)
    starts = residues[:, None] * torch.exp(-rates[:, None] * (steps[:coarse, None] * fine))
    within = torch.exp(-rates[..., None] * steps[:fine])
    with no_autocast(rates):
        return torch.bmm(starts, within).flatten(1)[:, :length]
