"""Which bases of a sequence count in figures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import BASE_CODE, END_OF_DOCUMENT, OTHER_CODE, Bytes
from hyena_blt_savanna.patching.marks import IN_TAG, PLACE, states_before


def without_end(document: Bytes) -> Bytes:
    """A document without its end-of-document byte, if it has one."""
    return document[:-1] if len(document) and document[-1] == END_OF_DOCUMENT else document


def scored_bases(document: Bytes) -> NDArray[np.bool_]:
    """Which bases count in reported figures: A, C, G and T of either case, outside tags.

    Args:
        document: uint8 [L], from its start.

    Returns:
        bool [L].
    """
    return (BASE_CODE[document] != OTHER_CODE) & (states_before(document) & PLACE != IN_TAG)
