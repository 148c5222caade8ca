"""A stretch of sequence and how it is cut: its patches in figures, and window by window."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.gff import Coding
from hyena_blt_savanna.nucleotides import BASE_CODE, OTHER_CODE, Bytes
from hyena_blt_savanna.patching.marks import IN_UNKNOWN_RUN, PLACE, states_before
from hyena_blt_savanna.patching.rules import PatchRuleConfig

_PIECE_BASES = 1 << 16


class InspectionError(ValueError):
    """Something that can't be inspected: the message says what was given and what to change."""


@dataclass(frozen=True)
class Stretch:
    """A stretch of sequence and how it is cut.

    Attributes:
        title: what it is, for people.
        first: number of its first base, from 1.
        bases: uint8 [L], case as on disk.
        entropies: float32 [L], nats.
        starts: int64 [P], where patches start in it, from 0.
        lengths: int32 [P], of those patches in bases; the last may reach beyond the stretch.
        rule: what cut it.
        calibrated_mean_bases: mean length that the rule's calibration reached; None where it is not known.
        coding: what is coding; None where there is no annotation of genes.
        notes: what else is to be known of it, in sentences.
    """

    title: str
    first: int
    bases: Bytes
    entropies: NDArray[np.float32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]
    rule: PatchRuleConfig
    calibrated_mean_bases: float | None = None
    coding: Coding | None = None
    notes: tuple[str, ...] = ()

    def piece(self, start: int, stop: int) -> Stretch:
        """Its bases [start, stop), counted from 0."""
        inside = slice(*np.searchsorted(self.starts, (start, stop)))
        coding = self.coding and Coding(self.coding.strands[start:stop], self.coding.codon_places[start:stop])
        return replace(
            self,
            first=self.first + start,
            bases=self.bases[start:stop],
            entropies=self.entropies[start:stop],
            starts=self.starts[inside] - start,
            lengths=self.lengths[inside],
            coding=coding,
        )

    def sampled(self, num_bases: int) -> Stretch:
        """At most about `num_bases` of it, in pieces of 65,536 bases that are spread evenly, end to end."""
        if len(self.bases) <= num_bases:
            return self
        num_pieces = max(1, num_bases // _PIECE_BASES)
        begins = np.linspace(0, len(self.bases) - _PIECE_BASES, num_pieces).astype(np.int64)
        pieces = [self.piece(int(begin), int(begin) + _PIECE_BASES) for begin in begins]
        offsets = _PIECE_BASES * np.arange(len(pieces))
        codings = [piece.coding for piece in pieces if piece.coding]
        return replace(
            self,
            bases=np.concatenate([piece.bases for piece in pieces]),
            entropies=np.concatenate([piece.entropies for piece in pieces]),
            starts=np.concatenate([piece.starts + offset for piece, offset in zip(pieces, offsets, strict=True)]),
            lengths=np.concatenate([piece.lengths for piece in pieces]),
            coding=Coding(
                np.concatenate([coding.strands for coding in codings]),
                np.concatenate([coding.codon_places for coding in codings]),
            )
            if codings
            else None,
        )


@dataclass(frozen=True)
class Summary:
    """Figures of a stretch.

    Attributes:
        num_bases: of the stretch, marks included.
        num_patches: that start in it.
        mean_bases: of their lengths.
        std_bases: likewise.
        share_of_single_bases: of patches of one base.
        share_at_maximum: of patches as long as the rule allows.
        mean_nats: information in a patch, by the entropy model.
        std_nats: likewise.
        entropy_quantiles: nats, by share: 5 %, 25 %, 50 %, 75 %, 95 % of the bases have no more.
        drift: mean length here over the calibrated one, less 1, without patches that begin behind the first letter of
            a run of N, as rules are calibrated; None where that is not known.
    """

    num_bases: int
    num_patches: int
    mean_bases: float
    std_bases: float
    share_of_single_bases: float
    share_at_maximum: float
    mean_nats: float
    std_nats: float
    entropy_quantiles: dict[float, float]
    drift: float | None


def summarise(stretch: Stretch) -> Summary:
    """The figures of a stretch.

    Raises:
        InspectionError: no patch starts in it.
    """
    if not len(stretch.starts):
        raise InspectionError(f"{stretch.title}: no patch starts in it; give a longer stretch")
    lengths, nats = stretch.lengths, information(stretch.entropies, stretch.starts)
    is_known = (states_before(stretch.bases) & PLACE)[stretch.starts] != IN_UNKNOWN_RUN
    known = stretch.calibrated_mean_bases
    shares = (0.05, 0.25, 0.5, 0.75, 0.95)
    return Summary(
        num_bases=len(stretch.bases),
        num_patches=len(lengths),
        mean_bases=float(lengths.mean()),
        std_bases=float(lengths.std()),
        share_of_single_bases=float((lengths == 1).mean()),
        share_at_maximum=float((lengths >= stretch.rule.max_patch_bases).mean()),
        mean_nats=float(nats.mean()),
        std_nats=float(nats.std()),
        entropy_quantiles=dict(zip(shares, np.quantile(stretch.entropies, shares).tolist(), strict=True)),
        drift=None if known is None or not is_known.any() else float(lengths[is_known].mean()) / known - 1,
    )


def information(entropies: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nats in each patch, float64 [P]; the last patch ends with the stretch.

    Args:
        entropies: float32 [L], nats.
        starts: int64 [P], at least one.
    """
    return np.add.reduceat(entropies.astype(np.float64), starts)


@dataclass(frozen=True)
class Windows:
    """A stretch in windows of one width; what is left at its end is no window.

    Attributes:
        width_bases: of a window.
        middles: float64 [W], number of the base in the middle of each.
        bases_per_cut: float64 [W], width over the patches that start there.
        nats: float64 [W], mean entropy.
        known: float64 [W], share of A, C, G and T.
        gc: float64 [W], share of G and C among those; NaN where there are none.
        soft_masked: float64 [W], share in lower case.
        repeats: float64 [W], share in homopolymers and tandem repeats.
    """

    width_bases: int
    middles: NDArray[np.float64]
    bases_per_cut: NDArray[np.float64]
    nats: NDArray[np.float64]
    known: NDArray[np.float64]
    gc: NDArray[np.float64]
    soft_masked: NDArray[np.float64]
    repeats: NDArray[np.float64]


def in_windows(stretch: Stretch, repeats: NDArray[np.bool_], width_bases: int) -> Windows:
    """Describes a stretch window by window.

    Args:
        stretch: at least one window long.
        repeats: bool [L], which bases lie in homopolymers or tandem repeats.
        width_bases: of a window.
    """
    num = len(stretch.bases) // width_bases
    assert num > 0
    is_start = np.zeros(len(stretch.bases), dtype=np.bool_)
    is_start[stretch.starts] = True

    def means(values: NDArray[np.generic]) -> NDArray[np.float64]:
        return values[: num * width_bases].reshape(num, width_bases).mean(axis=1, dtype=np.float64)

    codes = BASE_CODE[stretch.bases]
    known = means(codes != OTHER_CODE)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Windows(
            width_bases=width_bases,
            middles=stretch.first + width_bases * np.arange(num, dtype=np.float64) + (width_bases - 1) / 2,
            bases_per_cut=1 / means(is_start),
            nats=means(stretch.entropies),
            known=known,
            gc=np.where(known > 0, means((codes == 1) | (codes == 2)) / known, np.nan),
            soft_masked=means((stretch.bases >= ord("a")) & (stretch.bases <= ord("z"))),
            repeats=means(repeats),
        )


def window_width(num_bases: int, num_windows: int = 300) -> int:
    """A round width, 1, 2 or 5 times a power of ten, that gives at most `num_windows` windows; 10 bases at least.

    A stretch of fewer bases is one window.
    """
    least = max(10.0, num_bases / num_windows)
    power = 10 ** int(np.floor(np.log10(least)))
    return min(num_bases, int(next(step * power for step in (1, 2, 5, 10) if step * power >= least)))
