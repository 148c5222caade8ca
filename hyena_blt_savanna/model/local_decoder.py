"""From patches back to single bases, one patch behind."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from hyena_blt_savanna.model.from_patches import CrossAttentionConfig, FromPatchesConfig, PlacesConfig
from hyena_blt_savanna.model.head import Head, Targets
from hyena_blt_savanna.model.local_blocks import LocalConfig, check_heads
from hyena_blt_savanna.model.patches import close_unfinished, lay_out
from hyena_blt_savanna.model.positions import PositionConfig
from hyena_blt_savanna.nucleotides import NUM_SCORED


class DecoderConfig(LocalConfig):
    """The local decoder."""

    from_patches: FromPatchesConfig = Field(PlacesConfig())
    """How a base reads the last finished patch: places, broadcast, cross_attention."""

    def check(self, width: int) -> None:
        """Refuses blocks and a way to read patches that a width doesn't fit.

        Raises:
            ConfigError: filters or heads can't share out the channels.
        """
        super().check(width)
        if isinstance(self.from_patches, CrossAttentionConfig):
            check_heads("from_patches.num_heads", self.from_patches.num_heads, width)


class LocalDecoder(nn.Module):
    """Predicts base t + 1 from the states of bases up to t and the last patch finished before base t + 1.

    A base knows how many bases of its own patch precede it, never how many follow.

    Args:
        config: blocks, and how patches are read.
        positions: what is told of places.
        width: D.
        patch_width: M.
        max_patch_bases: J.
    """

    def __init__(
        self, config: DecoderConfig, positions: PositionConfig, width: int, patch_width: int, max_patch_bases: int
    ) -> None:
        super().__init__()
        self.max_patch_bases = max_patch_bases
        self.start = nn.Parameter(torch.zeros(patch_width))
        self.from_patches = config.from_patches.build(width, patch_width, max_patch_bases)
        # A map for each place has a bias of its own for each.
        needs_place = positions.place and config.from_patches.kind != "places"
        self.place = nn.Embedding(max_patch_bases, width) if needs_place else None
        self.blocks = config.build(width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = Head(width, NUM_SCORED)
        nn.init.zeros_(self.head.weight)
        if self.place is not None:
            nn.init.normal_(self.place.weight, std=0.1)

    def forward(
        self,
        x_BLD: Tensor,
        patches_BPM: Tensor,
        patch_lengths: Tensor,
        before_BM: Tensor | None = None,
        targets: Targets | None = None,
        with_states: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Scores the next base at each base.

        Args:
            x_BLD: states of bases, from the local encoder.
            patches_BPM: what the global model made of the patches.
            patch_lengths: integer [B, P].
            before_BM: what the global model made of the patch before the first one given, where the bases are a
                part of a longer sequence; the learned start vector by default.
            targets: ask for the nats of these bases in place of logits.
            with_states: return what the head reads, too.

        Returns:
            logits [B, L, NUM_SCORED]; those at t read patch `patch_of(t + 1) - 1`. With targets: their nats, a scalar.
            With states: either, and [B, L, D].
        """
        x_BLD = self.with_patches(x_BLD, patches_BPM, patch_lengths, before_BM)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        states_BLD = self.norm(x_BLD)
        scored: Tensor = self.head(states_BLD) if targets is None else self.head(states_BLD, targets=targets)
        return (scored, states_BLD) if with_states else scored

    def with_patches(
        self, x_BLD: Tensor, patches_BPM: Tensor, patch_lengths: Tensor, before_BM: Tensor | None = None
    ) -> Tensor:
        """What the blocks read of each base, [B, L, D]: state, last finished patch and place. See `forward`."""
        batch, num_bases, _ = x_BLD.shape
        # The base to be predicted behind the last one given belongs to a patch as well.
        next_lengths = close_unfinished(patch_lengths, num_bases + 1)
        layout = lay_out(next_lengths, num_bases + 1, self.max_patch_bases)
        if before_BM is None:
            before_BM = self.start.to(patches_BPM.dtype).expand(batch, -1)
        last_finished_BPM = torch.cat([before_BM[:, None], patches_BPM], 1)
        x_BLD = x_BLD + self.from_patches(last_finished_BPM, x_BLD, layout)[:, 1:]
        if self.place is not None:
            x_BLD = x_BLD + self.place(layout.place[:, 1:].clamp(max=self.max_patch_bases - 1))
        return x_BLD
