"""What a model says about given sequences: log-likelihoods of bases, and its states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyena_blt_savanna.evaluation.native_checkpoint import patch_places
from hyena_blt_savanna.evaluation.windows import ScoredWindow, overlapping_windows
from hyena_blt_savanna.model.hnet import HNet
from hyena_blt_savanna.model.hyena_blt import HyenaBLT
from hyena_blt_savanna.model.isotropic import Isotropic
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, PADDING, UPPER, Bytes
from hyena_blt_savanna.patching.patcher import Patcher, as_bases

if TYPE_CHECKING:
    from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel

LONGEST_PASS_BASES = 65_536
"""Sequences up to this length are scored in one pass by default."""
_SORTED_BATCHES = 16


class NoPatcherError(ValueError):
    """A model that reads patches, without what cuts a sequence into them."""


class NoStatesError(ValueError):
    """A model that has no states of single bases."""


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a sequence.

    Attributes:
        log_likelihoods: float32 [L], nats; of each base given those before it. NaN where a letter is not scored:
            outside A, C, G, T, or in the opening tag.
        total: their sum without the NaN, nats.
        bits_per_base: mean over the bases that are scored; NaN where none is.
    """

    log_likelihoods: NDArray[np.float32]
    total: float
    bits_per_base: float


@dataclass(frozen=True)
class Embedding:
    """States of a sequence.

    Attributes:
        bases: float32 [L, D]; state t has read the bases up to t, and is what base t + 1 is predicted from.
        patches: float32 [P, M]; the global model's output for each patch, which has read the patches up to it.
            A model of single bases has none: P = 0.
        patch_lengths: int32 [P], in bases.
    """

    bases: NDArray[np.float32]
    patches: NDArray[np.float32]
    patch_lengths: NDArray[np.int32]


def score(
    model: HyenaBLTModel,
    sequence: str | bytes | Bytes,
    window_bases: int = LONGEST_PASS_BASES,
    overlap_bases: int | None = None,
    batch_windows: int = 1,
) -> Score:
    """Scores one sequence; see `HyenaBLTModel.score`."""
    bases = as_bases(sequence)
    overlap_bases = window_bases // 2 if overlap_bases is None else overlap_bases
    windows = overlapping_windows(bases, patch_lengths_of(model, bases), window_bases, overlap_bases)
    log_likelihoods = np.empty(len(bases), dtype=np.float32)
    for window, scores in score_windows(model, windows, batch_windows):
        first = window.start + window.first_scored
        log_likelihoods[first : first + len(scores)] = np.where(window.counts, scores, np.nan)
    total = float(np.nansum(log_likelihoods, dtype=np.float64))
    num_scored = int((~np.isnan(log_likelihoods)).sum())
    return Score(log_likelihoods, total, -total / num_scored / math.log(2) if num_scored else math.nan)


def embed(
    model: HyenaBLTModel,
    sequence: str | bytes | Bytes,
    window_bases: int = LONGEST_PASS_BASES,
    overlap_bases: int | None = None,
) -> Embedding:
    """States of one sequence; see `HyenaBLTModel.embed`."""
    bases = as_bases(sequence)
    lengths = patch_lengths_of(model, bases)
    overlap_bases = window_bases // 2 if overlap_bases is None else overlap_bases
    base_parts, patch_parts = [], []
    for window in overlapping_windows(bases, lengths, window_bases, overlap_bases):
        base_states, patch_states = _states(model.module, *side_by_side([window], model.device))
        end = 1 + len(window.bases)
        base_parts.append(base_states[0, 1 + window.first_scored : end].float().cpu().numpy())
        if patch_states is not None:
            last = 1 + len(window.patch_lengths)
            patch_parts.append(patch_states[0, 1 + window.first_scored_patch : last].float().cpu().numpy())
    if patch_parts:
        return Embedding(np.concatenate(base_parts), np.concatenate(patch_parts), lengths)
    return Embedding(np.concatenate(base_parts), np.empty((0, 0), np.float32), np.empty(0, np.int32))


def patch_lengths_of(model: HyenaBLTModel, bases: Bytes) -> NDArray[np.int32]:
    """Lengths of a document's patches by the model's own patcher, int32 [P]; ones for a model that reads none.

    Args:
        model: the model.
        bases: uint8 [L], either case, without an end-of-document byte.

    Raises:
        NoPatcherError: the model needs a patcher and has none.
    """
    if not reads_patches(model):
        return np.ones(len(bases), dtype=np.int32)
    return patcher_of(model).segment_sequence(UPPER[bases])


