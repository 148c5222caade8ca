"""Reading a sequence one position at a time, with the values of one pass over all of it.

What a block has to remember of the positions before differs with its mixer:

| mixer             | remembers, a row of the batch                         | cost of a position |
|-------------------|-------------------------------------------------------|--------------------|
| featurizer        | its last inputs, one less than it has taps: 3 M (f-1) | constant           |
| hyena_se, hyena_mr| the last products p = x2 v: D (K - 1)                 | constant           |
| hyena_li          | one sum an exponential: D O                           | constant           |
| attention         | the keys and values of its window                     | constant           |
| attention, no window | all keys and values                                | grows              |
| hyena_implicit    | all products p: its filters have no recurrence        | grows              |

A first stretch, of any length, is read in one parallel pass, from which the memories are taken; after it, one
position at a time. Everything is a single device's, and of the weights as they were when the first position was read.

Source: Poli et al. 2023 (arXiv:2302.03169) and Massaroli et al. 2023 (arXiv:2310.18780) for long convolutions as
recurrences; Vortex's `prefill` and `step_iir`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model.attention import Attention, windowed_attention
from hyena_blt_savanna.model.blocks import Block
from hyena_blt_savanna.model.isotropic import Isotropic
from hyena_blt_savanna.model.mixers import HyenaMixer, thirds
from hyena_blt_savanna.model.operators import HyenaImplicit, HyenaLI, HyenaMR, HyenaOperator, HyenaSE
from hyena_blt_savanna.model.precision import no_autocast, widen
from hyena_blt_savanna.model.rotary import rotary_tables, rotate
from hyena_blt_savanna.model.stack import Stack
from hyena_blt_savanna.nucleotides import VOCABULARY_SIZE

_LEAST_ROOM = 64


class Decoder:
    """Reads bases with an isotropic model: `prefill` once, then `step` as often as wanted.

    Args:
        model: in evaluation mode, on one rank.
    """

    def __init__(self, model: Isotropic) -> None:
        self._model = model
        self._stack = StackReader(model.stack)
        self._num_bases_back = 0 if model.kmers is None else max(model.kmers.sizes, default=1) - 1
        self._last_bases = torch.empty(0, dtype=torch.long)

    @torch.no_grad()
    def prefill(self, bases: Tensor) -> Tensor:
        """Reads the start of a sequence in one parallel pass.

        Args:
            bases: int64 [B, L], L at least 1.

        Returns:
            Logits [B, C] of the base after the last one.
        """
        self._last_bases = bases.new_empty(len(bases), 0)
        return self._logits(self._stack.prefill(self._vectors(bases)))

    @torch.no_grad()
    def step(self, bases: Tensor) -> Tensor:
        """Reads the next base.

        Args:
            bases: int64 [B].

        Returns:
            Logits [B, C] of the base after it.
        """
        return self._logits(self._stack.step(self._vectors(bases[:, None])))

    def _vectors(self, bases: Tensor) -> Tensor:
        x_BLM: Tensor = self._model.embedding(bases)
        if self._model.kmers is not None:
            known = torch.cat([self._last_bases, bases], 1)
            x_BLM = x_BLM + self._model.kmers(known)[:, -bases.shape[1] :]
            self._last_bases = known[:, max(known.shape[1] - self._num_bases_back, 0) :].clone()
        return x_BLM

    def _logits(self, states_BLM: Tensor) -> Tensor:
        logits: Tensor = self._model.head(states_BLM[:, -1])
        return logits[..., :VOCABULARY_SIZE]


class StackReader:
    """Reads positions with a stack of blocks: `prefill` once, then `step` as often as wanted.

    Args:
        stack: in evaluation mode, on one rank.
    """

    def __init__(self, stack: Stack) -> None:
        self._norm = stack.norm
        self._blocks = []
        for block in stack.blocks:
            assert isinstance(block, Block)
            self._blocks.append((block, _mixer_reader(block)))

    @torch.no_grad()
    def prefill(self, x: Tensor) -> Tensor:
        """Reads the start of a sequence: [B, L, M], L at least 1, to [B, L, M]."""
        for block, mixer in self._blocks:
            x = x + mixer.prefill(block.mixer_norm(x))
            x = x + block.mlp(block.mlp_norm(x))
        y: Tensor = self._norm(x)
        return y

    @torch.no_grad()
    def step(self, x: Tensor) -> Tensor:
        """Reads the next position: [B, 1, M] to [B, 1, M]."""
        for block, mixer in self._blocks:
            x = x + mixer.step(block.mixer_norm(x))
            x = x + block.mlp(block.mlp_norm(x))
        y: Tensor = self._norm(x)
        return y


class _MixerReader(ABC):
    @abstractmethod
    def prefill(self, u: Tensor) -> Tensor:
        """[B, L, M] to [B, L, M]."""

    @abstractmethod
    def step(self, u: Tensor) -> Tensor:
        """[B, 1, M] to [B, 1, M]."""


def _mixer_reader(block: Block) -> _MixerReader:
    if isinstance(block.mixer, HyenaMixer):
        return _HyenaReader(block.mixer)
    assert isinstance(block.mixer, Attention)
    return _AttentionReader(block.mixer)


class _HyenaReader(_MixerReader):
    def __init__(self, mixer: HyenaMixer) -> None:
        assert mixer.operator.context.num_ranks == 1
        self._mixer = mixer

    def prefill(self, u: Tensor) -> Tensor:
        mixer = self._mixer
        z = mixer.in_projection(u)
        self._featurizer = _ShortFilter(thirds(widen(mixer.featurizer.taps), mixer.featurizer.interleaved), z)
        x1, x2, v = mixer.featurizer(z).chunk(3)
        self._filter = _filter_reader(mixer.operator, x2 * v)
        return mixer.out_projection(mixer.operator(x1, x2, v))

    def step(self, u: Tensor) -> Tensor:
        mixer, operator = self._mixer, self._mixer.operator
        # One position's activations are put in order, not the weight: here they are the smaller of the two.
        projected = functional.linear(u[:, 0], mixer.in_projection.weight)
        z = thirds(projected.t(), mixer.in_projection.interleaved)
        x1, x2, v = self._featurizer.step(z).chunk(3)
        p = x2 * v
        q = self._filter.step(p)
        if not isinstance(operator, HyenaSE):
            assert isinstance(operator.skip, Tensor)
            q = torch.addcmul(q, operator.skip.to(p.dtype)[:, None], p)
        return mixer.out_projection((x1 * q)[..., None])


class _FilterReader(ABC):
    @abstractmethod
    def step(self, x: Tensor) -> Tensor:
        """The filters' output at the next position: [D, B] to [D, B]."""


