"""Where each base stands in its patch, and the regular grid of bases that patches are laid out on.

A patch of at most J bases is a row of J places on a grid [B, P, J]; place j of a patch holds its j-th base and
the places behind its last base are zero. Each base has one place at most, so that laying bases out on the grid
and taking them off again are transposes of each other, and both are plain gathers: no scatter, and no L x P mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PatchLayout:
    """Where bases stand in their patches.

    Attributes:
        patch: int64 [B, N]; the patch of each base, counted from 0. Bases behind the last patch are in an
            unfinished one, numbered as if it were the next.
        place: int64 [B, N]; how many bases of the same patch precede the base.
        starts: int64 [B, P]; the first base of each patch (padded patches start behind the last one).
        lengths: int64 [B, P].
        num_places: J, the longest patch that the grid has room for.
    """

    patch: Tensor
    place: Tensor
    starts: Tensor
    lengths: Tensor
    num_places: int

    def bases_on_grid(self) -> tuple[Tensor, Tensor]:
        """For each place of the grid the base that stands there.

        Returns:
            index int64 [B, P * J] into the bases, and bool [B, P * J]: whether there is a base.
        """
        place = torch.arange(self.num_places, device=self.starts.device)
        taken = place < self.lengths[..., None]
        index = torch.where(taken, self.starts[..., None] + place, 0)
        return index.flatten(1), taken.flatten(1)

    def places_of_bases(self) -> tuple[Tensor, Tensor]:
        """For each base its place on the grid.

        Returns:
            index int64 [B, N] into the P * J places, and bool [B, N]: whether the grid has that place; it has none
            for bases behind the last patch.
        """
        # Behind the last column stands the unfinished patch of a full row: it has no place on the grid.
        lengths = torch.nn.functional.pad(self.lengths.clamp(max=self.num_places), (0, 1))
        taken = self.place < lengths.gather(1, self.patch)
        index = torch.where(taken, self.patch * self.num_places + self.place, 0)
        return index, taken


def lay_out(patch_lengths: Tensor, num_bases: int, num_places: int) -> PatchLayout:
    """Finds patch and place of each base, in time and memory linear in the number of bases.

    Args:
        patch_lengths: integer [B, P]; zeros are padding, on the right. They may sum to less than `num_bases`.
        num_bases: N, the bases to lay out.
        num_places: J.
    """
    lengths = patch_lengths.long()
    ends = lengths.cumsum(1)
    starts = ends - lengths
    # A patch that ends at base e makes every base from e on belong to a later patch. Padded patches end where the
    # last one did and count for nothing; ends at or behind num_bases concern no base.
    opened = torch.zeros(lengths.shape[0], num_bases + 1, dtype=torch.long, device=lengths.device)
    opened.scatter_add_(1, ends.clamp(max=num_bases), (lengths > 0).long())
    patch = opened[:, :num_bases].cumsum(1)
    # The starts with one more entry: the unfinished patch starts where the last one ended.
    starts_and_end = torch.cat([starts, ends[:, -1:]], 1)
    place = torch.arange(num_bases, device=lengths.device) - starts_and_end.gather(1, patch)
    return PatchLayout(patch, place, starts, lengths, num_places)


def close_unfinished(patch_lengths: Tensor, num_bases: int) -> Tensor:
    """Appends to each row the patch that is still open at its end.

    Args:
        patch_lengths: integer [B, P]; zeros are padding, on the right.
        num_bases: N, at least the sum of each row.

    Returns:
        int64 [B, P + 1], each row sums to N: the bases behind the last patch are one more patch, in the place of
        the row's first zero.
    """
    lengths = patch_lengths.long()
    longer = torch.cat([lengths, torch.zeros_like(lengths[:, :1])], 1)
    num_patches = (lengths > 0).sum(1, keepdim=True)
    return longer.scatter_add(1, num_patches, num_bases - lengths.sum(1, keepdim=True))


class _Rearrange(torch.autograd.Function):
    """Copies rows to new places, zero where there is none; the gradient is the opposite copy."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, there_taken: Tensor, back: Tensor, back_taken: Tensor) -> Tensor:
        ctx.save_for_backward(there, there_taken, back, back_taken)
        return _take(rows, there, there_taken)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _, _, back, back_taken = ctx.saved_tensors
        return _take(gradients[0], back, back_taken), None, None, None, None


def _take(rows: Tensor, index: Tensor, taken: Tensor) -> Tensor:
    batch, num_rows, width = rows.shape
    first_row = torch.arange(batch, device=rows.device)[:, None] * num_rows
    found = rows.reshape(batch * num_rows, width).index_select(0, (index + first_row).flatten())
    return found.mul_(taken.reshape(-1, 1)).view(batch, -1, width)


def bases_to_grid(x_BND: Tensor, layout: PatchLayout) -> Tensor:
    """Lays bases out by patch and place.

    Args:
        x_BND: [B, N, D].

    Returns:
        [B, P, J, D]; zero at places behind a patch's last base.
    """
    there, back = layout.bases_on_grid(), layout.places_of_bases()
    grid = _Rearrange.apply(x_BND, *there, *back)
    return grid.view(x_BND.shape[0], -1, layout.num_places, x_BND.shape[2])


def grid_to_bases(grid_BPJD: Tensor, layout: PatchLayout) -> Tensor:
    """Takes bases off the grid: the transpose of `bases_to_grid`.

    Args:
        grid_BPJD: [B, P, J, D].

    Returns:
        [B, N, D]; zero for bases that the grid has no place for.
    """
    there, back = layout.places_of_bases(), layout.bases_on_grid()
    return _Rearrange.apply(grid_BPJD.flatten(1, 2), *there, *back)
