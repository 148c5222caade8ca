"""Learned chunks: where they begin, which states stand for them, and the way back to single bases.

A chunk begins where a state differs in direction from the one before. The state there stands for the chunk; what is
made of it goes back to every base of the chunk through a running mean over chunks, so that a boundary that is in
doubt blends two chunks, and is learned.

Source: Hwang, Wang and Gu 2025 (H-Net, arXiv:2507.07955, section 2.2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.model.precision import WideLinear, no_autocast

SMALLEST_PROBABILITY = 1e-4
"""A running mean never forgets, nor ignores, a chunk altogether: p is kept so far from 0 and 1."""
SCAN_BLOCK = 32
"""Chunks whose running means are one triangular product: long blocks compute more, short ones pass more often."""


class Routing(NamedTuple):
    """Where chunks begin.

    Attributes:
        probabilities: fp32 [B, L], that a chunk begins at a position.
        starts: bool [B, L], whether one does; never on padding.
    """

    probabilities: Tensor
    starts: Tensor


class Router(nn.Module):
    """p_t = (1 - cos(Wq h_{t-1}, Wk h_t)) / 2; a chunk begins where p_t is above 1/2. Both maps start as identities."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = WideLinear(width, width, bias=False)
        self.key = WideLinear(width, width, bias=False)
        nn.init.eye_(self.query.weight)
        nn.init.eye_(self.key.weight)

    def forward(self, states: Tensor, is_first: Tensor, is_real: Tensor) -> Routing:
        """Finds chunks. p_t is computed from states t - 1 and t alone.

        Args:
            states: [B, L, D].
            is_first: bool [B, L], the first positions of documents, where p is 1; a row's first is one in any case.
            is_real: bool [B, L], False for padding.
        """
        query, key = self.query(states[:, :-1]), self.key(states[:, 1:])
        # In fp32: the product of the rounded directions of two equal states is not quite 1.
        cosine = functional.cosine_similarity(query, key, dim=-1, eps=1e-12)
        probabilities = functional.pad(((1 - cosine) / 2).clamp(0, 1), (1, 0), value=1.0)
        probabilities = probabilities.masked_fill(is_first, 1.0)
        return Routing(probabilities, (probabilities > 0.5) & is_real)


def ratio_loss(routing: Routing, is_real: Tensor, chunk_bases: float) -> Tensor:
    """What draws the share of positions at which chunks begin to 1 / N, for each row.

    N / (N - 1) ((N - 1) F G + (1 - F) (1 - G)), F the share of chunk starts and G the mean of their probabilities:
    1 where both are 1 / N. Only G has a gradient: it falls where chunks are too short, and rises where too long.

    Args:
        routing: of [B, L] positions.
        is_real: bool [B, L]; positions of padding do not count (upstream counts them).
        chunk_bases: N, above 1.

    Returns:
        fp32 [B], without a unit. A row at a time, so that it does not matter which rows share a batch.

    Source: H-Net, section 2.2.3; `load_balancing_loss` of goombalab/hnet, which takes a device's batch as one.
    """
    real = is_real.to(routing.probabilities.dtype)
    num_real = real.sum(1).clamp_min(1)
    share = (routing.starts.to(real.dtype) * real).sum(1) / num_real
    mean = (routing.probabilities * real).sum(1) / num_real
    return chunk_bases / (chunk_bases - 1) * ((chunk_bases - 1) * share * mean + (1 - share) * (1 - mean))


def chunk_index(starts: Tensor) -> tuple[Tensor, Tensor]:
    """Finds each chunk's first position, and each position's chunk.

    Args:
        starts: bool [B, L]; in each row that is read, the first position begins a chunk.

    Returns:
        int64 [B, P], the first position of each chunk, P the most that a row has and 0 behind a row's last chunk;
        int64 [B, L], the chunk that each position belongs to.
    """
    chunk = starts.long().cumsum(1)
    num_chunks = max(int(chunk[:, -1].max()), 1)
    positions = torch.arange(starts.shape[1], device=starts.device).expand_as(chunk)
    # Positions that begin no chunk are written behind the last one, to a column that is dropped.
    first = chunk.new_zeros(len(chunk), num_chunks + 1)
    first.scatter_(1, torch.where(starts, chunk - 1, num_chunks), positions)
    return first[:, :num_chunks], (chunk - 1).clamp_min(0)


def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b, i]] at [b, i]: [B, N, D] by int64 [B, I] to [B, I, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def running_mean(chunks: Tensor, probabilities: Tensor) -> Tensor:
    """z_k = p_k x_k + (1 - p_k) z_{k-1}, z_{-1} = 0, with p clamped to [1e-4, 1 - 1e-4].

    Args:
        chunks: [B, P, D].
        probabilities: [B, P], of each chunk's first position.

    Returns:
        [B, P, D], fp32 at least.

    Source: H-Net, section 2.2.2; `DeChunkLayer` of goombalab/hnet, which runs it in bf16.
    """
    dtype = torch.promote_types(chunks.dtype, torch.float32)
    p = probabilities.to(dtype).clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    with no_autocast(chunks):
        return decaying_sum(p[..., None] * chunks.to(dtype), torch.log1p(-p))


def decaying_sum(inputs: Tensor, log_decays: Tensor) -> Tensor:
    """h_k = exp(log_decay_k) h_{k-1} + input_k, h_{-1} = 0, in parallel at a cost linear in the length.

    Blocks are triangular products of exp(sum of the log decays between two positions), each at most 1, so that
    nothing overflows whatever the decays. What a block hands to the next is the same recurrence over blocks.

    Args:
        inputs: [B, N, D].
        log_decays: [B, N], at most 0.
    """
    batch, length, width = inputs.shape
    if length == 1:
        return inputs
    fill = -length % SCAN_BLOCK
    # [B, blocks, S, D] and [B, blocks, S]; behind the last position nothing decays and nothing is added.
    blocks = functional.pad(inputs, (0, 0, 0, fill)).view(batch, -1, SCAN_BLOCK, width)
    since = functional.pad(log_decays, (0, fill)).view(batch, -1, SCAN_BLOCK).cumsum(-1)
    between = since[..., :, None] - since[..., None, :]
    later = torch.ones(SCAN_BLOCK, SCAN_BLOCK, dtype=torch.bool, device=inputs.device).triu(1)
    within = between.masked_fill(later, -torch.inf).exp() @ blocks
    if within.shape[1] > 1:
        ends = decaying_sum(within[:, :-1, -1], since[:, :-1, -1])
        carried = since[:, 1:, :, None].exp() * ends[:, :, None]
        within = torch.cat([within[:, :1], within[:, 1:] + carried], 1)
    return within.flatten(1, 2)[:, :length]


def straight_through(probabilities: Tensor) -> Tensor:
    """Ones, with the gradient of the probabilities."""
    return 1 + (probabilities - probabilities.detach())


def selected_probabilities(routing: Routing) -> Tensor:
    """[B, L], the probability of what was decided at each position: a chunk's start, or none."""
    p = routing.probabilities
    return torch.where(p > 0.5, p, 1 - p)