def _filter_reader(operator: HyenaOperator, p: Tensor) -> _FilterReader:
    """What goes on behind the positions p [D, B, L]."""
    if isinstance(operator, HyenaLI):
        return _ModalFilter(operator, p)
    if isinstance(operator, HyenaImplicit):
        return _EndlessFilter(operator, p)
    num_taps = operator.get_parameter("taps").shape[1]
    assert isinstance(operator, HyenaSE | HyenaMR)
    return _ShortFilter(operator.filters(num_taps), p)


class _ShortFilter(_FilterReader):
    """Holds the last K - 1 positions [D, B, K - 1], zeros before the first.

    Args:
        taps: [G, K], index = lag.
        x: [D, B, L], what was read.
    """

    def __init__(self, taps: Tensor, x: Tensor) -> None:
        num_left = taps.shape[1] - 1
        self._taps = taps.flip(1).repeat_interleave(x.shape[0] // taps.shape[0], dim=0)[:, None]
        padded = functional.pad(x, (max(num_left - x.shape[2], 0), 0))
        # A copy, or all of x would be kept.
        self._last = padded[..., padded.shape[2] - num_left :].clone()

    def step(self, x: Tensor) -> Tensor:
        window = torch.cat([self._last, x[..., None]], -1)
        self._last = window[..., 1:]
        return (widen(window) * self._taps).sum(-1).to(x.dtype)


class _ModalFilter(_FilterReader):
    """Holds sum over s of p[s] exp(-rate (t - s)) for each channel and exponential, [D, B, O], in fp32 at least."""

    def __init__(self, operator: HyenaLI, p: Tensor) -> None:
        rates = (widen(operator.log_rate) + widen(operator.log_step)).exp()
        channels_a_group = p.shape[0] // rates.shape[0]
        self._shrink, self._residues = (
            table.repeat_interleave(channels_a_group, dim=0)[:, None]
            for table in (torch.exp(-rates), widen(operator.residues))
        )
        self._sums = modal_state(p, rates)

    def step(self, x: Tensor) -> Tensor:
        self._sums = torch.addcmul(widen(x)[..., None], self._sums, self._shrink)
        return (self._sums * self._residues).sum(-1).to(x.dtype)


class _EndlessFilter(_FilterReader):
    """Holds all positions, and filters that are computed again for twice as many lags when they become too short."""

    def __init__(self, operator: HyenaImplicit, p: Tensor) -> None:
        self._operator = operator
        self._past = _Kept(p)
        self._taps = operator.filters(2 * p.shape[2])

    def step(self, x: Tensor) -> Tensor:
        past = self._past.add(x[..., None])
        length = past.shape[2]
        if length > self._taps.shape[1]:
            self._taps = self._operator.filters(2 * length)
        with no_autocast(x):
            return torch.einsum("dbl,dl->db", widen(past), self._taps[:, :length].flip(1)).to(x.dtype)


class _AttentionReader(_MixerReader):
    """Holds keys, turned by their positions, and values, [B, H, N, E]: those of its window, or all."""

    def __init__(self, mixer: Attention) -> None:
        assert mixer.context.num_ranks == 1
        self._mixer = mixer

    def prefill(self, u: Tensor) -> Tensor:
        window = self._mixer.config.window
        query, key, value = self._heads(u, first_position=0)
        self._keys, self._values = _Kept(key, window), _Kept(value, window)
        self._next_position = u.shape[1]
        if window is None:
            return self._out(functional.scaled_dot_product_attention(query, key, value, is_causal=True))
        return self._out(windowed_attention(query, key, value, window))

    def step(self, u: Tensor) -> Tensor:
        query, key, value = self._heads(u, self._next_position)
        self._next_position += 1
        keys, values = self._keys.add(key), self._values.add(value)
        return self._out(functional.scaled_dot_product_attention(query, keys, values))

    def _heads(self, u: Tensor, first_position: int) -> tuple[Tensor, Tensor, Tensor]:
        packed = self._mixer.in_projection(u).unflatten(-1, (self._mixer.num_heads, 3, -1))
        query, key, value = (part.transpose(1, 2) for part in packed.unbind(-2))
        tables = rotary_tables(u.shape[1], query.shape[3], self._mixer.config.rotary, u.device, first_position)
        return rotate(query, *tables), rotate(key, *tables), value

    def _out(self, mixed: Tensor) -> Tensor:
        y: Tensor = self._mixer.out_projection(mixed.transpose(1, 2).flatten(2))
        return y


class _Kept:
    """Positions along dimension 2, all or the newest, in a buffer that is copied seldom.

    Args:
        x: those so far.
        limit: positions that are ever looked at, the newest one included; None: all.
    """

    def __init__(self, x: Tensor, limit: int | None = None) -> None:
        self._limit = limit
        self._buffer, self._stop = x, x.shape[2]
        self._make_room()

    def add(self, x: Tensor) -> Tensor:
        """Adds one position, and gives a view of those there are to look at."""
        if self._stop == self._buffer.shape[2]:
            self._make_room()
        self._buffer[:, :, self._stop] = x[:, :, 0]
        self._stop += 1
        return self._newest(self._limit)

    def _newest(self, limit: int | None) -> Tensor:
        length = self._stop if limit is None else min(self._stop, limit)
        return self._buffer.narrow(2, self._stop - length, length)

    def _make_room(self) -> None:
        kept = self._newest(None if self._limit is None else self._limit - 1)
        shape = list(kept.shape)
        shape[2] = 2 * shape[2] + _LEAST_ROOM
        buffer = kept.new_empty(shape)
        self._stop = kept.shape[2]
        buffer[:, :, : self._stop] = kept
        self._buffer = buffer


def modal_state(p: Tensor, rates: Tensor) -> Tensor:
    """sum over s of p[s] exp(-rate (L - 1 - s)): what exponential filters know after L positions.

    As in `operators.modal_filter` the lag is a T + b: sums within stretches of about sqrt(L) positions are one matrix
    product, and the sums of the stretches are weighed and added.

    Args:
        p: [D, B, L], L at least 1.
        rates: [G, O], positive, fp32 at least; group g serves the D / G consecutive channels from g D / G on.

    Returns:
        [D, B, O], dtype of the rates.
    """
    channels, batch, length = p.shape
    fine = math.isqrt(length - 1) + 1
    coarse = -(-length // fine)
    steps = torch.arange(max(fine, coarse), device=rates.device, dtype=rates.dtype)
    within = torch.exp(-rates[:, None] * steps[:fine, None])
    before = torch.exp(-rates[:, None] * (steps[:coarse, None] * fine))
    # Index = lag.
    backward = functional.pad(p.to(rates.dtype), (coarse * fine - length, 0)).flip(-1)
    with no_autocast(p):
        sums = torch.bmm(backward.view(rates.shape[0], -1, fine), within)
    sums = sums.view(rates.shape[0], channels // rates.shape[0] * batch, coarse, -1)
    return (sums * before[:, None]).sum(2).view(channels, batch, -1)
