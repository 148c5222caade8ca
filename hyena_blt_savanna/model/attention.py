"""Causal self-attention with rotary positions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.model.initialisation import small_init_std, wang_init_std
from hyena_blt_savanna.model.rotary import RotaryConfig, rotary_tables, rotate
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel


class AttentionConfig(Config):
    """The attention blocks."""

    rotary: RotaryConfig = RotaryConfig()
    """Positions."""
    output_bias: bool = True
    """Whether the output projection adds a bias."""


class Attention(nn.Module):
    """Every position attends to itself and all positions before it.

    The rows of the input projection are packed by head: [query, key, value] of head 0, then of head 1, ...

    Source: Vaswani et al. 2017; Savanna's `flash_v2` attention.
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
        self.in_projection = nn.Linear(width, 3 * width, bias=False)
        self.out_projection = nn.Linear(width, width, bias=config.output_bias)
        nn.init.normal_(self.in_projection.weight, std=small_init_std(width))
        nn.init.normal_(self.out_projection.weight, std=wang_init_std(width, num_blocks))
        if config.output_bias:
            nn.init.zeros_(self.out_projection.bias)

    def forward(self, u: Tensor) -> Tensor:
        """[B, L, M] to [B, L, M]."""
        packed = self.in_projection(u).unflatten(-1, (self.num_heads, 3, -1))
        heads = (self.context.gather_sequence(part.transpose(1, 2), 1, 2) for part in packed.unbind(-2))
        query, key, value = heads
        tables = rotary_tables(query.shape[2], query.shape[3], self.config.rotary, query.device)
        mixed = functional.scaled_dot_product_attention(
            rotate(query, *tables), rotate(key, *tables), value, is_causal=True
        )
        mixed = self.context.scatter_sequence(mixed, 1, 2)
        return self.out_projection(mixed.transpose(1, 2).flatten(2))
