"""How much of a patch its vector keeps: patches that the decoder reconstructs exactly, and linear probes.

A patch is exact when the decoder, given the encoder's vector of the patch and the true bases before each of its
bases, finds every one of them. That is the same as decoding the patch greedily, base by base, from its vector and
what has been decoded so far: the first base that is wrong is wrong either way, and before it both read the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyena_blt_savanna.evaluation.bits_per_base import WINDOW_BASES, EvaluationError
from hyena_blt_savanna.evaluation.linear_probe import Probe, guess, probe
from hyena_blt_savanna.evaluation.scoring import batches_of_like_length, patch_lengths_of, side_by_side
from hyena_blt_savanna.evaluation.sequences import without_end
from hyena_blt_savanna.evaluation.windows import ScoredWindow, check_window, overlapping_windows
from hyena_blt_savanna.model.hyena_blt import HyenaBLT
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.nucleotides import Bytes

if TYPE_CHECKING:
    from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel

PROBED_PATCHES = 32_768
"""Patches whose vectors are probed, the first ones: half of them for fitting, half for testing."""
_PROBE_BLOCK_PATCHES = 64


@dataclass(frozen=True)
class LengthClass:
    """The patches of one length.

    Attributes:
        patch_bases: their length.
        num_patches: that count.
        share_of_patches_exact: among them.
    """

    patch_bases: int
    num_patches: int
    share_of_patches_exact: float


@dataclass(frozen=True)
class Probes:
    """Linear maps from vectors of patches to the bases at each place, tested on patches they were not fitted on.

    Attributes:
        encoder: from what the encoder makes of a patch.
        global_model: from what the global model makes of the same patch, which has read the patches before it too.
        commonest_base: what is right without any vector: always the commonest base of the place.
        num_fitted_patches: that the maps are fitted on.
        num_tested_patches: that they are tested on.
    """

    encoder: Probe
    global_model: Probe
    commonest_base: Probe
    num_fitted_patches: int
    num_tested_patches: int


@dataclass(frozen=True)
class Reconstruction:
    """What a model's vectors of patches keep. Only patches of A, C, G and T alone count, of either case.

    Attributes:
        share_of_patches_exact: patches whose bases are all found by the decoder from the encoder's own vector.
        share_of_bases_right: bases that are, among those of the same patches.
        num_patches: that count.
        num_bases: in them.
        num_other_patches: that hold another letter, a mark or a tag.
        by_length: the patches by length.
        probes: None where there are too few patches.
        window_bases: of a window.
        overlap_bases: least context of each patch behind the first window's.
        seconds: spent.
    """

    share_of_patches_exact: float
    share_of_bases_right: float
    num_patches: int
    num_bases: int
    num_other_patches: int
    by_length: tuple[LengthClass, ...]
    probes: Probes | None
    window_bases: int
    overlap_bases: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The plain values, ready for JSON."""
        return asdict(self)


