"""The slice of a batch that one of several context-parallel ranks reads.

A window is cut between patches, into slices of equal numbers of patches: the global model has the same work on all
ranks, however uneven the patches are. What a rank reads of bases is local, so that it needs no neighbour for it: its
slice begins a few patches earlier, with the last patches of the slice on the left, whose bases are read and not scored.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hyena_blt_savanna.data.batches import Batch
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.nucleotides import PADDING


def slice_batch(batch: Batch, rank: int, num_ranks: int, num_left: int) -> Batch:
    """A rank's slice of a batch of whole windows.

    With P patches in the longest row, rank r has patches r Q to (r + 1) Q - 1 of each row, Q = ceil(P / C), and the
    `num_left` patches before them, or all there are. Slices of shorter rows may be empty.

    Args:
        batch: whole windows; all bases that count belong to finished patches.
        rank: r.
        num_ranks: C.
        num_left: patches of the slices on the left that the model reads too.

    Returns:
        A batch whose rows begin with `left_patches` patches that are not scored here. It has Q patches more than that
        on every rank, and at least as many bases.

    Raises:
        DataError: there are fewer patches than ranks.
    """
    num_patches = batch.patch_lengths.shape[1]
    if num_patches < num_ranks:
        raise DataError(
            f"a window of {num_patches} patches can't be shared among {num_ranks} context ranks: take a larger "
            f"window_bases, or parallel.context of at most {num_patches}"
        )
    own_patches = -(-num_patches // num_ranks)
    first_own = rank * own_patches
    first = max(first_own - num_left, 0)
    padded = torch.nn.functional.pad(batch.patch_lengths, (0, num_ranks * own_patches - num_patches))
    patch_lengths = padded[:, first : first_own + own_patches].contiguous()
    ends = torch.nn.functional.pad(padded.long().cumsum(1), (1, 0))
    starts, own_starts, stops = ends[:, first], ends[:, first_own], ends[:, first_own + own_patches]
    num_bases = max(int((stops - starts).max()), patch_lengths.shape[1])
    places = starts[:, None] + torch.arange(num_bases)
    is_here = places < stops[:, None]
    counts = is_here & (places >= own_starts[:, None])
    return dataclasses.replace(
        batch,
        bases=_take(batch.bases, places, is_here, PADDING),
        patch_lengths=patch_lengths,
        loss_weights=_take(batch.loss_weights, places, counts, 0),
        num_cut_patches=batch.num_cut_patches if rank == 0 else 0,
        entropies=None if batch.entropies is None else _take(batch.entropies, places, counts, 0),
        left_patches=first_own - first,
        first_positions=starts,
    )


def _take(values_BL: Tensor, places: Tensor, keep: Tensor, filler: int) -> Tensor:
    taken = values_BL.gather(1, places.clamp(max=values_BL.shape[1] - 1))
    return taken.masked_fill(~keep, filler)
