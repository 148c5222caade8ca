"""Rules that say where a patch starts, from what is known before each base.

Base i starts a patch if

1. a boundary is forced there (see `marks`), whatever the minimum length; or
2. the patch that would be continued already has `max_patch_bases` bases; or
3. it has at least `min_patch_bases` bases and the rule fires at i.

The rules, with `entropies[i]` the entropy in nats of base i given the bases before it:

- `static`: the patch has `patch_bases` bases. The grid starts anew at each forced boundary.
- `byte`: at every base.
- `entropy`: `entropies[i] > threshold_nats`.
- `monotonic`: `entropies[i] - entropies[i - 1] > rise_nats`, the difference taken in float32. The first base of
  a stream, which has none before it, starts a patch anyway.
- `jump`: both: `entropies[i] - entropies[i - 1] > rise_nats` and `entropies[i] > threshold_nats`.
- `budget`: the entropies summed from the patch's first base up to and including base i exceed
  `budget_nats`: patches of equal information. The sum starts anew with `entropies[i]` if i starts a
  patch for any reason.

`PatchCutter` in `cutting` applies them. A higher limit in nats never gives more patches, as long as no entropy is
negative: calibration (see `calibration`) relies on it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config


class PatchRuleError(ValueError):
    """A rule that can't be applied to what was given."""


class KernelLimits(NamedTuple):
    """A rule as the kernel sees it: it fires where the length is reached and all three numbers are exceeded.

    A number that a rule doesn't look at is minus infinity.
    """

    length_bases: int
    entropy_nats: float = -math.inf
    rise_nats: float = -math.inf
    sum_nats: float = -math.inf


