"""Windows cut anew in the loader: other patch lengths than the stored ones, by a schedule and by chance.

A model that has seen one patch length only is lost at another. Here the limit of the rule is a multiple of the
calibrated one that may rise over training and differ from window to window, and a share of windows is cut blindly.

The cuts are made from stored entropies, not from stored lengths: 16 bits a base give every rule at every limit
what the patcher would cut from the window's first base on, where lengths could only be joined to multiples of the
shortest; and reading them costs less than an entropy model, which on a CPU would be slower than training. Blind cuts
need neither.

A window's cuts are a pure function of its bases, its entropies and its key, and a patch still starts where the bases
before it say so.
"""

from __future__ import annotations

import itertools
import math
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.nucleotides import TAG_MARK, Bytes
from hyena_blt_savanna.patching.cutting import PatchCutter
from hyena_blt_savanna.patching.marks import FORCED, IN_TAG, START, forced_starts
from hyena_blt_savanna.patching.rules import PatchRuleConfig


class CutsConfig(Config):
    """How training windows are cut anew."""

    first_factor: float = Field(1.0, gt=0)
    """The rule's limit at the start of training, as a multiple of the calibrated one."""
    last_factor: float = Field(1.0, gt=0)
    """The same from `settled_at` on; in between it changes linearly."""
    settled_at: float = Field(0.5, gt=0, le=1)
    """Share of the training after which the limit stays."""
    spread: float = Field(1.0, ge=1)
    """Each window's limit is multiplied by a number between 1 / spread and spread, uniform in its logarithm."""
    static_share: float = Field(0.0, ge=0, le=1)
    """Share of windows that are cut into patches of one length, each window into its own."""
    random_share: float = Field(0.0, ge=0, le=1)
    """Share of windows that are cut into patches of random length."""
    blind_patch_bases: tuple[int, int] = (4, 12)
    """Shortest and longest length that those are drawn from; each is as likely."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.static_share + self.random_share > 1:
            raise ValueError(
                f"static_share {self.static_share} and random_share {self.random_share} are more than all windows: "
                "lower one of them"
            )
        shortest, longest = self.blind_patch_bases
        if not 1 <= shortest <= longest:
            raise ValueError(f"blind_patch_bases [{shortest}, {longest}]: give the shorter one first, at least 1")
        return self

    @property
    def blind_share(self) -> float:
        """Share of windows that are cut without a look at their bases."""
        return self.static_share + self.random_share

    def factor(self, progress: float) -> float:
        """Multiple of the calibrated limit, after a share of the training from 0 to 1."""
        return self.first_factor + (self.last_factor - self.first_factor) * min(1.0, progress / self.settled_at)


class AugmentedCutter:
    """Cuts windows as `CutsConfig` says; see `data.windows.WindowCutter`.

    Args:
        config: schedule and chance.
        rule: calibrated, as stored with the boundaries.
    """

    def __init__(self, config: CutsConfig, rule: PatchRuleConfig) -> None:
        self.config, self.rule = config, rule

    @property
    def needs_entropies(self) -> bool:
        """Whether any window is cut by a rule that reads entropies."""
        return self.rule.needs_entropies and self.config.blind_share < 1

    @property
    def longest_patch_bases(self) -> int:
        """No patch is longer."""
        longest_blind = self.config.blind_patch_bases[1] if self.config.blind_share > 0 else 0
        return max(self.rule.max_patch_bases, longest_blind)

    def cut(
        self,
        bases: Bytes,
        entropies: NDArray[np.float32] | None,
        num_leading_tag_bytes: int,
        key: bytes,
        progress: float,
    ) -> NDArray[np.int32]:
        """See `data.windows.WindowCutter.cut`."""
        generator = np.random.default_rng(np.frombuffer(key, dtype=np.uint64))
        kind, exponent = generator.random(), generator.uniform(-1, 1)
        state = _state_before(bases, num_leading_tag_bytes)
        if kind < self.config.blind_share:
            shortest, longest = self.config.blind_patch_bases
            size = 1 if kind < self.config.static_share else len(bases) // shortest + 1
            return _cut_blindly(generator.integers(shortest, longest + 1, size), forced_starts(bases, state))
        factor = self.config.factor(progress) * math.exp(exponent * math.log(self.config.spread))
        cutter = PatchCutter(self.rule.scaled(factor), state)
        return np.concatenate([cutter.cut(bases, entropies), cutter.finish()])


def _state_before(bases: Bytes, num_leading_tag_bytes: int) -> int:
    """The state before the first of the bases (see `marks`): inside a tag, unless its opening mark is the first."""
    opens = num_leading_tag_bytes > 1 and bases[0] == TAG_MARK
    return IN_TAG | FORCED if num_leading_tag_bytes and not opens else START


def _cut_blindly(lengths: NDArray[np.int64], forced: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Patches of the lengths given, again from the first after the last; a forced boundary ends a patch early."""
    borders = np.flatnonzero(forced)
    cuts = [np.array([len(forced)])]
    taken = 0
    for start, stop in itertools.pairwise([*borders.tolist(), len(forced)]):
        num = (stop - start) // int(lengths.min()) + 1
        ends = start + np.cumsum(lengths.take(np.arange(taken, taken + num), mode="wrap"))
        cuts.append(np.concatenate([[start], ends[ends < stop]]))
        taken += len(cuts[-1])
    return np.diff(np.sort(np.concatenate(cuts))).astype(np.int32)
