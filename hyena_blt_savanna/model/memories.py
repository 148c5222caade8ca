"""What blocks remember of the positions before, and how the next position is read from that.

| mixer              | remembers, a row of the batch                      | cost of a position |
|--------------------|----------------------------------------------------|--------------------|
| featurizer         | its last inputs, one less than it has taps: 3 M (f-1) | constant        |
| hyena_se, hyena_mr | the last products p = x2 v: D (K - 1)              | constant           |
| hyena_li           | one sum an exponential: D O                        | constant           |
| gated_convolution  | its last inputs behind the norm: D (K - 1)         | constant           |
| attention          | the keys and values of its window                  | constant           |
| attention, no window | all keys and values                              | grows              |
| hyena_implicit     | all products p: its filters have no recurrence     | grows              |

A memory is a list of tensors whose rows are those of the batch: rows of any sequences, at any positions, may be read
side by side, left out, or put together. Everything is a single device's, and of the weights as they were when a
reader was made.

Source: Poli et al. 2023 (arXiv:2302.03169) and Massaroli et al. 2023 (arXiv:2310.18780) for long convolutions as
recurrences; Vortex's `prefill` and `step_iir`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.model.attention import Attention, windowed_attention
from hyena_blt_savanna.model.blocks import Block
from hyena_blt_savanna.model.gated_convolution import GatedConvolution
from hyena_blt_savanna.model.mixers import HyenaMixer, thirds
from hyena_blt_savanna.model.operators import HyenaImplicit, HyenaLI, HyenaMR, HyenaOperator, HyenaSE
from hyena_blt_savanna.model.precision import no_autocast, widen
from hyena_blt_savanna.model.rotary import angles_at, rotary_tables, rotate

Memory: TypeAlias = list[Tensor]
"""Batch first in each tensor."""

_LEAST_ROOM = 64


class Reader(ABC):
    """Reads positions with a module, and knows what it has to remember of them."""

    @abstractmethod
    def prefill(self, x: Tensor) -> tuple[Tensor, Memory]:
        """Reads the start of sequences: [B, L, M], L at least 1, to [B, L, M] and what is to be remembered of it."""

    @abstractmethod
    def step(self, x: Tensor, memory: Memory) -> Tensor:
        """Reads the next position: [B, M] to [B, M]. The memory's tensors are changed, or others put in their place."""

    def join(self, memories: list[Memory]) -> Memory:
        """The rows of several memories in one."""
        return [torch.cat(parts) for parts in zip(*memories, strict=True)]


def reader_of(block: nn.Module) -> Reader:
    """Reads positions with a block of a stack or of a local module."""
    return GatedReader(block) if isinstance(block, GatedConvolution) else BlockReader(block)


class GatedReader(Reader):
    """A gated convolution.

    Args:
        block: in evaluation mode.
    """

    def __init__(self, block: GatedConvolution) -> None:
        self._block = block
        self._num_left = block.widen.num_taps - 1

    def prefill(self, x: Tensor) -> tuple[Tensor, Memory]:
        last = self._block.norm(x[:, max(x.shape[1] - self._num_left, 0) :])
        return self._block(x), [functional.pad(last, (0, 0, self._num_left - last.shape[1], 0))]

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        window = torch.cat([memory[0], self._block.norm(x)[:, None]], 1)
        memory[0] = window[:, 1:]
        widened = functional.linear(window.flatten(1), self._block.widen.weight)
        return x + self._block.narrow(functional.glu(widened))


class BlockReader(Reader):
    """A mixer and an MLP, each behind a norm and added to its input.

    Args:
        block: in evaluation mode, on one rank.
    """

    def __init__(self, block: nn.Module) -> None:
        assert isinstance(block, Block)
        self._block = block
        self._mixer: Reader
        if isinstance(block.mixer, HyenaMixer):
            self._mixer = _HyenaReader(block.mixer)
        else:
            assert isinstance(block.mixer, Attention)
            self._mixer = _AttentionReader(block.mixer)
        self.join = self._mixer.join  # type: ignore[method-assign]

    def prefill(self, x: Tensor) -> tuple[Tensor, Memory]:
        mixed, memory = self._mixer.prefill(self._block.mixer_norm(x))
        x = x + mixed
        return x + self._block.mlp(self._block.mlp_norm(x)), memory

    def step(self, x: Tensor, memory: Memory) -> Tensor:
        x = x + self._mixer.step(self._block.mixer_norm(x), memory)
        return x + self._block.mlp(self._block.mlp_norm(x))


