"""Cutting a stream into patches by a rule, in one pass.

Entropies are float32, their rises float32, their sums float64, in stream order: cutting a whole stream, cutting it
in chunks and asking base by base while generating give the same patches, bit for bit.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.marks import BYTE_CLASS, FORCED, IN_SEQUENCE, NEXT_STATE, PLACE, START
from hyena_blt_savanna.patching.rules import PatchRuleConfig, PatchRuleError

_PIECE_BASES = 1 << 18

_State = tuple[int, int, float, float]
"""What the stream so far leaves behind: the mark state, then the bases and the nats of the patch that is not
finished yet, and the entropy of the last base."""


def _first_state(mark: int) -> _State:
    return mark | FORCED, 0, 0.0, 0.0


# One conjunction serves every rule: a limit that a rule lacks is minus infinity. Without short-circuits there is one
# branch, and it is faster than a branch for each kind of rule.
@njit(cache=True, nogil=True, inline="always")
def _starts(
    mark: int,
    length: int,
    total: float,
    previous: float,
    entropy: float,
    length_bases: int,
    entropy_nats: float,
    rise_nats: float,
    sum_nats: float,
    longest: int,
) -> bool:
    """Whether a base of this entropy starts a patch after `length` bases with `total` nats."""
    rise = np.float32(entropy) - np.float32(previous)
    fires = (entropy > entropy_nats) & (rise > rise_nats) & (total + entropy > sum_nats)
    return bool((mark & FORCED) != 0 or length >= longest or (fires and length >= length_bases))


@njit(cache=True, nogil=True)
def _cut(
    bases: Bytes,
    entropies: NDArray[np.float32],
    reads_entropies: bool,
    limits: tuple[int, float, float, float, int],
    state: _State,
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    lengths: NDArray[np.int32],
) -> tuple[int, _State]:
    """Writes the lengths of the patches that end in `bases`; returns their number and the state after."""
    length_bases, entropy_nats, rise_nats, sum_nats, longest = limits
    mark, length, total, previous = state
    num_patches = 0
    for i in range(len(bases)):
        entropy = np.float64(entropies[i]) if reads_entropies else 0.0
        if _starts(mark, length, total, previous, entropy, length_bases, entropy_nats, rise_nats, sum_nats, longest):
            if length > 0:
                lengths[num_patches] = length
                num_patches += 1
            length, total = 0, 0.0
        length += 1
        total += entropy
        previous = entropy
        code = byte_class[bases[i]]
        # A base in the sequence changes nothing; not to look that up is faster.
        if mark != IN_SEQUENCE or code > 3:
            mark = next_state[mark & PLACE, code]
    return num_patches, (mark, length, total, previous)


class PatchCutter:
    """Cuts one stream, in chunks or base by base; remembers the patch that is not finished yet.

    Args:
        rule: a calibrated rule.
        state: what the marks before the first base leave behind (see `marks`); by default it begins a stream. The
            first base starts a patch in any case.

    Raises:
        PatchRuleError: the rule has not been calibrated.
    """

    def __init__(self, rule: PatchRuleConfig, state: int = START) -> None:
        self._needs_entropies = rule.needs_entropies
        self._limits = (*rule.kernel_limits, rule.max_patch_bases)
        self._state = _first_state(state)

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
        entropies = checked_entropies(bases, entropies) if self._needs_entropies else np.empty(0, dtype=np.float32)
        # Pieces that stay in the cache, with one buffer for all, are faster than one pass over a long stream.
        buffer = np.empty(min(len(bases), _PIECE_BASES), dtype=np.int32)
        found = [buffer[:0]]
        for start in range(0, len(bases), _PIECE_BASES):
            piece = slice(start, start + _PIECE_BASES)
            num_patches, self._state = _cut(
                bases[piece],
                entropies[piece],
                self._needs_entropies,
                self._limits,
                self._state,
                NEXT_STATE,
                BYTE_CLASS,
                buffer,
            )
            found.append(buffer[:num_patches].copy())
        return np.concatenate(found)

    def finish(self) -> NDArray[np.int32]:
        """Ends the stream: the length of its last patch, int32 [1], or [0] for a stream without bases.

        What is read next begins another stream.
        """
        length = self.num_unfinished_bases
        self._state = _first_state(START)
        return np.array([length] if length else [], dtype=np.int32)

    def next_starts_patch(self, entropy_nats: float) -> bool:
        """Whether the next base starts a patch, asked before it is known.

        Args:
            entropy_nats: its entropy given the bases so far.
        """
        return bool(_starts(*self._state, float(entropy_nats), *self._limits))

    def push(self, base: int, entropy_nats: float) -> bool:
        """Reads one base.

        Args:
            base: its byte.
            entropy_nats: its entropy given the bases before it.

        Returns:
            Whether it started a patch.
        """
        mark, length, total, _ = self._state
        entropy = float(entropy_nats)
        starts = self.next_starts_patch(entropy)
        if starts:
            length, total = 0, 0.0
        self._state = int(NEXT_STATE[mark & PLACE, BYTE_CLASS[base]]), length + 1, total + entropy, entropy
        return starts


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


def checked_entropies(bases: Bytes, entropies: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Entropies, contiguous float32 [L], that fit the bases, uint8 [L].

    Raises:
        PatchRuleError: they are missing, not finite, or not as many as the bases.
    """
    if entropies is None:
        raise PatchRuleError(
            "this rule reads entropies, and none were given: name an entropy model, or use static or byte"
        )
    if entropies.shape != bases.shape:
        raise PatchRuleError(f"{len(bases)} bases, but entropies of shape {list(entropies.shape)}: give one a base")
    # One sum finds a NaN or an infinity anywhere at a fraction of the cost of a mask.
    if not np.isfinite(entropies.sum(dtype=np.float64)):
        first = int(np.flatnonzero(~np.isfinite(entropies))[0])
        raise PatchRuleError(f"entropies[{first}] is {entropies[first]}: entropies must be finite, in nats")
    return np.ascontiguousarray(entropies, dtype=np.float32)
