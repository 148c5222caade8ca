"""The columns of logits over the bytes that are ever scored."""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_blt_savanna.nucleotides import NUM_SCORED, SCORED, VOCABULARY_SIZE


def class_of_byte() -> Tensor:
    """int64 [512], the column of each byte; -1 for a byte that is never scored."""
    classes = torch.full((VOCABULARY_SIZE,), -1, dtype=torch.long)
    classes[list(SCORED)] = torch.arange(NUM_SCORED)
    return classes
