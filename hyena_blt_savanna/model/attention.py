"""Causal self-attention with rotary positions, over all that came before or within a window."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.model.flops import attention, linear
from hyena_blt_savanna.model.initialisation import small_init_std, wang_init_std
from hyena_blt_savanna.model.linear import Linear
from hyena_blt_savanna.model.rotary import RotaryConfig, rotary_tables, rotate
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel

LARGEST_BLOCK = 128
"""Queries that share one look at their keys: with longer blocks more of the products lie outside the window."""


class AttentionConfig(Config):
    """The attention blocks."""

    rotary: RotaryConfig = RotaryConfig()
    """Positions."""
    output_bias: bool = True
    """Whether the output projection adds a bias."""
    window: int | None = Field(None, ge=1)
    """Positions that each one attends to: itself and the `window - 1` before it; None: all before it."""

    def flops(self, length: int, width: int) -> dict[str, float]:
        """Operations of one mixer over a sequence: query, key, value and the way out, 8 M^2 a position; the pairs."""
        return {"projections": linear(length, width, 4 * width), "attention": attention(length, width, self.window)}


class Attention(nn.Module):
    """Every position attends to itself and to positions before it.

    The rows of the input projection are packed by head: [query, key, value] of head 0, then of head 1, ...

    Source: Vaswani et al. 2017; Savanna's `flash_v2` attention. Windows: Beltagy et al. 2020 (arXiv:2004.05150).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        config: AttentionConfig,
        num_blocks: int = 1,
        context: ContextParallel = SINGLE_RANK,
    ) -> None:
        """Builds the mixer.

        Raises:
            ConfigError: the width can't be shared out over the heads, or rotary pairs don't fit in a head.
        """
        super().__init__()
        if width % num_heads or (width // num_heads) % 2:
            raise ConfigError(
                f"num_heads = {num_heads} does not cut the width {width} into heads of even width; "
                f"choose num_heads so that width / num_heads is an even integer"
            )
        self.num_heads = num_heads
        self.config = config
        self.context = context
        self.in_projection = Linear(width, 3 * width, bias=False)
        self.out_projection = Linear(width, width, bias=config.output_bias)
        nn.init.normal_(self.in_projection.weight, std=small_init_std(width))
        nn.init.normal_(self.out_projection.weight, std=wang_init_std(width, num_blocks))
        if config.output_bias:
            nn.init.zeros_(self.out_projection.bias)

    def forward(self, u: Tensor) -> Tensor:
        """[B, L, M] to [B, L, M]."""
        packed = self.in_projection(u).unflatten(-1, (self.num_heads, 3, -1))
        heads = (self.context.gather_sequence(part.transpose(1, 2), 1, 2) for part in packed.unbind(-2))
        query, key, value = heads
        if self.config.window is None:
            tables = rotary_tables(query.shape[2], query.shape[3], self.config.rotary, query.device)
            mixed = functional.scaled_dot_product_attention(
                rotate(query, *tables), rotate(key, *tables), value, is_causal=True
            )
        else:
            mixed = self._within_window(query, key, value, self.config.window)
        mixed = self.context.scatter_sequence(mixed, 1, 2)
        return self.out_projection(mixed.transpose(1, 2).flatten(2))

    def _within_window(self, query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
        # What is carried over is not turned yet: angles count from the first key there is, and stay small in a stream.
        key, value = (self._with_earlier(part, window) for part in (key, value))
        num_left = key.shape[2] - query.shape[2]
        cosine, sine = rotary_tables(key.shape[2], key.shape[3], self.config.rotary, key.device)
        turned = rotate(query, cosine[num_left:], sine[num_left:])
        return windowed_attention(turned, rotate(key, cosine, sine), value, window)

    def _with_earlier(self, part: Tensor, window: int) -> Tensor:
        left = self.context.earlier(part, window - 1, sequence_dim=2) if window > 1 else None
        return part if left is None else torch.cat([left, part], dim=2)


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Softmax attention of each position over itself and the `window - 1` positions before it.

    The first positions, which see all there is, are one causal product; the others go by blocks of queries, which
    share one band mask: arithmetic and memory grow with L times the window.

    Args:
        query: [B, H, L, E]: the last L positions of the keys.
        key: [B, H, N, E], N at least L; at most `window - 1` positions more.
        value: [B, H, N, E].
        window: at least 1.

    Returns:
        [B, H, L, E].
    """
    attend = functional.scaled_dot_product_attention
    length, num_keys = query.shape[2], key.shape[2]
    num_left = num_keys - length
    assert 0 <= num_left < window
    if num_keys <= window:
        # Position i of the queries is position num_left + i of the keys.
        mask = None if num_left == 0 else band(length, num_keys, num_left, num_keys, query.device)
        return attend(query, key, value, attn_mask=mask, is_causal=mask is None)
    block = min(window, LARGEST_BLOCK)
    first = window - num_left
    parts = [windowed_attention(query[:, :, :first], key[:, :, :window], value[:, :, :window], window)]
    mask = band(block, window + block, window, window, query.device)
    num_blocks, num_rest = divmod(length - first, block)
    if num_blocks:
        stop = first + num_blocks * block
        queries = query[:, :, first:stop].unflatten(2, (num_blocks, block))
        keys, values = (part[:, :, : num_left + stop].unfold(2, window + block, block) for part in (key, value))
        # A row at a time: the blocks overlap in memory, which a batch of batches can't express without a copy.
        rows = [
            attend(q.transpose(0, 1), k.permute(1, 0, 3, 2), v.permute(1, 0, 3, 2), attn_mask=mask)
            for q, k, v in zip(queries, keys, values, strict=True)
        ]
        parts.append(torch.stack([row.transpose(0, 1).flatten(1, 2) for row in rows]))
    if num_rest:
        num_last = window + num_rest
        last_key, last_value = (part[:, :, -num_last:] for part in (key, value))
        parts.append(attend(query[:, :, -num_rest:], last_key, last_value, attn_mask=mask[:num_rest, :num_last]))
    return torch.cat(parts, dim=2)


def band(num_queries: int, num_keys: int, num_left: int, window: int, device: torch.device) -> Tensor:
    """Which keys each query sees.

    Args:
        num_queries: rows.
        num_keys: columns.
        num_left: the key at which query 0 stands.
        window: keys that a query sees: the one at which it stands, and those before it.

    Returns:
        bool [num_queries, num_keys].
    """
    back = torch.arange(num_queries, device=device)[:, None] + num_left - torch.arange(num_keys, device=device)
    return (back >= 0) & (back < window)
