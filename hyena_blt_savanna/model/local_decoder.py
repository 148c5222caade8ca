"""From patches back to single bases, one patch behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hyena_blt_savanna.model.local_blocks import LocalConfig
from hyena_blt_savanna.model.patches import close_unfinished, grid_to_bases, lay_out
from hyena_blt_savanna.nucleotides import NUM_SCORED


class LocalDecoder(nn.Module):
    """Predicts base t + 1 from the states of bases up to t and the last patch finished before base t + 1.

    A patch's vector speaks to each place of the next patch through a matrix of that place: a base knows how many
    bases of its own patch precede it, never how many follow.
    """

    def __init__(self, local: LocalConfig, width: int, patch_width: int, max_patch_bases: int) -> None:
        super().__init__()
        self.max_patch_bases = max_patch_bases
        self.start = nn.Parameter(torch.zeros(patch_width))
        self.places = nn.Linear(patch_width, max_patch_bases * width)
        self.blocks = local.build(width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, NUM_SCORED, bias=False)

    def forward(
        self, x_BLD: Tensor, patches_BPM: Tensor, patch_lengths: Tensor, before_BM: Tensor | None = None
    ) -> Tensor:
        """Scores the next base at each base.

        Args:
            x_BLD: states of bases, from the local encoder.
            patches_BPM: what the global model made of the patches.
            patch_lengths: integer [B, P].
            before_BM: what the global model made of the patch before the first one given, where the bases are a
                part of a longer sequence; the learned start vector by default.

        Returns:
            logits [B, L, NUM_SCORED]; those at t read patch `patch_of(t + 1) - 1`.
        """
        batch, num_bases, width = x_BLD.shape
        # The base to be predicted behind the last one given belongs to a patch as well.
        next_lengths = close_unfinished(patch_lengths, num_bases + 1)
        layout = lay_out(next_lengths, num_bases + 1, self.max_patch_bases)
        if before_BM is None:
            before_BM = self.start.to(patches_BPM.dtype).expand(batch, -1)
        last_finished_BPM = torch.cat([before_BM[:, None], patches_BPM], 1)
        grid_BPJD = self.places(last_finished_BPM).view(batch, -1, self.max_patch_bases, width)
        x_BLD = x_BLD + grid_to_bases(grid_BPJD, layout)[:, 1:]
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.head(self.norm(x_BLD))