class PatchRuleConfig(Config):
    """What all rules share: the bounds of a patch's length."""

    kind: str
    """Name of the rule."""
    min_patch_bases: int = Field(1, ge=1)
    """No patch is shorter, but before a forced boundary and at the end of the stream."""
    max_patch_bases: int = Field(16, ge=1)
    """No patch is longer."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.min_patch_bases > self.max_patch_bases:
            raise ValueError(
                f"min_patch_bases {self.min_patch_bases} is above max_patch_bases {self.max_patch_bases}; "
                "lower the first or raise the second"
            )
        return self

    @property
    def needs_entropies(self) -> bool:
        """Whether the rule reads entropies, and so has a limit that can be calibrated."""
        return True

    @property
    @abstractmethod
    def limit_nats(self) -> float | None:
        """The one number that calibration sets; None: not calibrated yet, or nothing to calibrate."""

    def with_limit(self, limit_nats: float) -> Self:
        """The same rule with another limit; for rules that are calibrated.

        Raises:
            PatchRuleError: the rule has no limit.
        """
        raise self._has_no_limit()

    def limit_range(self, entropies: NDArray[np.float32]) -> tuple[float, float]:
        """The lowest and the highest limit that calibration has to try.

        Args:
            entropies: float32 [L], nats, at least one.

        Returns:
            A limit at which the rule fires wherever it can, and one at which it never fires.

        Raises:
            PatchRuleError: the rule has no limit.
        """
        raise self._has_no_limit()

    def scaled(self, factor: float) -> Self:
        """The same rule with its limit times a factor, for patches that become longer during training.

        A factor above 1 gives longer patches, unless the limit is negative, as `rise_nats` may be.

        Raises:
            PatchRuleError: the factor is not above 0, or the rule has not been calibrated.
        """
        _check_factor(factor)
        return self.with_limit(self._calibrated() * factor)

    @property
    @abstractmethod
    def kernel_limits(self) -> KernelLimits:
        """What the kernel compares with.

        Raises:
            PatchRuleError: the rule has not been calibrated.
        """

    def _calibrated(self) -> float:
        if self.limit_nats is None:
            raise PatchRuleError(f"rule {self.kind!r} has no limit yet: set it, or calibrate the rule")
        return self.limit_nats

    def _has_no_limit(self) -> PatchRuleError:
        return PatchRuleError(
            f"rule {self.kind!r} has no limit in nats: entropy, monotonic, jump and budget are calibrated"
        )


class StaticRule(PatchRuleConfig):
    """Patches of one length."""

    kind: Literal["static"] = "static"
    patch_bases: int = Field(8, ge=1)
    """Length of each patch."""

    @model_validator(mode="after")
    def _check_length(self) -> Self:
        if not self.min_patch_bases <= self.patch_bases <= self.max_patch_bases:
            raise ValueError(
                f"patch_bases {self.patch_bases} is outside [min_patch_bases, max_patch_bases] = "
                f"[{self.min_patch_bases}, {self.max_patch_bases}]"
            )
        return self

    @property
    def needs_entropies(self) -> bool:
        """False: the grid depends on marks only."""
        return False

    @property
    def limit_nats(self) -> float | None:
        """None: nothing to calibrate."""
        return None

    def scaled(self, factor: float) -> Self:
        """The same rule with its length times a factor, rounded, within the bounds.

        Raises:
            PatchRuleError: the factor is not above 0.
        """
        _check_factor(factor)
        length = min(max(round(self.patch_bases * factor), self.min_patch_bases), self.max_patch_bases)
        return self.model_copy(update={"patch_bases": length})

    @property
    def kernel_limits(self) -> KernelLimits:
        """See `PatchRuleConfig.kernel_limits`."""
        return KernelLimits(self.patch_bases)


class ByteRule(PatchRuleConfig):
    """Each base is a patch: as short as the minimum length allows."""

    kind: Literal["byte"] = "byte"

    @property
    def needs_entropies(self) -> bool:
        """False: every base starts a patch."""
        return False

    @property
    def limit_nats(self) -> float | None:
        """None: nothing to calibrate."""
        return None

    def scaled(self, factor: float) -> Self:
        """The same rule: it has nothing to scale.

        Raises:
            PatchRuleError: the factor is not above 0.
        """
        _check_factor(factor)
        return self

    @property
    def kernel_limits(self) -> KernelLimits:
        """See `PatchRuleConfig.kernel_limits`."""
        return KernelLimits(self.min_patch_bases)


class EntropyRule(PatchRuleConfig):
    """A patch starts at each base that is hard to foresee.

    Source: Pagnoni et al. 2024 (Byte Latent Transformer), section 2.3, global constraint.
    """

    kind: Literal["entropy"] = "entropy"
    threshold_nats: float | None = Field(None, ge=0, allow_inf_nan=False)
    """A base of higher entropy starts a patch; null: to be calibrated."""

    @property
    def limit_nats(self) -> float | None:
        """The threshold."""
        return self.threshold_nats

    def with_limit(self, limit_nats: float) -> Self:
        """The same rule with another threshold."""
        return self.model_copy(update={"threshold_nats": float(limit_nats)})

    def limit_range(self, entropies: NDArray[np.float32]) -> tuple[float, float]:
        """From 0 to the highest entropy."""
        return 0.0, max(0.0, float(entropies.max()))

    @property
    def kernel_limits(self) -> KernelLimits:
        """See `PatchRuleConfig.kernel_limits`."""
        return KernelLimits(self.min_patch_bases, entropy_nats=self._calibrated())


class MonotonicRule(PatchRuleConfig):
    """A patch starts at each base that is clearly harder to foresee than the one before it.

    Source: Pagnoni et al. 2024 (Byte Latent Transformer), section 2.3, approximate monotonic constraint.
    """

    kind: Literal["monotonic"] = "monotonic"
    rise_nats: float | None = Field(None, allow_inf_nan=False)
    """A higher rise of the entropy over the base before starts a patch; may be negative; null: to be calibrated."""

    @property
    def limit_nats(self) -> float | None:
        """The rise."""
        return self.rise_nats

    def with_limit(self, limit_nats: float) -> Self:
        """The same rule with another rise."""
        return self.model_copy(update={"rise_nats": float(limit_nats)})

    def limit_range(self, entropies: NDArray[np.float32]) -> tuple[float, float]:
        """From just below the lowest rise to the highest."""
        rises = np.diff(entropies) if len(entropies) > 1 else np.zeros(1, dtype=np.float32)
        return float(np.nextafter(rises.min(), np.float32(-np.inf))), float(rises.max())

    @property
    def kernel_limits(self) -> KernelLimits:
        """See `PatchRuleConfig.kernel_limits`."""
        return KernelLimits(self.min_patch_bases, rise_nats=self._calibrated())


class JumpRule(PatchRuleConfig):
    """A patch starts at each base that is hard to foresee, and harder than the one before it.

    Of a stretch that is hard to foresee only the beginning starts a patch, not each of its bases.
    """

    kind: Literal["jump"] = "jump"
    threshold_nats: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Only a base of higher entropy starts a patch; null: to be calibrated."""
    rise_nats: float = Field(0.02, allow_inf_nan=False)
    """Only a higher rise of the entropy over the base before starts a patch. On E. coli with an order-8 model, the
    default leaves means from 3 bases on within reach, 0.05 those from 6 on; calibrated to 8 bases, the default and the
    threshold both count."""

    @property
    def limit_nats(self) -> float | None:
        """The threshold; the rise is a setting."""
        return self.threshold_nats

    def with_limit(self, limit_nats: float) -> Self:
        """The same rule with another threshold."""
        return self.model_copy(update={"threshold_nats": float(limit_nats)})

    def limit_range(self, entropies: NDArray[np.float32]) -> tuple[float, float]:
        """From 0 to the highest entropy."""
        return 0.0, max(0.0, float(entropies.max()))

    @property
    def kernel_limits(self) -> KernelLimits:
        """See `PatchRuleConfig.kernel_limits`."""
        return KernelLimits(self.min_patch_bases, entropy_nats=self._calibrated(), rise_nats=self.rise_nats)


class BudgetRule(PatchRuleConfig):
    """Patches that hold equal information, as the entropy model sees it."""

    kind: Literal["budget"] = "budget"
    budget_nats: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Most nats in a patch; null: to be calibrated."""

    @property
    def limit_nats(self) -> float | None:
        """The budget."""
        return self.budget_nats

    def with_limit(self, limit_nats: float) -> Self:
        """The same rule with another budget."""
        return self.model_copy(update={"budget_nats": float(limit_nats)})

    def limit_range(self, entropies: NDArray[np.float32]) -> tuple[float, float]:
        """From 0 to the most that a patch of the maximum length can hold."""
        return 0.0, max(0.0, self.max_patch_bases * float(entropies.max()))

    @property
    def kernel_limits(self) -> KernelLimits:
        """See `PatchRuleConfig.kernel_limits`."""
        return KernelLimits(self.min_patch_bases, sum_nats=self._calibrated())


PatchRule = Annotated[
    StaticRule | ByteRule | EntropyRule | MonotonicRule | JumpRule | BudgetRule, Field(discriminator="kind")
]


def _check_factor(factor: float) -> None:
    if not 0 < factor < math.inf:
        raise PatchRuleError(f"a rule can't be scaled by {factor}: the factor is a number above 0")
