"""Rules that cut a sequence into patches, in one pass, from what is known before each base.

Base i starts a patch if

1. a boundary is forced there (see `marks`), whatever the minimum length; or
2. the patch that would be continued already has `max_patch_bases` bases; or
3. it has at least `min_patch_bases` bases and the rule fires at i.

The rules, with `entropies[i]` the entropy in nats of base i given the bases before it:

- `static`: the patch has `patch_bases` bases. The grid starts anew at each forced boundary.
- `entropy`: `entropies[i] > threshold_nats`.
- `budget`: the entropies summed from the patch's first base up to and including base i exceed
  `budget_nats`: patches of equal information. The sum starts anew with `entropies[i]` if i starts a
  patch for any reason.

Entropies are float32, sums float64, in stream order: cutting a whole stream, cutting it in chunks and
asking base by base while generating give the same patches, bit for bit.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.marks import BYTE_CLASS, FORCED, IN_SEQUENCE, NEXT_STATE, PLACE, START

_STATIC, _ENTROPY, _BUDGET = 0, 1, 2
_PIECE_BASES = 1 << 18


class PatchRuleError(ValueError):
    """A rule that can't be applied to what was given."""


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
        """Whether the rule reads entropies."""
        return True

    @property
    @abstractmethod
    def limit_nats(self) -> float | None:
        """The one number that calibration sets; None: not calibrated yet, or nothing to calibrate."""

    def with_limit(self, limit_nats: float) -> Self:
        """The same rule with another limit; for rules that are calibrated."""
        raise PatchRuleError(f"rule {self.kind!r} has no limit in nats: only entropy and budget are calibrated")

    @property
    @abstractmethod
    def kernel_limit(self) -> tuple[int, float]:
        """Code of the rule in the kernel, and the number that it compares with.

        Raises:
            PatchRuleError: the rule has not been calibrated.
        """

    def _calibrated(self) -> float:
        if self.limit_nats is None:
            raise PatchRuleError(
                f"rule {self.kind!r} has no limit yet: set it, or calibrate the rule to a mean patch length"
            )
        return self.limit_nats


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

    @property
    def kernel_limit(self) -> tuple[int, float]:
        """See `PatchRuleConfig.kernel_limit`."""
        return _STATIC, float(self.patch_bases)


class EntropyRule(PatchRuleConfig):
    """A patch starts at each base that is hard to foresee.

    Source: Pagnoni et al. 2024 (Byte Latent Transformer), section 2.3, global constraint.
    """

    kind: Literal["entropy"] = "entropy"
    threshold_nats: float | None = Field(None, ge=0)
    """A base of higher entropy starts a patch; null: to be calibrated to a mean length."""

    @property
    def limit_nats(self) -> float | None:
        """The threshold."""
        return self.threshold_nats

    def with_limit(self, limit_nats: float) -> Self:
        """The same rule with another threshold."""
        return self.model_copy(update={"threshold_nats": float(limit_nats)})

    @property
    def kernel_limit(self) -> tuple[int, float]:
        """See `PatchRuleConfig.kernel_limit`."""
        return _ENTROPY, self._calibrated()


class BudgetRule(PatchRuleConfig):
    """Patches that hold equal information, as the entropy model sees it."""

    kind: Literal["budget"] = "budget"
    budget_nats: float | None = Field(None, ge=0)
    """Most nats in a patch; null: to be calibrated to a mean length."""

    @property
    def limit_nats(self) -> float | None:
        """The budget."""
        return self.budget_nats

    def with_limit(self, limit_nats: float) -> Self:
        """The same rule with another budget."""
        return self.model_copy(update={"budget_nats": float(limit_nats)})

    @property
    def kernel_limit(self) -> tuple[int, float]:
        """See `PatchRuleConfig.kernel_limit`."""
        return _BUDGET, self._calibrated()


PatchRule = Annotated[StaticRule | EntropyRule | BudgetRule, Field(discriminator="kind")]


@njit(cache=True, nogil=True, inline="always")
def _starts(
    mark: int, length: int, total: float, entropy: float, rule: int, limit: float, shortest: int, longest: int
) -> bool:
    """Whether a base of this entropy starts a patch after `length` bases with `total` nats."""
    if rule == _BUDGET:
        fires = total + entropy > limit
    elif rule == _ENTROPY:
        fires = entropy > limit
    else:
        fires = length >= limit
    return (mark & FORCED) != 0 or length >= longest or (fires and length >= shortest)


