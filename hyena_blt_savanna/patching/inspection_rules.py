"""One stretch cut by several rules, and how far they agree."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.calibration import calibrate
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.inspection_stretch import InspectionError, Stretch
from hyena_blt_savanna.patching.marks import forced_starts
from hyena_blt_savanna.patching.rules import ByteRule, PatchRule, PatchRuleConfig, PatchRuleError, StaticRule

logger = logging.getLogger(__name__)

RULE_CLASSES: dict[str, type[PatchRuleConfig]] = {
    cls.model_fields["kind"].default: cls for cls in get_args(get_args(PatchRule)[0])
}
"""Every rule there is, by kind."""


@dataclass(frozen=True)
class Cutting:
    """How one rule cuts a stretch.

    Attributes:
        rule: calibrated.
        starts: int64 [P], where its patches start.
        lengths: int32 [P], bases.
    """

    rule: PatchRuleConfig
    starts: NDArray[np.int64]
    lengths: NDArray[np.int32]

    @classmethod
    def of(cls, rule: PatchRuleConfig, bases: Bytes, entropies: NDArray[np.float32]) -> Cutting:
        """Cuts bases, uint8 [L], with entropies, float32 [L]."""
        lengths = cut(bases, entropies, rule)
        return cls(rule, np.cumsum(lengths, dtype=np.int64) - lengths, lengths)


def cut_by_rules(stretch: Stretch, kinds: Sequence[str], mean_bases: float) -> dict[str, Cutting]:
    """Cuts a stretch by several rules, each calibrated on this very stretch to one mean length.

    The bounds of a patch's length are those of the rule that cut the stretch. A rule that can't reach the mean is
    left out with a warning, and so is `byte` unless the mean is near 1.

    Args:
        stretch: what is cut.
        kinds: of rules; in this order.
        mean_bases: wanted mean length.

    Raises:
        InspectionError: there is no such rule.
    """
    unknown = [kind for kind in kinds if kind not in RULE_CLASSES]
    if unknown:
        raise InspectionError(f"no rule is named {', '.join(map(repr, unknown))}; known: {', '.join(RULE_CLASSES)}")
    bounds = {"min_patch_bases": stretch.rule.min_patch_bases, "max_patch_bases": stretch.rule.max_patch_bases}
    found = {}
    for kind in dict.fromkeys(kinds):
        cls = RULE_CLASSES[kind]
        if issubclass(cls, ByteRule) and round(mean_bases) != 1:
            continue
        try:
            if issubclass(cls, StaticRule):
                rule: PatchRuleConfig = cls.parse(bounds | {"patch_bases": round(mean_bases)})
            elif issubclass(cls, ByteRule):
                rule = cls.parse(bounds)
            else:
                rule, _ = calibrate(cls.parse(bounds), stretch.bases, stretch.entropies, mean_bases)
        except (PatchRuleError, ConfigError) as error:
            logger.warning("left out: %s", error)
            continue
        found[kind] = Cutting.of(rule, stretch.bases, stretch.entropies)
    return found


@dataclass(frozen=True)
class Agreement:
    """How far two cuttings cut at the same places, forced cuts left out.

    Attributes:
        share: cuts in common over the mean number of cuts.
        by_chance: what two random cuttings with as many cuts would share.
    """

    share: float
    by_chance: float


def agreements(bases: Bytes, cuttings: dict[str, Cutting]) -> dict[tuple[str, str], Agreement]:
    """Agreement of each pair of cuttings, by their names, in order.

    Args:
        bases: uint8 [L], what was cut.
        cuttings: at least two for any pair.
    """
    free = ~forced_starts(bases)
    num_places = max(1, int(free.sum()))
    cuts = {}
    for name, cutting in cuttings.items():
        cuts[name] = np.zeros(len(bases), dtype=np.bool_)
        cuts[name][cutting.starts] = True
        cuts[name] &= free
    found = {}
    for a, b in itertools.combinations(cuts, 2):
        num_a, num_b = int(cuts[a].sum()), int(cuts[b].sum())
        mean = max(1.0, (num_a + num_b) / 2)
        found[a, b] = Agreement(int((cuts[a] & cuts[b]).sum()) / mean, num_a * num_b / num_places / mean)
    return found