def wrong_bases(
    logits: Tensor, bases: Tensor, patch_lengths: Tensor, class_of_byte: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Counts the bases of each patch that are not the most likely ones.

    Args:
        logits: float [B, L, C]; those at t - 1 score base t.
        bases: int64 [B, L], upper case.
        patch_lengths: integer [B, P]; zeros are padding, on the right.
        class_of_byte: int64 [512].
        counts: bool [B, L], which bases may count.

    Returns:
        int64 [B, P], the wrong bases of each patch; and bool [B, P], whether it counts: all its bases do. The first
        base of a row is not scored, so its patch does not count.
    """
    is_right = torch.nn.functional.pad(logits[:, :-1].argmax(2) == class_of_byte[bases[:, 1:]], (1, 0))
    counts = torch.nn.functional.pad(counts[:, 1:], (1, 0))
    ends = patch_lengths.long().cumsum(1)
    wrong, uncounted = (_sum_by_patch(~mask, ends) for mask in (is_right, counts))
    return wrong, (uncounted == 0) & (patch_lengths > 0)


def _sum_by_patch(mask: Tensor, ends: Tensor) -> Tensor:
    """How often a mask [B, L] is set in each patch; patches [B, P] lie end to end from the first base on."""
    sums = torch.nn.functional.pad(mask.long().cumsum(1), (1, 0)).gather(1, ends)
    return sums.diff(dim=1, prepend=torch.zeros_like(sums[:, :1]))


def evaluate_reconstruction(
    model: HyenaBLTModel,
    documents: Iterable[Bytes],
    window_bases: int | None = None,
    overlap_bases: int | None = None,
    batch_windows: int = 4,
) -> Reconstruction:
    """Reconstructs the patches of documents, each once, and probes their vectors.

    Args:
        model: a model of patches; it need not have been trained to reconstruct them. Trained on next bases, its
            decoder has never read the encoder's own vectors, so that only the probes tell what these keep.
        documents: uint8 [L] each, case kept; an end-of-document byte is left out.
        window_bases: of a window; by default the longest that the model was trained on, if it knows.
        overlap_bases: least context of each patch behind the first window's; by default half of a window.
        batch_windows: windows in one pass; a matter of speed and memory only.

    Raises:
        EvaluationError: the model is not one of patches, no patch counts, or there is no window in a pass.
        WindowError: the overlap doesn't fit the window.
        NoPatcherError: the model has no patcher.
    """
    began = time.perf_counter()
    if not isinstance(model.module, HyenaBLT):
        kind = model.config.to_dict()["kind"]
        raise EvaluationError(f"model.kind is {kind}: it has no vectors of patches to reconstruct; take a hyena_blt")
    if window_bases is None:
        window_bases = model.window_bases or WINDOW_BASES
    overlap_bases = window_bases // 2 if overlap_bases is None else overlap_bases
    check_window(window_bases, overlap_bases)
    if batch_windows < 1:
        raise EvaluationError(f"batch_windows is {batch_windows}: give at least 1")

    def windows() -> Iterator[ScoredWindow]:
        for document in documents:
            bases = without_end(document)
            yield from overlapping_windows(bases, patch_lengths_of(model, bases), window_bases, overlap_bases)

    counted, probed = _Counts(model.module.config.max_patch_bases), _Probed()
    for batch in batches_of_like_length(windows(), batch_windows):
        read = _read(model.module, batch, *side_by_side(batch, model.device))
        counted.add(read)
        probed.add(read)
    if not counted.num_patches.sum():
        raise EvaluationError(
            f"no patch of A, C, G and T alone among {counted.num_other_patches:,}: there is nothing to reconstruct"
        )
    return counted.result(probed.result(), window_bases, overlap_bases, time.perf_counter() - began)


@dataclass(frozen=True)
class _ReadPatches:
    """Patches that count, N of them: lengths int64 [N], wrong bases int64 [N], bases as classes uint8 [N, J], and
    vectors float32 [N, M]."""

    lengths: NDArray[np.int64]
    wrong: NDArray[np.int64]
    codes: NDArray[np.uint8]
    encoder: NDArray[np.float32]
    global_model: NDArray[np.float32]
    num_other_patches: int


@torch.inference_mode()
def _read(module: HyenaBLT, windows: list[ScoredWindow], bases: Tensor, patch_lengths: Tensor) -> _ReadPatches:
    counts = torch.zeros(bases.shape, dtype=torch.bool)
    is_scored = torch.zeros(patch_lengths.shape, dtype=torch.bool)
    for row, window in enumerate(windows):
        # Row and patches begin with the byte in front.
        counts[row, 1 + window.first_scored : 1 + len(window.bases)] = torch.from_numpy(window.counts)
        is_scored[row, 1 + window.first_scored_patch : 1 + len(window.patch_lengths)] = True
    counts, is_scored = counts.to(bases.device), is_scored.to(bases.device)
    logits = module.reconstruct(bases, patch_lengths)
    wrong, is_counted = wrong_bases(logits, bases, patch_lengths, module.class_of_byte, counts)
    layout = lay_out(patch_lengths, bases.shape[1], module.config.max_patch_bases)
    _, vectors = module.encoder(bases, layout)
    outputs = module.global_model(vectors)
    index, taken = layout.bases_on_grid()
    codes = torch.where(taken, module.class_of_byte[bases].gather(1, index), 0)
    kept = is_scored & is_counted

    def chosen(of_patches: Tensor) -> NDArray[Any]:
        found: NDArray[Any] = of_patches[kept].cpu().numpy()
        return found

    return _ReadPatches(
        lengths=chosen(layout.lengths),
        wrong=chosen(wrong),
        codes=chosen(codes.view(*kept.shape, -1)).astype(np.uint8),
        encoder=chosen(vectors.float()),
        global_model=chosen(outputs.float()),
        num_other_patches=int((is_scored & ~is_counted).sum()),
    )


class _Counts:
    """Patches and exact ones by length, and bases."""

    def __init__(self, longest: int) -> None:
        self.num_patches = np.zeros(longest + 1, dtype=np.int64)
        self.num_exact = np.zeros(longest + 1, dtype=np.int64)
        self.num_wrong_bases = 0
        self.num_other_patches = 0

    def add(self, read: _ReadPatches) -> None:
        self.num_patches += np.bincount(read.lengths, minlength=len(self.num_patches))
        self.num_exact += np.bincount(read.lengths[read.wrong == 0], minlength=len(self.num_exact))
        self.num_wrong_bases += int(read.wrong.sum())
        self.num_other_patches += read.num_other_patches

    def result(self, probes: Probes | None, window_bases: int, overlap_bases: int, seconds: float) -> Reconstruction:
        num_bases = int((np.arange(len(self.num_patches)) * self.num_patches).sum())
        return Reconstruction(
            share_of_patches_exact=float(self.num_exact.sum() / self.num_patches.sum()),
            share_of_bases_right=1 - self.num_wrong_bases / num_bases,
            num_patches=int(self.num_patches.sum()),
            num_bases=num_bases,
            num_other_patches=self.num_other_patches,
            by_length=tuple(
                LengthClass(length, int(num), float(exact / num))
                for length, (num, exact) in enumerate(zip(self.num_patches, self.num_exact, strict=True))
                if num
            ),
            probes=probes,
            window_bases=window_bases,
            overlap_bases=overlap_bases,
            seconds=seconds,
        )


class _Probed:
    """The first patches with their vectors."""

    def __init__(self) -> None:
        self._parts: list[_ReadPatches] = []
        self._num_patches = 0

    def add(self, read: _ReadPatches) -> None:
        if self._num_patches < PROBED_PATCHES:
            self._parts.append(read)
            self._num_patches += len(read.lengths)

    def result(self) -> Probes | None:
        """Every other block of patches is fitted on: neighbours, which share context, are mostly on one side."""
        is_test = np.arange(min(self._num_patches, PROBED_PATCHES)) // _PROBE_BLOCK_PATCHES % 2 == 1
        if not is_test.any():
            return None
        lengths, codes, encoder, global_model = (
            np.concatenate([getattr(part, name) for part in self._parts])[: len(is_test)]
            for name in ("lengths", "codes", "encoder", "global_model")
        )
        return Probes(
            encoder=probe(encoder, codes, lengths, is_test),
            global_model=probe(global_model, codes, lengths, is_test),
            commonest_base=guess(codes, lengths, is_test),
            num_fitted_patches=int((~is_test).sum()),
            num_tested_patches=int(is_test.sum()),
        )