class _HyenaReader(Reader):
    """Remembers what the featurizer does, then what the operator's filters do."""

    def __init__(self, mixer: HyenaMixer) -> None:
        assert mixer.operator.context.num_ranks == 1
        self._mixer, operator = mixer, mixer.operator
        self._featurizer = _ShortFilter(thirds(widen(mixer.featurizer.taps), mixer.featurizer.interleaved))
        self._filter = _filter_reader(operator, mixer.out_projection.weight.shape[1])
        self._skip = None if isinstance(operator, HyenaSE) else operator.get_parameter("skip")

    def prefill(self, u: Tensor) -> tuple[Tensor, Memory]:
        mixer = self._mixer
        z = mixer.in_projection(u)
        x1, x2, v = mixer.featurizer(z).chunk(3)
        memory = [self._featurizer.after(z), self._filter.after(x2 * v)]
        return mixer.out_projection(mixer.operator(x1, x2, v)), memory

    def step(self, u: Tensor, memory: Memory) -> Tensor:
        projection = self._mixer.in_projection
        z = functional.linear(u, projection.weight)
        if projection.interleaved:
            # One position's activations are put in order, not the weight: here they are the smaller of the two.
            z = z.unflatten(1, (-1, 3)).transpose(1, 2).flatten(1)
        z, memory[0] = self._featurizer.step(z, memory[0])
        x1, x2, v = z.chunk(3, 1)
        p = x2 * v
        q, memory[1] = self._filter.step(p, memory[1])
        if self._skip is not None:
            q = torch.addcmul(q, self._skip.to(p.dtype), p)
        return self._mixer.out_projection((x1 * q).t()[..., None])[:, 0]

    def join(self, memories: list[Memory]) -> Memory:
        featurizers, filters = zip(*memories, strict=True)
        return [torch.cat(featurizers), self._filter.join(list(filters))]


