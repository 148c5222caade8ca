"""From bases to patches: k-mer tables, a few blocks, and a linear map for each place in a patch."""

from __future__ import annotations

from torch import Tensor, nn

from hyena_blt_savanna.model.kmers import KmerConfig, KmerEmbedding
from hyena_blt_savanna.model.local_blocks import LocalConfig
from hyena_blt_savanna.model.patches import PatchLayout, bases_to_grid


class LocalEncoder(nn.Module):
    """Causal states of single bases, and one vector for each finished patch.

    The vector of a patch is a sum over its bases, each through the matrix of its place: what stood where survives,
    which pooling by mean or maximum loses. A patch's length enters through a vector of its own, which nothing but
    the finished patch sees.
    """

    def __init__(
        self, kmers: KmerConfig, local: LocalConfig, width: int, patch_width: int, max_patch_bases: int
    ) -> None:
        super().__init__()
        self.embedding = KmerEmbedding(kmers, width)
        self.blocks = local.build(width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.places = nn.Linear(max_patch_bases * width, patch_width, bias=False)
        self.lengths = nn.Embedding(max_patch_bases + 1, patch_width)

    def forward(self, bases: Tensor, layout: PatchLayout) -> tuple[Tensor, Tensor]:
        """Encodes bases and patches.

        Args:
            bases: int64 [B, L].
            layout: of the finished patches.

        Returns:
            base states [B, L, D], each from its own and earlier bases; patches [B, P, M], zero where padded.
        """
        x_BLD = self.embedding(bases)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        grid_BPJD = bases_to_grid(self.norm(x_BLD), layout)
        patches_BPM = self.places(grid_BPJD.flatten(2)) + self.lengths(layout.lengths)
        return x_BLD, patches_BPM * (layout.lengths > 0)[..., None]
