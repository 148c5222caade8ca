"""From the vectors of patches to single bases: the ways that a decoder can read the patch before a base's own.

A module gets the vectors [B, P, M] that the bases of P patches read, the layout of those N bases, and the states
[B, N - 1, D] that are to predict them: the one at n predicts base n + 1. What it returns, [B, N, D], is added to the
states that predict those bases. Which patch's vector stands for which patch is the decoder's affair. Each configuration
counts the operations for one row: N bases in P patches of up to J places, from width M to D.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.flops import cross_attention, linear
from hyena_blt_savanna.model.patches import PatchLayout, bases_to_grid, grid_to_bases
from hyena_blt_savanna.model.patches_by_length import patches_to_bases


class PlacesConfig(Config):
    """A linear map for each place in a patch."""

    kind: Literal["places"] = "places"
    """The name of this way to read."""

    def flops(self, num_bases: int, num_patches: int, width: int, patch_width: int, max_patch_bases: int) -> float:
        """2 M D a base."""
        return linear(num_bases, patch_width, width)

    def build(self, width: int, patch_width: int, max_patch_bases: int) -> Places:
        """The module with fresh weights."""
        return Places(width, patch_width, max_patch_bases)


class BroadcastConfig(Config):
    """One linear map a patch, and the same for each of its bases."""

    kind: Literal["broadcast"]
    """The name of this way to read."""

    def flops(self, num_bases: int, num_patches: int, width: int, patch_width: int, max_patch_bases: int) -> float:
        """2 M D a patch."""
        return linear(num_patches, patch_width, width)

    def build(self, width: int, patch_width: int, max_patch_bases: int) -> Broadcast:
        """The module with fresh weights."""
        return Broadcast(width, patch_width)


class CrossAttentionConfig(Config):
    """A patch gives several keys and values; each base looks at them."""

    kind: Literal["cross_attention"]
    """The name of this way to read."""
    num_vectors: int = Field(4, ge=2)
    """Keys and values a patch; over one alone a softmax would always give 1."""
    num_heads: PositiveInt = 4
    """Heads of a base's query."""

    def flops(self, num_bases: int, num_patches: int, width: int, patch_width: int, max_patch_bases: int) -> float:
        """A patch makes V keys and values, 4 M D V, at which J places look, whether there are bases or not, 4 J V D; a
        base has a query and a map out, 4 D^2.
        """
        keys_and_values = linear(num_patches, patch_width, 2 * self.num_vectors * width)
        attention = cross_attention(num_patches * max_patch_bases, self.num_vectors, width)
        return keys_and_values + 2 * linear(num_bases, width, width) + attention

    def build(self, width: int, patch_width: int, max_patch_bases: int) -> CrossAttention:
        """The module with fresh weights."""
        return CrossAttention(self, width, patch_width)


FromPatchesConfig = Annotated[PlacesConfig | BroadcastConfig | CrossAttentionConfig, Field(discriminator="kind")]


class Places(nn.Module):
    """A patch's vector speaks to each place through the matrix of that place."""

    def __init__(self, width: int, patch_width: int, max_patch_bases: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_patch_bases * width, patch_width))
        self.bias = nn.Parameter(torch.zeros(max_patch_bases * width))
        nn.init.normal_(self.weight, std=patch_width**-0.5)

    def forward(self, vectors_BPM: Tensor, x_BLD: Tensor, layout: PatchLayout) -> Tensor:
        """[B, P, M] to [B, N, D]; the states are not read."""
        return patches_to_bases(vectors_BPM, self.weight, self.bias, layout)


class Broadcast(nn.Module):
    """A patch's vector says the same to each place."""

    def __init__(self, width: int, patch_width: int) -> None:
        super().__init__()
        self.out = nn.Linear(patch_width, width)
        nn.init.normal_(self.out.weight, std=patch_width**-0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, vectors_BPM: Tensor, x_BLD: Tensor, layout: PatchLayout) -> Tensor:
        """[B, P, M] to [B, N, D]; the states are not read."""
        said_BPD = self.out(vectors_BPM)
        return grid_to_bases(said_BPD[:, :, None].expand(-1, -1, layout.num_places, -1), layout)


class CrossAttention(nn.Module):
    """Softmax of each base and head over the V vectors of one patch.

    Source: Byte Latent Transformer (Pagnoni et al. 2024, section 3.3.1), where a patch gives several vectors as well.
    """

    def __init__(self, config: CrossAttentionConfig, width: int, patch_width: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.keys_and_values = nn.Linear(patch_width, 2 * config.num_vectors * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        for linear_map in (self.query, self.keys_and_values, self.out):
            nn.init.normal_(linear_map.weight, std=linear_map.in_features**-0.5)

    def forward(self, vectors_BPM: Tensor, x_BLD: Tensor, layout: PatchLayout) -> Tensor:
        """[B, P, M] and [B, N - 1, D] to [B, N, D]."""
        heads, vectors = self.config.num_heads, self.config.num_vectors
        # [B P, H, V or J, D / H]
        split = self.keys_and_values(vectors_BPM).flatten(0, 1).unflatten(-1, (2, vectors, heads, -1))
        keys, values = split.permute(1, 0, 3, 2, 4)
        # No state predicts the first base.
        queries_BND = nn.functional.pad(self.query(self.norm(x_BLD)), (0, 0, 1, 0))
        queries = bases_to_grid(queries_BND, layout).flatten(0, 1)
        queries = queries.unflatten(-1, (heads, -1)).transpose(1, 2)
        weights = (queries @ keys.transpose(-1, -2)).float() * queries.shape[-1] ** -0.5
        found = weights.softmax(-1).to(values.dtype) @ values
        grid_BPJD = found.transpose(1, 2).flatten(2).unflatten(0, vectors_BPM.shape[:2])
        return self.out(grid_to_bases(grid_BPJD, layout))
