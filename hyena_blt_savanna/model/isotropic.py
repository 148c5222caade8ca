"""The isotropic model: StripedHyena 2 on single bases."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.initialisation import small_init_std
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import VOCABULARY_SIZE
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel


class IsotropicConfig(Config):
    """The isotropic model."""

    kind: Literal["isotropic"] = "isotropic"
    """The name of this architecture in configuration files."""
    stack: StackConfig
    """The blocks between embedding and head."""
    tied_head: bool = True
    """Whether the head's weight is the embedding's, as in Evo 2."""
    round_vocabulary_to: int = Field(8, gt=0)
    """The embedding has rows for the vocabulary of 512 rounded up to a multiple of this; the logits have 512."""

    @property
    def num_rows(self) -> int:
        """Rows of the embedding."""
        return -(-VOCABULARY_SIZE // self.round_vocabulary_to) * self.round_vocabulary_to

    def build(self, context: ContextParallel = SINGLE_RANK) -> Isotropic:
        """The model with fresh weights, drawn from torch's default generator."""
        return Isotropic(self, context)


class Isotropic(nn.Module):
    """Embedding, stack of blocks, head over all 512 byte values.

    Source: Savanna's `SequenceModel` under `tied` or untied embeddings; Evo 2 (Brixi et al. 2025).
    """

    class_of_byte: Tensor

    def __init__(self, config: IsotropicConfig, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.num_rows, config.stack.width)
        self.stack = config.stack.build(context)
        self.head = self.embedding if config.tied_head else Embedding(config.num_rows, config.stack.width)
        self.register_buffer("class_of_byte", torch.arange(VOCABULARY_SIZE), persistent=False)

    def forward(self, bases: Tensor, patch_lengths: Tensor | None = None) -> Tensor:
        """Scores the next base at each base.

        Args:
            bases: int64 [B, L].
            patch_lengths: not read; taken so that both architectures are called alike.

        Returns:
            [B, L, 512]: logits at t score base t + 1; columns are byte values.
        """
        logits: Tensor = self.head(self.stack(self.embedding(bases)))
        return logits[..., :VOCABULARY_SIZE]


class Embedding(nn.Module):
    """A table of vectors that is read both ways: bytes to vectors, and vectors to logits of bytes.

    One module does both so that a tied weight is only ever used inside its owner's forward, which is where ZeRO 3
    gathers it. Initialised with `small_init`.
    """

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, width))
        nn.init.normal_(self.weight, std=small_init_std(width))

    def forward(self, x: Tensor) -> Tensor:
        """Looks up integers [B, L] as vectors [B, L, M], or scores vectors [B, L, M] as logits [B, L, num_rows]."""
        if x.is_floating_point():
            return functional.linear(x, self.weight)
        return functional.embedding(x, self.weight)
