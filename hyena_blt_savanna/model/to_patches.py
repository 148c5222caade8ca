"""From the states of a patch's bases to the patch's vector: the ways that an encoder can pool.

All are causal in patches: a vector knows the bases of its own patch and what their states know, nothing of later ones.
A module maps states [B, L, D] and their layout to [B, P, M]; what it gives a padded patch is finite, and not read. Each
configuration counts the operations for one row: L bases in P patches of up to J places, from width D to M.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.flops import cross_attention, linear
from hyena_blt_savanna.model.patches import PatchLayout, bases_to_grid
from hyena_blt_savanna.model.patches_by_length import bases_to_patches


class PlacesConfig(Config):
    """A linear map for each place in a patch, summed: what stood where survives."""

    kind: Literal["places"] = "places"
    """The name of this way to pool."""

    def flops(self, num_bases: int, num_patches: int, width: int, patch_width: int, max_patch_bases: int) -> float:
        """2 D M a base."""
        return linear(num_bases, width, patch_width)

    def build(self, width: int, patch_width: int, max_patch_bases: int) -> Places:
        """The module with fresh weights."""
        return Places(width, patch_width, max_patch_bases)


class CrossAttentionConfig(Config):
    """Learned queries look at the bases of each patch."""

    kind: Literal["cross_attention"]
    """The name of this way to pool."""
    num_queries: PositiveInt = 4
    """Queries a patch; what they find is put side by side and mapped to the patch's width."""
    num_heads: PositiveInt = 4
    """Heads of each query."""

    def flops(self, num_bases: int, num_patches: int, width: int, patch_width: int, max_patch_bases: int) -> float:
        """A base has Q H scores, 2 D Q H, and a value, 2 D^2; a patch Q sums over J places, whether there are bases or
        not, 2 Q J D, and a map out, 2 Q D M.
        """
        scores = linear(num_bases, width, self.num_queries * self.num_heads)
        values = linear(num_bases, width, width)
        sums = cross_attention(num_patches * self.num_queries, max_patch_bases, width) / 2
        return scores + values + sums + linear(num_patches, self.num_queries * width, patch_width)

    def build(self, width: int, patch_width: int, max_patch_bases: int) -> CrossAttention:
        """The module with fresh weights."""
        return CrossAttention(self, width, patch_width)


class SummaryConfig(Config):
    """Mean, maximum and last base, side by side through one linear map."""

    kind: Literal["summary"]
    """The name of this way to pool."""

    def flops(self, num_bases: int, num_patches: int, width: int, patch_width: int, max_patch_bases: int) -> float:
        """6 D M a patch."""
        return linear(num_patches, 3 * width, patch_width)

    def build(self, width: int, patch_width: int, max_patch_bases: int) -> Summary:
        """The module with fresh weights."""
        return Summary(width, patch_width)


ToPatchesConfig = Annotated[PlacesConfig | CrossAttentionConfig | SummaryConfig, Field(discriminator="kind")]


class Places(nn.Module):
    """The vector of a patch is the sum of its bases, each through the matrix of its place."""

    def __init__(self, width: int, patch_width: int, max_patch_bases: int) -> None:
        super().__init__()
        num_inputs = max_patch_bases * width
        self.weight = nn.Parameter(torch.empty(patch_width, num_inputs))
        nn.init.normal_(self.weight, std=num_inputs**-0.5)

    def forward(self, x_BLD: Tensor, layout: PatchLayout) -> Tensor:
        """[B, L, D] to [B, P, M]."""
        return bases_to_patches(x_BLD, self.weight, layout)


class CrossAttention(nn.Module):
    """Softmax of each query and head over the bases of one patch.

    A learned query times a projection of keys is one learned vector: the scores are a linear map of the states, and
    keys are never computed.

    Source: Byte Latent Transformer (Pagnoni et al. 2024, section 3.2.2), with learned queries in place of pooled ones.
    """

    def __init__(self, config: CrossAttentionConfig, width: int, patch_width: int) -> None:
        super().__init__()
        self.config = config
        self.scores = nn.Linear(width, config.num_queries * config.num_heads, bias=False)
        self.values = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(config.num_queries * width, patch_width, bias=False)
        for linear_map in (self.scores, self.values, self.out):
            nn.init.normal_(linear_map.weight, std=linear_map.in_features**-0.5)

    def forward(self, x_BLD: Tensor, layout: PatchLayout) -> Tensor:
        """[B, L, D] to [B, P, M]."""
        width, heads = x_BLD.shape[-1], self.config.num_heads
        values, scores = self.values(x_BLD), self.scores(x_BLD)
        grid = bases_to_grid(torch.cat([values, scores], -1), layout).flatten(0, 1)
        values, scores = grid.split([width, scores.shape[-1]], -1)
        # A padded patch attends to nothing; that its first place counts keeps the softmax finite.
        places = torch.arange(layout.num_places, device=x_BLD.device)
        empty = places >= layout.lengths.flatten().clamp(min=1)[:, None]
        weights = scores.float().masked_fill(empty[..., None], -torch.inf).softmax(1).to(values.dtype)
        # [B P, H, Q, J] x [B P, H, J, D / H]
        weights = weights.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1)
        found = weights @ values.unflatten(-1, (heads, -1)).transpose(1, 2)
        return self.out(found.transpose(1, 2).flatten(1)).view(*layout.lengths.shape, -1)


class Summary(nn.Module):
    """Mean, maximum and last base of a patch through one linear map: where in the patch a base stood is lost."""

    def __init__(self, width: int, patch_width: int) -> None:
        super().__init__()
        self.out = nn.Linear(3 * width, patch_width, bias=False)
        nn.init.normal_(self.out.weight, std=(3 * width) ** -0.5)

    def forward(self, x_BLD: Tensor, layout: PatchLayout) -> Tensor:
        """[B, L, D] to [B, P, M]."""
        grid = bases_to_grid(x_BLD, layout)
        lengths = layout.lengths.clamp(1, layout.num_places)[..., None]
        mean = grid.sum(2) / lengths
        places = torch.arange(layout.num_places, device=x_BLD.device)[:, None]
        largest = grid.masked_fill(places >= lengths[..., None], -torch.inf).amax(2)
        last = grid.gather(2, (lengths - 1)[..., None].expand(-1, -1, 1, grid.shape[-1])).squeeze(2)
        return self.out(torch.cat([mean, largest, last], -1))