def reads_patches(model: HyenaBLTModel) -> bool:
    """Whether a model reads patch boundaries that are found beforehand; others read bases alone."""
    return patch_places(model.config) is not None


def patcher_of(model: HyenaBLTModel) -> Patcher:
    """The patcher of a model that needs one.

    Raises:
        NoPatcherError: there is none.
    """
    if model.patcher is None:
        raise NoPatcherError(
            "the model came without a patcher, and can't cut a sequence into patches: load a checkpoint that holds "
            "patcher/, or set the model's `patcher`"
        )
    return model.patcher


def score_windows(
    model: HyenaBLTModel, windows: Iterable[ScoredWindow], batch_windows: int
) -> Iterator[tuple[ScoredWindow, NDArray[np.float32]]]:
    """Scores windows in batches, those of like length together.

    Args:
        model: the model.
        windows: of any documents.
        batch_windows: windows in one pass.

    Yields:
        Each window, in an order of its own, and float32 [number of its scored bases]: the log-likelihoods in nats
        of the bases from `first_scored` on; NaN for bytes that the model does not predict.
    """
    for batch in batches_of_like_length(windows, batch_windows):
        scores = _log_likelihoods(model.module, *side_by_side(batch, model.device))
        for row, window in enumerate(batch):
            yield window, scores[row, window.first_scored : len(window.bases)]


def batches_of_like_length(windows: Iterable[ScoredWindow], batch_windows: int) -> Iterator[list[ScoredWindow]]:
    """Groups windows, those of like length together: in an order of its own, so that little is padded."""
    windows = iter(windows)
    while some := list(itertools.islice(windows, _SORTED_BATCHES * batch_windows)):
        some.sort(key=lambda window: len(window.bases))
        for first in range(0, len(some), batch_windows):
            yield some[first : first + batch_windows]


@torch.inference_mode()
def _log_likelihoods(module: nn.Module, bases: Tensor, patch_lengths: Tensor) -> NDArray[np.float32]:
    """Of each base but the one in front, float32 [B, L - 1]."""
    log_probabilities = module(bases, patch_lengths)[:, :-1].float().log_softmax(-1)
    assert isinstance(module.class_of_byte, Tensor)
    classes = module.class_of_byte[bases[:, 1:]]
    found = log_probabilities.gather(-1, classes.clamp(min=0)[..., None])[..., 0]
    return found.masked_fill(classes < 0, torch.nan).cpu().numpy()


@torch.inference_mode()
def _states(module: nn.Module, bases: Tensor, patch_lengths: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the head reads, [B, L, D], and what the global model made of the patches, [B, P, M]."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_hook(lambda _, inputs, output: kept.update({name: output}))

    if isinstance(module, HyenaBLT):
        layers: dict[str, nn.Module] = {"bases": module.decoder.norm, "patches": module.global_model}
    elif isinstance(module, Isotropic):
        layers = {"bases": module.stack}
    elif isinstance(module, HNet):
        layers = {"bases": module.decoder}
    else:
        kind = type(module.config).__name__.removesuffix("Config")
        raise NoStatesError(f"a {kind} model has states of words and none of single bases: there is nothing to embed")
    handles = [keep(name, layer) for name, layer in layers.items()]
    try:
        module(bases, patch_lengths)
    finally:
        for handle in handles:
            handle.remove()
    return kept["bases"], kept.get("patches")


def side_by_side(windows: Sequence[ScoredWindow], device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows as the model reads them, each behind an end-of-document byte that is a patch of its own.

    Returns:
        bases int64 [B, 1 + longest window], upper case, padded on the right; patch lengths int32 [B, 1 + P].
    """
    bases = np.full((len(windows), 1 + max(len(window.bases) for window in windows)), PADDING, dtype=np.int64)
    lengths = np.zeros((len(windows), 1 + max(len(window.patch_lengths) for window in windows)), dtype=np.int32)
    bases[:, 0], lengths[:, 0] = END_OF_DOCUMENT, 1
    for row, window in enumerate(windows):
        bases[row, 1 : 1 + len(window.bases)] = UPPER[window.bases]
        lengths[row, 1 : 1 + len(window.patch_lengths)] = window.patch_lengths
    return torch.from_numpy(bases).to(device), torch.from_numpy(lengths).to(device)
