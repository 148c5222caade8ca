"""From bases to patches: k-mer tables, a few blocks, and one of several ways to pool."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from hyena_blt_savanna.model.kmers import KmerConfig, KmerEmbedding
from hyena_blt_savanna.model.local_blocks import LocalConfig, check_heads
from hyena_blt_savanna.model.patches import PatchLayout
from hyena_blt_savanna.model.positions import Periods, PositionConfig
from hyena_blt_savanna.model.to_patches import CrossAttentionConfig, PlacesConfig, ToPatchesConfig


class EncoderConfig(LocalConfig):
    """The local encoder."""

    to_patches: ToPatchesConfig = Field(PlacesConfig())
    """How the states of a patch's bases become its vector: places, cross_attention, summary."""

    def check(self, width: int) -> None:
        """Refuses blocks and pooling that a width doesn't fit.

        Raises:
            ConfigError: filters or heads can't share out the channels.
        """
        super().check(width)
        if isinstance(self.to_patches, CrossAttentionConfig):
            check_heads("to_patches.num_heads", self.to_patches.num_heads, width)


class LocalEncoder(nn.Module):
    """Causal states of single bases, and one vector for each finished patch.

    Args:
        config: blocks and pooling.
        kmers: tables.
        positions: what is told of places, periods and lengths.
        width: D.
        patch_width: M.
        max_patch_bases: J.
    """

    def __init__(
        self,
        config: EncoderConfig,
        kmers: KmerConfig,
        positions: PositionConfig,
        width: int,
        patch_width: int,
        max_patch_bases: int,
    ) -> None:
        super().__init__()
        self.embedding = KmerEmbedding(kmers, width)
        self.place = nn.Embedding(max_patch_bases, width) if positions.place else None
        self.periods = Periods(positions.periods, width) if positions.periods else None
        self.blocks = config.build(width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.to_patches = config.to_patches.build(width, patch_width, max_patch_bases)
        self.lengths = nn.Embedding(max_patch_bases + 1, patch_width) if positions.patch_length else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the embeddings; blocks and pooling have drawn their own."""
        self.embedding.reset_parameters(std=1.0)
        if self.periods is not None:
            self.periods.reset_parameters(std=0.1)
        for table, std in ((self.place, 0.1), (self.lengths, 0.02)):
            if table is not None:
                nn.init.normal_(table.weight, std=std)

    def forward(self, bases: Tensor, layout: PatchLayout, first_position: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Encodes bases and patches.

        Args:
            bases: int64 [B, L].
            layout: of the finished patches.
            first_position: how many bases of the sequence precede those given, for all rows or int64 [B]; read where
                periods are, and by dropout.

        Returns:
            base states [B, L, D], each from its own and earlier bases; patches [B, P, M], zero where padded.
        """
        x_BLD = self.embed(bases, layout, first_position)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return x_BLD, self.pool(x_BLD, layout)

    def pool(self, x_BLD: Tensor, layout: PatchLayout) -> Tensor:
        """The vector of each patch, [B, P, M], zero where padded, from what the blocks made of its bases alone."""
        patches_BPM = self.to_patches(self.norm(x_BLD), layout)
        if self.lengths is not None:
            patches_BPM = patches_BPM + self.lengths(layout.lengths)
        return patches_BPM.masked_fill((layout.lengths == 0)[..., None], 0)

    def embed(self, bases: Tensor, layout: PatchLayout, first_position: int | Tensor = 0) -> Tensor:
        """What the blocks read of each base, [B, L, D]: the words that end there, and its position. See `forward`."""
        x_BLD = self.embedding(bases, first_position)
        if self.place is not None:
            x_BLD = x_BLD + self.place(layout.place.clamp(max=layout.num_places - 1))
        if self.periods is not None:
            x_BLD = x_BLD + self.periods(bases.shape[1], first_position)
        return x_BLD
