"""What the marks of a stream do to the base after them: a state machine over bytes.

The state after a byte says whether the next base must start a patch, whether it lies inside a tag,
and whether it follows a letter that is no base. It depends on bytes read so far only, so a stream
can be read in chunks, or byte by byte while generating, with the same result.

| read            | in the sequence            | inside a tag                  | in a run of unknown letters |
|-----------------|----------------------------|-------------------------------|-----------------------------|
| A, C, G, T      | sequence                   | inside the tag                | sequence                    |
| unknown letter  | run, next starts a patch   | inside the tag                | run                         |
| end of document | sequence, next starts      | sequence, next starts a patch | sequence, next starts       |
| `|`             | inside a tag               | sequence, next starts a patch | inside a tag                |
| `@`, `#`        | sequence, next starts      | inside the tag                | sequence, next starts       |

A run's first letter is followed by a boundary, the letters after it are not; every byte that is
neither a base nor a mark counts as an unknown letter. An end-of-document byte closes a tag that was
left open.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import BASE_CODE, BASES, END_OF_DOCUMENT, JOIN_MARKS, OTHER_CODE, TAG_MARK, Bytes

IN_SEQUENCE, IN_TAG, IN_UNKNOWN_RUN = 0, 1, 2
PLACE = 3
"""Mask of a state: the place of the next base, one of the three above."""
FORCED = 4
"""Bit of a state: the next base starts a patch."""

START = IN_SEQUENCE | FORCED
"""State before the first byte of a stream."""

_UNKNOWN, _END, _TAG, _JOIN = OTHER_CODE, 5, 6, 7


def _byte_classes() -> NDArray[np.int64]:
    classes = BASE_CODE.astype(np.int64)
    classes[END_OF_DOCUMENT], classes[TAG_MARK], classes[list(JOIN_MARKS)] = _END, _TAG, _JOIN
    classes.flags.writeable = False
    return classes


def _next_states() -> NDArray[np.int64]:
    table = np.full((3, 8), IN_SEQUENCE, dtype=np.int64)
    table[:, _UNKNOWN] = IN_UNKNOWN_RUN | FORCED, IN_TAG, IN_UNKNOWN_RUN
    table[:, _TAG] = IN_TAG, IN_SEQUENCE | FORCED, IN_TAG
    table[:, [_END, _JOIN]] = IN_SEQUENCE | FORCED
    table[IN_TAG, [0, 1, 2, 3, _JOIN]] = IN_TAG
    table.flags.writeable = False
    return table


BYTE_CLASS: NDArray[np.int64] = _byte_classes()
"""0, 1, 2, 3 for A, C, G, T of either case; 4 unknown letter, 5 end of document, 6 tag mark, 7 join mark."""

NEXT_STATE: NDArray[np.int64] = _next_states()
"""[place, class of the byte] -> state after the byte."""


def state_after(bases: Bytes, state: int = START) -> int:
    """The state after reading `bases`, uint8 [L], from `state`."""
    return int(_read(bases, state, NEXT_STATE, BYTE_CLASS, np.empty(len(bases), dtype=np.uint8)))


def place_after(prefix: Iterable[Bytes]) -> int:
    """The place after the beginning of one document, found by counting tag marks, which is fast.

    Args:
        prefix: uint8 [L], in any number of chunks; without an end-of-document byte.
    """
    num_tag_marks, last = 0, BASES[0]
    for chunk in prefix:
        if len(chunk):
            num_tag_marks += int(np.count_nonzero(chunk == TAG_MARK))
            last = int(chunk[-1])
    if num_tag_marks % 2:
        return IN_TAG
    return IN_UNKNOWN_RUN if BYTE_CLASS[last] == _UNKNOWN else IN_SEQUENCE


def states_before(bases: Bytes, state: int = START) -> NDArray[np.uint8]:
    """The state before each byte of `bases`, uint8 [L], read from `state`."""
    states = np.empty(len(bases), dtype=np.uint8)
    _read(bases, state, NEXT_STATE, BYTE_CLASS, states)
    return states


def forced_starts(bases: Bytes, state: int = START) -> NDArray[np.bool_]:
    """Where a patch must start whatever the rule says: after a mark, never before it.

    Args:
        bases: uint8 [L], either case.
        state: the state before `bases[0]`; by default `bases[0]` is the first byte of a stream.

    Returns:
        bool [L]: True where base i must start a patch; known from the bases before i.
    """
    return np.asarray(states_before(bases, state) & FORCED, dtype=np.bool_)


# The tables are arguments of every kernel: a compiled kernel is cached with the values of its globals, and the
# cache notices a change of the kernel's own file only.
@njit(cache=True, nogil=True)
def _read(
    bases: Bytes,
    state: int,
    next_state: NDArray[np.int64],
    byte_class: NDArray[np.int64],
    states: NDArray[np.uint8],
) -> int:
    for i in range(len(bases)):
        states[i] = state
        state = next_state[state & PLACE, byte_class[bases[i]]]
    return state
