"""Linear maps from the places of a patch to its vector and back, at the cost of the bases that are there.

On the grid of `model.patches` the places behind a patch's last base are multiplied like any other: at a mean of 8
bases and 16 places half of the arithmetic is for nothing. Here patches are sorted by length. Those of one length are
a dense matrix, their bases side by side, so that each length is one product with the weights of as many places, and
no row is padded. Which lengths there are is known only when the data is: inside a module that is free to differ
between ranks, and no module is called more or less often for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyena_blt_savanna.model.patches import PatchLayout


@dataclass(frozen=True)
class PatchesByLength:
    """All patches of a batch from the shortest to the longest, and their bases in the same order.

    Attributes:
        patch: int64 [B * P]; the patches in that order, counted over all rows.
        rank: int64 [B * P]; where each patch stands in it.
        base: int64 [R]; the bases in that order, counted over all rows: those that have a place.
        row: int64 [B * N]; where each base stands in it; R for a base without a place.
        counts: number of patches of each length from 0 to J.
    """

    patch: Tensor
    rank: Tensor
    base: Tensor
    row: Tensor
    counts: list[int]

    def blocks(self) -> Iterator[tuple[int, slice, slice]]:
        """For each length that occurs but 0: the length, its patches, and the rows of their bases."""
        first_patch, first_row = self.counts[0], 0
        for length, count in enumerate(self.counts[1:], 1):
            if count:
                end_patch, end_row = first_patch + count, first_row + count * length
                yield length, slice(first_patch, end_patch), slice(first_row, end_row)
                first_patch, first_row = end_patch, end_row


def sort_by_length(layout: PatchLayout) -> PatchesByLength:
    """Sorts the patches of a layout; bases behind its last patch, or behind the last place, have no place."""
    lengths = layout.lengths.clamp(max=layout.num_places)
    sorted_lengths, patch = lengths.flatten().sort(stable=True)
    rank = torch.empty_like(patch)
    rank[patch] = torch.arange(len(patch), device=patch.device)
    counts = torch.bincount(sorted_lengths, minlength=layout.num_places + 1).tolist()
    num_rows = sum(length * count for length, count in enumerate(counts))
    first_rows = (sorted_lengths.cumsum(0) - sorted_lengths)[rank].view_as(lengths)
    # One more column: the unfinished patch, which has no place for any base.
    taken = layout.place < torch.nn.functional.pad(lengths, (0, 1)).gather(1, layout.patch)
    first_row = torch.nn.functional.pad(first_rows, (0, 1)).gather(1, layout.patch)
    row = torch.where(taken, first_row + layout.place, num_rows).flatten()
    # Should lengths sum to more than the bases, what is left at -1 is refused by the next look-up.
    base = torch.full((num_rows + 1,), -1, dtype=torch.long, device=row.device)
    base[row] = torch.arange(len(row), device=row.device)
    return PatchesByLength(patch, rank, base[:-1], row, counts)


def bases_to_patches(x_BND: Tensor, weight: Tensor, layout: PatchLayout) -> Tensor:
    """Sums the bases of each patch, each through the matrix of its place.

    Args:
        x_BND: [B, N, D].
        weight: [M, J * D].
        layout: P patches of at most J bases.

    Returns:
        [B, P, M]; zero for patches of length 0.
    """
    by_length = sort_by_length(layout)
    x, weight = _cast(x_BND.flatten(0, 1), weight)
    return _BasesToPatches.apply(x, weight, by_length).view(*layout.lengths.shape, -1)


def patches_to_bases(patches_BPM: Tensor, weight: Tensor, bias: Tensor, layout: PatchLayout) -> Tensor:
    """Sends the vector of each patch to each of its bases, through the matrix of the base's place.

    Args:
        patches_BPM: [B, P, M].
        weight: [J * D, M].
        bias: [J * D].
        layout: P patches of at most J bases.

    Returns:
        [B, N, D]; zero for bases without a place.
    """
    by_length = sort_by_length(layout)
    patches, weight, bias = _cast(patches_BPM.flatten(0, 1), weight, bias)
    x = _PatchesToBases.apply(patches, weight, bias, by_length, layout.num_places)
    return x.view(*layout.place.shape, -1)


def _cast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast would give them to a matrix product."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


class _BasesToPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, by_length: PatchesByLength) -> Tensor:
        rows = x.index_select(0, by_length.base)
        ctx.by_length = by_length
        ctx.save_for_backward(rows, weight)
        return _gather(rows, weight, by_length).index_select(0, by_length.rank)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        patches = gradients[0].index_select(0, ctx.by_length.patch)
        grad_x = _spread(patches, weight, ctx.by_length, rows.shape[1]).index_select(0, ctx.by_length.row)
        return grad_x, _outer(patches, rows, ctx.by_length, weight), None


class _PatchesToBases(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, weight: Tensor, bias: Tensor, by_length: PatchesByLength, num_places: int
    ) -> Tensor:
        patches = patches.index_select(0, by_length.patch)
        ctx.by_length = by_length
        ctx.save_for_backward(patches, weight)
        rows = _spread(patches, weight.t(), by_length, len(weight) // num_places, bias)
        return rows.index_select(0, by_length.row)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        patches, weight = ctx.saved_tensors
        rows = gradients[0].index_select(0, ctx.by_length.base)
        grad_patches = _gather(rows, weight.t(), ctx.by_length).index_select(0, ctx.by_length.rank)
        grad_bias = torch.zeros(len(weight), device=rows.device, dtype=_wide(rows.dtype))
        for length, _, of_bases in ctx.by_length.blocks():
            block = rows[of_bases].view(-1, length * rows.shape[1])
            grad_bias[: block.shape[1]] += block.sum(0, dtype=grad_bias.dtype)
        return grad_patches, _outer(patches, rows, ctx.by_length, weight.t()).t(), grad_bias, None, None


def _gather(rows: Tensor, weight: Tensor, by_length: PatchesByLength) -> Tensor:
    """Bases [R, D] through weight [M, J * D] to patches [B * P, M], both in order of length."""
    patches = rows.new_empty(len(by_length.patch), len(weight))
    patches[: by_length.counts[0]] = 0
    for length, of_patches, of_bases in by_length.blocks():
        block = rows[of_bases].view(-1, length * rows.shape[1])
        torch.mm(block, weight[:, : block.shape[1]].t(), out=patches[of_patches])
    return patches


def _spread(
    patches: Tensor, weight: Tensor, by_length: PatchesByLength, width: int, bias: Tensor | None = None
) -> Tensor:
    """Patches [B * P, M] through weight [M, J * D] to bases [R + 1, D], both in order of length; the last row is 0."""
    rows = patches.new_empty(len(by_length.base) + 1, width)
    rows[-1] = 0
    for length, of_patches, of_bases in by_length.blocks():
        block = rows[of_bases].view(-1, length * width)
        if bias is None:
            torch.mm(patches[of_patches], weight[:, : block.shape[1]], out=block)
        else:
            torch.addmm(bias[: block.shape[1]], patches[of_patches], weight[:, : block.shape[1]], out=block)
    return rows


def _outer(patches: Tensor, rows: Tensor, by_length: PatchesByLength, weight: Tensor) -> Tensor:
    """The gradient of weight [M, J * D]: a sum over lengths, in fp32 at least."""
    total = torch.zeros(weight.shape, device=weight.device, dtype=_wide(weight.dtype))
    for length, of_patches, of_bases in by_length.blocks():
        block = rows[of_bases].view(-1, length * rows.shape[1])
        total[:, : block.shape[1]] += patches[of_patches].t() @ block
    return total


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