@njit(cache=True, nogil=True)
def _cut(
    bases: Bytes,
    entropies: NDArray[np.float32],
    rule: int,
    limit: float,
    shortest: int,
    longest: int,
    state: tuple[int, int, float],
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    lengths: NDArray[np.int32],
) -> tuple[int, tuple[int, int, float]]:
    """Writes the lengths of the patches that end in `bases`; returns their number and the state after."""
    mark, length, total = state
    num_patches = 0
    for i in range(len(bases)):
        entropy = 0.0 if rule == _STATIC else np.float64(entropies[i])
        if _starts(mark, length, total, entropy, rule, limit, shortest, longest):
            if length > 0:
                lengths[num_patches] = length
                num_patches += 1
            length, total = 0, 0.0
        length += 1
        total += entropy
        code = byte_class[bases[i]]
        # A base in the sequence changes nothing; not to look that up is faster.
        if mark != IN_SEQUENCE or code > 3:
            mark = next_state[mark & PLACE, code]
    return num_patches, (mark, length, total)


class PatchCutter:
    """Cuts one stream, in chunks or base by base; remembers the patch that is not finished yet.

    Args:
        rule: a calibrated rule.

    Raises:
        PatchRuleError: the rule has not been calibrated.
    """

    def __init__(self, rule: PatchRuleConfig) -> None:
        self._needs_entropies = rule.needs_entropies
        code, limit = rule.kernel_limit
        self._parameters = (code, limit, rule.min_patch_bases, rule.max_patch_bases)
        self._state: tuple[int, int, float] = (START, 0, 0.0)

    @property
    def num_unfinished_bases(self) -> int:
        """Bases of the patch that is not finished yet."""
        return self._state[1]

    def cut(self, bases: Bytes, entropies: NDArray[np.float32] | None) -> NDArray[np.int32]:
        """Reads the next bases of the stream.

        Args:
            bases: uint8 [L].
            entropies: float32 [L], nats; None for a rule that reads none.

        Returns:
            int32 [P]: lengths of the patches that were finished, the one begun in an earlier chunk included.

        Raises:
            PatchRuleError: the entropies are missing, not finite, or not as many as the bases.
        """
        entropies = self._checked(bases, entropies)
        # Pieces that stay in the cache, with one buffer for all, are faster than one pass over a long stream.
        buffer = np.empty(min(len(bases), _PIECE_BASES), dtype=np.int32)
        found = [buffer[:0]]
        for start in range(0, len(bases), _PIECE_BASES):
            piece = slice(start, start + _PIECE_BASES)
            num_patches, self._state = _cut(
                bases[piece], entropies[piece], *self._parameters, self._state, NEXT_STATE, BYTE_CLASS, buffer
            )
            found.append(buffer[:num_patches].copy())
        return np.concatenate(found)

    def finish(self) -> NDArray[np.int32]:
        """Ends the stream: the length of its last patch, int32 [1], or [0] for a stream without bases."""
        length = self._state[1]
        self._state = (START, 0, 0.0)
        return np.array([length] if length else [], dtype=np.int32)

    def next_starts_patch(self, entropy_nats: float) -> bool:
        """Whether the next base starts a patch, asked before it is known.

        Args:
            entropy_nats: its entropy given the bases so far.
        """
        return bool(_starts(*self._state, entropy_nats, *self._parameters))

    def push(self, base: int, entropy_nats: float) -> bool:
        """Reads one base.

        Args:
            base: its byte.
            entropy_nats: its entropy given the bases before it.

        Returns:
            Whether it started a patch.
        """
        mark, length, total = self._state
        starts = self.next_starts_patch(entropy_nats)
        if starts:
            length, total = 0, 0.0
        self._state = int(NEXT_STATE[mark & PLACE, BYTE_CLASS[base]]), length + 1, total + entropy_nats
        return starts

    def _checked(self, bases: Bytes, entropies: NDArray[np.float32] | None) -> NDArray[np.float32]:
        if not self._needs_entropies:
            return np.empty(0, dtype=np.float32)
        if entropies is None:
            raise PatchRuleError("this rule reads entropies, and none were given: name an entropy model, or use static")
        if entropies.shape != bases.shape:
            raise PatchRuleError(f"{len(bases)} bases, but entropies of shape {list(entropies.shape)}: give one a base")
        # One sum finds a NaN or an infinity anywhere at a fraction of the cost of a mask.
        if not np.isfinite(entropies.sum(dtype=np.float64)):
            first = int(np.flatnonzero(~np.isfinite(entropies))[0])
            raise PatchRuleError(f"entropies[{first}] is {entropies[first]}: entropies must be finite, in nats")
        return np.ascontiguousarray(entropies, dtype=np.float32)


def cut(bases: Bytes, entropies: NDArray[np.float32] | None, rule: PatchRuleConfig) -> NDArray[np.int32]:
    """Cuts a whole stream into patches.

    Args:
        bases: uint8 [L], either case.
        entropies: float32 [L], nats; None for a rule that reads none.
        rule: a calibrated rule.

    Returns:
        int32 [P], the lengths in order; they sum to L.

    Raises:
        PatchRuleError: the rule has not been calibrated, or the entropies don't fit the bases.
    """
    cutter = PatchCutter(rule)
    return np.concatenate([cutter.cut(bases, entropies), cutter.finish()])