class _FilterReader(ABC):
    @abstractmethod
    def after(self, x: Tensor) -> Tensor:
        """What is to be remembered of positions [D, B, L], L at least 1, batch first."""

    @abstractmethod
    def step(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """The filters' output at the next position, [B, D] to [B, D], and what is then to be remembered."""

    def join(self, memories: list[Tensor]) -> Tensor:
        return torch.cat(memories)


def _filter_reader(operator: HyenaOperator, width: int) -> _FilterReader:
    if isinstance(operator, HyenaLI):
        return _ModalFilter(operator, width)
    if isinstance(operator, HyenaImplicit):
        return _EndlessFilter(operator)
    assert isinstance(operator, HyenaSE | HyenaMR)
    taps = operator.filters(operator.taps.shape[1])
    return _ShortFilter(taps.repeat_interleave(width // len(taps), dim=0))


class _ShortFilter(_FilterReader):
    """Remembers the last K - 1 positions, [B, D, K - 1], zeros before the first.

    Args:
        taps: [D, K], fp32 at least, index = lag.
    """

    def __init__(self, taps: Tensor) -> None:
        self._taps = taps.flip(1)
        self._num_left = taps.shape[1] - 1

    def after(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (max(self._num_left - x.shape[2], 0), 0))
        # A copy, or all of x would be kept.
        return padded[..., padded.shape[2] - self._num_left :].transpose(0, 1).contiguous().clone()

    def step(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        window = torch.cat([known, x[..., None]], -1)
        return (widen(window) * self._taps).sum(-1).to(x.dtype), window[..., 1:]


class _ModalFilter(_FilterReader):
    """Remembers sum over s of p[s] exp(-rate (t - s)) for each channel and exponential, [B, D, O], fp32 at least."""

    def __init__(self, operator: HyenaLI, width: int) -> None:
        self._rates = (widen(operator.log_rate) + widen(operator.log_step)).exp()
        channels_a_group = width // len(self._rates)
        self._shrink, self._residues = (
            table.repeat_interleave(channels_a_group, dim=0)
            for table in (torch.exp(-self._rates), widen(operator.residues))
        )

    def after(self, x: Tensor) -> Tensor:
        return modal_state(x, self._rates).transpose(0, 1).contiguous()

    def step(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        sums = torch.addcmul(widen(x)[..., None], known, self._shrink)
        return (sums * self._residues).sum(-1).to(x.dtype), sums


class _EndlessFilter(_FilterReader):
    """Remembers all positions, [B, D, L], zeros before a row's first.

    Filters are computed again, for twice as many lags, when they become too short.
    """

    def __init__(self, operator: HyenaImplicit) -> None:
        self._operator = operator
        self._taps = operator.filters(_LEAST_ROOM)

    def after(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous()

    def step(self, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        past = torch.cat([known, x[..., None]], -1)
        length = past.shape[2]
        if length > self._taps.shape[1]:
            self._taps = self._operator.filters(2 * length)
        with no_autocast(x):
            return torch.einsum("bdl,dl->bd", widen(past), self._taps[:, :length].flip(1)).to(x.dtype), past

    def join(self, memories: list[Tensor]) -> Tensor:
        longest = max(memory.shape[2] for memory in memories)
        return torch.cat([functional.pad(memory, (longest - memory.shape[2], 0)) for memory in memories])


class _AttentionReader(Reader):
    """Remembers keys, turned by their positions, and values, [B, H, N, E] each, and how many positions there were.

    Position p of a row stands in column p modulo N: with a window, N is its length; without, N is doubled in time.
    The numbers of positions, int64 [B], stay on the CPU.
    """

    def __init__(self, mixer: Attention) -> None:
        assert mixer.context.num_ranks == 1
        self._mixer, self._window = mixer, mixer.config.window

    def prefill(self, u: Tensor) -> tuple[Tensor, Memory]:
        length = u.shape[1]
        tables = rotary_tables(length, self._head_width, self._mixer.config.rotary, u.device)
        query, key, value = self._heads(u, *tables)
        room = 2 * length + _LEAST_ROOM if self._window is None else self._window
        first = max(length - room, 0)
        columns = torch.arange(first, length, device=u.device) % room
        memory = []
        for part in (key, value):
            kept = part.new_zeros(*part.shape[:2], room, part.shape[3])
            kept[:, :, columns] = part[:, :, first:]
            memory.append(kept)
        memory.append(torch.full((len(u),), length))
        if self._window is None:
            return self._out(functional.scaled_dot_product_attention(query, key, value, is_causal=True)), memory
        return self._out(windowed_attention(query, key, value, self._window)), memory

    def step(self, u: Tensor, memory: Memory) -> Tensor:
        positions = memory[2]
        fewest, most = int(positions.min()), int(positions.max())
        if self._window is None and most == memory[0].shape[2]:
            self._make_room(memory, 2 * most)
        room = memory[0].shape[2]
        cosine, sine = angles_at(positions.to(u.device), self._head_width, self._mixer.config.rotary)
        query, key, value = self._heads(u[:, None], cosine[:, None, None], sine[:, None, None])
        rows, columns = torch.arange(len(u)), positions % room
        memory[0][rows, :, columns], memory[1][rows, :, columns] = key[:, :, 0], value[:, :, 0]
        memory[2] = positions + 1
        num_looked_at = min(most + 1, room)
        keys, values = (part[:, :, :num_looked_at] for part in memory[:2])
        mask = None
        if fewest + 1 < num_looked_at:
            mask = (torch.arange(num_looked_at) <= positions[:, None])[:, None, None].to(u.device)
        return self._out(functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask))[:, 0]

    def join(self, memories: list[Memory]) -> Memory:
        most = max(memory[0].shape[2] for memory in memories)
        for memory in memories:
            self._make_room(memory, most)
        return super().join(memories)

    def _make_room(self, memory: Memory, room: int) -> None:
        if room > memory[0].shape[2]:
            memory[:2] = [functional.pad(part, (0, 0, 0, room - part.shape[2])) for part in memory[:2]]

    @property
    def _head_width(self) -> int:
        width: int = self._mixer.out_projection.weight.shape[1]
        return width // self._mixer.num_heads

    def _heads(self, u: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = self._mixer.in_projection(u).unflatten(-1, (self._mixer.num_heads, 3, -1))
        query, key, value = (part.transpose(1, 2) for part in packed.unbind(-2))
        return rotate(query, cosine, sine), rotate(key, cosine, sine), value

    def _out(self, mixed: Tensor) -> Tensor:
        y: Tensor = self._mixer.out_projection(mixed.transpose(1, 2).flatten(2))
        return y


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
