"""The limit of a rule that cuts given sequence as wanted, and how far other sequence drifts from it.

A higher limit never gives more patches, so the mean length and the number of patches are found by bisection. The share
of bases in longer patches nearly follows, but not quite: a patch of 17 bases that is cut at a maximum of 16 leaves
one base alone, which two patches of 10 and 7 do not. There the range is searched in steps before it is halved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.cutting import checked_entropies, cut
from hyena_blt_savanna.patching.rules import PatchRuleConfig, PatchRuleError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Those of the entropies that are kept."""

_HALVINGS = 40
_STEPS = 32
_TOLERANCE = 0.02
_SHARE_TOLERANCE = 0.001


class CalibrationTarget(Config):
    """What patches should be like; exactly one of these is given."""

    mean_patch_bases: float | None = Field(None, gt=1, allow_inf_nan=False)
    """Mean length of a patch."""
    share_in_longer_patches: float | None = Field(None, gt=0, lt=1)
    """Share of the bases that lie in patches longer than one base."""
    num_patches: int | None = Field(None, ge=1)
    """Patches in all of the stream."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(type(self).model_fields)}, not {' and '.join(given) or 'none'}"
            )
        return self

    @property
    def name(self) -> str:
        """Which one is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """What is wanted of it."""
        return float(getattr(self, self.name))

    @property
    def tolerance(self) -> float:
        """How far from `value` a rule may be; 2 %, of the smaller part where a share is wanted."""
        if self.share_in_longer_patches is not None:
            return max(_SHARE_TOLERANCE, _TOLERANCE * min(self.value, 1 - self.value))
        return _TOLERANCE * self.value

    def reached(self, lengths: NDArray[np.int32], total_bases: int) -> float:
        """What patches reach of it.

        Args:
            lengths: int32 [P], lengths of the patches of a sample.
            total_bases: bases of the stream that the sample stands for.
        """
        if self.mean_patch_bases is not None:
            return _mean(lengths)
        if self.num_patches is not None:
            return total_bases / _mean(lengths)
        return _share_in_longer(lengths)


class EntropyStatistics(Config):
    """How entropies are distributed."""

    mean_nats: float
    quantiles_nats: tuple[float, float, float, float, float]
    """5, 25, 50, 75 and 95 %."""

    @classmethod
    def of(cls, entropies: NDArray[np.float32]) -> Self:
        """Those of float32 [L], nats."""
        quantiles = np.quantile(entropies, QUANTILES).tolist()
        return cls(mean_nats=float(entropies.mean(dtype=np.float64)), quantiles_nats=tuple(quantiles))


class CutStatistics(Config):
    """What a rule makes of some sequence."""

    num_bases: int
    """Bases that were cut."""
    mean_bases: float
    """Mean length of a patch."""
    share_in_longer_patches: float
    """Share of the bases that lie in patches longer than one base."""
    entropies: EntropyStatistics


class Calibration(CutStatistics):
    """What calibration found; kept in the manifest."""

    target: CalibrationTarget
    reached: float
    """Of the target, on the entropies given."""
    limit_nats: float


class Drift(CutStatistics):
    """How other sequence is cut by a rule that was calibrated elsewhere."""

    mean_bases_ratio: float
    """Mean length here over the mean length where the rule was calibrated; 1 is no drift."""


