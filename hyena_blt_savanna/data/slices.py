"""The slices of windows that one of several context-parallel ranks reads.

A window is cut between patches, into slices of equal numbers of patches: the global model has the same work on all
ranks, however uneven the patches are. What a rank reads of bases is local, so that it needs no neighbour for it: its
slice begins a few patches earlier, with the last patches of the slice on the left, whose bases are read and not scored.

All ranks read the lengths of all patches, which are stored apart from the bases: so they agree without a word, and
each reads the bases of its own slice alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from hyena_blt_savanna.data.batches import Batch, collate
from hyena_blt_savanna.data.windows import FoundWindow
from hyena_blt_savanna.nucleotides import PADDING


@dataclasses.dataclass(frozen=True)
class SlicePatches:
    """Which patches of a batch's rows one rank has; the same of all rows.

    Attributes:
        first: the first one that it reads, which belongs to a slice on the left unless it is `first_own`.
        first_own: the first one of its slice.
        stop: the one after its last.
    """

    first: int
    first_own: int
    stop: int

    @classmethod
    def of(cls, num_patches: int, rank: int, num_ranks: int, num_left: int) -> SlicePatches:
        """The patches of a rank.

        Rank r has the patches r Q to (r + 1) Q - 1, Q = ceil(P / C), and the `num_left` patches before them, or all
        there are. The last slices may lie beyond the last patch.

        Args:
            num_patches: P, of the longest row, the byte in front included.
            rank: r.
            num_ranks: C.
            num_left: patches of the slices on the left that the model reads too.
        """
        own_patches = -(-num_patches // num_ranks)
        first_own = rank * own_patches
        return cls(max(first_own - num_left, 0), first_own, first_own + own_patches)

    @property
    def num_left(self) -> int:
        """Patches that belong to slices on the left."""
        return self.first_own - self.first

    @property
    def num_read(self) -> int:
        """Patches of a row of the rank's batch; some of them may be padding."""
        return self.stop - self.first


def read_slices(
    windows: Sequence[FoundWindow],
    repeat_weight: float,
    rank: int,
    num_ranks: int,
    num_left: int,
    num_patches: int | None = None,
) -> Batch:
    """Reads a rank's slices of windows, and nothing else of them.

    Args:
        windows: at least one.
        repeat_weight: weight of repeat-masked bases as targets.
        rank: of this rank among those that share the windows, r.
        num_ranks: C.
        num_left: patches of the slices on the left that the model reads too.
        num_patches: P that the slices are cut from, the byte in front included; no row has more. None: of the longest.

    Returns:
        What `slice_batch` makes of the batch of the whole windows.
    """
    longest = 1 + max(len(window.patch_lengths) for window in windows)
    assert num_patches is None or num_patches >= longest
    cut = SlicePatches.of(num_patches or longest, rank, num_ranks, num_left)
    # The byte in front of a window is its first patch.
    has_front = cut.first == 0
    begin = max(cut.first - 1, 0)
    batch = collate(
        [window.read(begin, cut.stop - 1) for window in windows],
        repeat_weight,
        # A row has a place for each patch, padding or not.
        pad_bases_to=cut.num_read,
        pad_patches_to=cut.num_read,
        has_front=has_front,
    )
    for row, num_bases in enumerate(batch.patch_lengths[:, : cut.num_left].sum(1).tolist()):
        batch.loss_weights[row, :num_bases] = 0
        if batch.entropies is not None:
            batch.entropies[row, :num_bases] = 0
    before = [0 if has_front else 1 + int(window.patch_lengths[:begin].sum()) for window in windows]
    return dataclasses.replace(
        batch,
        num_cut_patches=batch.num_cut_patches if rank == 0 else 0,
        left_patches=cut.num_left,
        first_positions=torch.tensor(before),
    )


def slice_batch(batch: Batch, rank: int, num_ranks: int, num_left: int) -> Batch:
    """A rank's slice of a batch of whole windows.

    Args:
        batch: whole windows; all bases that count belong to finished patches.
        rank: r.
        num_ranks: C.
        num_left: patches of the slices on the left that the model reads too.

    Returns:
        A batch whose rows have the patches that `SlicePatches` says, on every rank equally many of its own, and begin
        with `left_patches` patches that are not scored here. It has at least as many bases as patches.
    """
    cut = SlicePatches.of(batch.patch_lengths.shape[1], rank, num_ranks, num_left)
    padded = pad(batch.patch_lengths, (0, num_ranks * (cut.stop - cut.first_own) - batch.patch_lengths.shape[1]))
    patch_lengths = padded[:, cut.first : cut.stop].contiguous()
    ends = pad(padded.long().cumsum(1), (1, 0))
    starts, own_starts, stops = ends[:, cut.first], ends[:, cut.first_own], ends[:, cut.stop]
    num_bases = max(int((stops - starts).max()), cut.num_read)
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
        left_patches=cut.num_left,
        first_positions=starts,
    )


def _take(values_BL: Tensor, places: Tensor, keep: Tensor, filler: int) -> Tensor:
    taken = values_BL.gather(1, places.clamp(max=values_BL.shape[1] - 1))
    return taken.masked_fill(~keep, filler)