def calibrate(
    rule: PatchRuleConfig,
    bases: Bytes,
    entropies: NDArray[np.float32],
    target: CalibrationTarget | float,
    total_bases: int | None = None,
) -> tuple[PatchRuleConfig, Calibration]:
    """Finds the limit with which a rule comes nearest to a target.

    Args:
        rule: its bounds hold; a limit that it has already is ignored.
        bases: uint8 [L].
        entropies: float32 [L], nats; out of fold for training data, or the limit suits the training data only.
        target: what is wanted; a number is a mean length of patches.
        total_bases: bases of the whole stream where `bases` is a sample of it; read for a number of patches.

    Returns:
        The rule with its limit, and what was reached.

    Raises:
        PatchRuleError: the rule has no limit, there are no bases or fewer in all than these, the entropies don't fit
            them, or no limit comes within 2 % of what is wanted.
        ConfigError: the target is a number that is no mean length.
    """
    if not isinstance(target, CalibrationTarget):
        target = CalibrationTarget.parse({"mean_patch_bases": target}, "calibration target")
    _check_some(bases)
    total_bases = len(bases) if total_bases is None else total_bases
    if total_bases < len(bases):
        raise PatchRuleError(f"total_bases {total_bases}, but {len(bases)} bases are given: count the whole stream")

    @cache
    def reached(limit_nats: float) -> float:
        return target.reached(cut(bases, entropies, rule.with_limit(limit_nats)), total_bases)

    entropies = checked_entropies(bases, entropies)
    num_steps = 1 if target.share_in_longer_patches is None else _STEPS
    limits = np.linspace(*rule.limit_range(entropies), num_steps + 1).tolist()
    found = [*limits]
    for low, high in itertools.pairwise(limits):
        if (reached(low) < target.value) != (reached(high) < target.value):
            found += _halve(reached, low, high, target.value)
    limit = min(found, key=lambda limit: abs(reached(limit) - target.value))
    if abs(reached(limit) - target.value) > target.tolerance:
        raise PatchRuleError(_out_of_reach(rule, target, reached(limit), [reached(limit) for limit in found]))
    calibrated = rule.with_limit(limit)
    statistics = _statistics(bases, entropies, calibrated)
    return calibrated, Calibration(**dict(statistics), target=target, reached=reached(limit), limit_nats=limit)


def drift(calibration: Calibration, bases: Bytes, entropies: NDArray[np.float32], rule: PatchRuleConfig) -> Drift:
    """Cuts other sequence by a calibrated rule, to see how far it drifts.

    Args:
        calibration: what was found where the rule was calibrated.
        bases: uint8 [L].
        entropies: float32 [L], nats, of the same entropy model.
        rule: the calibrated rule.

    Raises:
        PatchRuleError: there are no bases, the entropies don't fit them, or the rule has not been calibrated.
    """
    _check_some(bases)
    found = _statistics(bases, entropies, rule)
    return Drift(**dict(found), mean_bases_ratio=found.mean_bases / calibration.mean_bases)


def _halve(reached: Callable[[float], float], low: float, high: float, wanted: float) -> tuple[float, float]:
    """The neighbouring limits between which what is reached passes what is wanted."""
    starts_below = reached(low) < wanted
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if (reached(middle) < wanted) == starts_below else (low, middle)
    return low, high


def _statistics(bases: Bytes, entropies: NDArray[np.float32], rule: PatchRuleConfig) -> CutStatistics:
    lengths = cut(bases, entropies, rule)
    return CutStatistics(
        num_bases=len(bases),
        mean_bases=_mean(lengths),
        share_in_longer_patches=_share_in_longer(lengths),
        entropies=EntropyStatistics.of(entropies),
    )


def _mean(lengths: NDArray[np.int32]) -> float:
    return int(lengths.sum(dtype=np.int64)) / len(lengths)


def _share_in_longer(lengths: NDArray[np.int32]) -> float:
    return 1 - np.count_nonzero(lengths == 1) / int(lengths.sum(dtype=np.int64))


def _check_some(bases: Bytes) -> None:
    if not len(bases):
        raise PatchRuleError("no bases to cut: give some sequence")


_IN_WORDS = {
    "mean_patch_bases": ("a mean patch of {:g} bases", "{:.2f}"),
    "share_in_longer_patches": ("a share of {:g} of the bases in patches longer than one", "{:.4f}"),
    "num_patches": ("{:.0f} patches", "{:.0f}"),
}


def _out_of_reach(rule: PatchRuleConfig, target: CalibrationTarget, nearest: float, reached: list[float]) -> str:
    wanted, number = _IN_WORDS[target.name]
    settings = {"min_patch_bases": rule.min_patch_bases, "max_patch_bases": rule.max_patch_bases}
    if rule.kind == "jump":
        settings["rise_nats"] = rule.to_dict()["rise_nats"]
    return (
        f"rule {rule.kind!r} can't give {wanted.format(target.value)} here: the nearest is {number.format(nearest)}, "
        f"the range {number.format(min(reached))} to {number.format(max(reached))}; change {target.name}, or "
        + ", ".join(f"{name} ({value})" for name, value in settings.items())
    )
