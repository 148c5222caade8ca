"""The isotropic model: StripedHyena 2 on single bases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.flops import linear
from hyena_blt_savanna.model.head import Targets
from hyena_blt_savanna.model.initialisation import small_init_std
from hyena_blt_savanna.model.kmers import KmerConfig, KmerTables
from hyena_blt_savanna.model.prediction import Prediction
from hyena_blt_savanna.model.scored_classes import class_of_byte
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import NUM_SCORED, VOCABULARY_SIZE
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel

if TYPE_CHECKING:
    from hyena_blt_savanna.model.hyena_blt import Objective


class IsotropicConfig(Config):
    """The isotropic model."""

    kind: Literal["isotropic"] = "isotropic"
    """The name of this architecture in configuration files."""
    stack: StackConfig
    """The blocks between embedding and head."""
    kmers: KmerConfig | None = None
    """Tables whose vectors are added to each base's own; null for none."""
    head: Literal["tied", "untied", "scored"] = "tied"
    """tied: logits of all 512 bytes with the embedding's weight, as in Evo 2; untied: with a weight of their own;
    scored: of A, C, G, T and end of document alone, which at small widths saves a third of all operations."""
    round_vocabulary_to: int = Field(8, gt=0)
    """The embedding has rows for the vocabulary of 512 rounded up to a multiple of this; so has a head over bytes."""

    @property
    def num_left_patches(self) -> int:
        """Bases of the slice on the left that a slice needs: the one whose state scores the first base here."""
        return 1

    @property
    def num_rows(self) -> int:
        """Rows of the embedding."""
        return -(-VOCABULARY_SIZE // self.round_vocabulary_to) * self.round_vocabulary_to

    @property
    def num_head_rows(self) -> int:
        """Rows of the head."""
        return NUM_SCORED if self.head == "scored" else self.num_rows

    @property
    def reach_bases(self) -> int | None:
        """Bases that the logits at a base are computed from, itself included; None: all since the first."""
        reaches = [self.stack.reach(block) for block in self.stack.blocks]
        if self.kmers is not None:
            reaches.append(max(self.kmers.sizes, default=1) - 1)
        return None if None in reaches else 1 + sum(reach for reach in reaches if reach is not None)

    def flops(
        self, num_bases: int, num_patches: int = 0, objective: Objective = "next_base", training: bool = False
    ) -> dict[str, float]:
        """Operations of a forward pass over one sequence, by part: the stack, and all rows of the head."""
        return {**self.stack.flops(num_bases), "head": linear(num_bases, self.stack.width, self.num_head_rows)}

    def build(self, context: ContextParallel = SINGLE_RANK) -> Isotropic:
        """The model with fresh weights, drawn from torch's default generator."""
        return Isotropic(self, context)


class Isotropic(nn.Module):
    """Embedding, stack of blocks, head over all 512 byte values or those that are scored.

    Source: Savanna's `SequenceModel` under `tied` or untied embeddings; Evo 2 (Brixi et al. 2025).
    """

    class_of_byte: Tensor

    def __init__(self, config: IsotropicConfig, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__()
        self.config = config
        self.context = context
        width = config.stack.width
        self.embedding = Embedding(config.num_rows, width)
        self.kmers = None if config.kmers is None else KmerTables(config.kmers, width)
        if self.kmers is not None:
            # The sum of the tables has the standard deviation of a base's own vector.
            nn.init.normal_(self.kmers.weight, std=small_init_std(width) / max(len(self.kmers.sizes), 1) ** 0.5)
        self.stack = config.stack.build(context)
        self.head = self.embedding if config.head == "tied" else Embedding(config.num_head_rows, width)
        classes = class_of_byte() if config.head == "scored" else torch.arange(VOCABULARY_SIZE)
        self.register_buffer("class_of_byte", classes, persistent=False)

    def states(self, bases: Tensor, first_position: int | Tensor = 0) -> Tensor:
        """What the head reads at each base.

        Args:
            bases: int64 [B, L].
            first_position: how many bases of the sequence precede those given, for all rows or int64 [B]; read by
                dropout of k-mers only.

        Returns:
            [B, L, M].
        """
        x_BLM = self.embedding(bases)
        if self.kmers is not None:
            x_BLM = x_BLM + self._kmer_vectors(bases, first_position)
        states: Tensor = self.stack(x_BLM)
        return states

    def _kmer_vectors(self, bases: Tensor, first_position: int | Tensor) -> Tensor:
        assert self.kmers is not None
        num_left = max(self.kmers.sizes, default=1) - 1
        left = self.context.halo(bases, num_left, sequence_dim=1) if num_left else None
        if left is None:
            return self.kmers(bases, first_position)
        return self.kmers(torch.cat([left, bases], dim=1), first_position - num_left)[:, num_left:]

    def forward(
        self,
        bases: Tensor,
        patch_lengths: Tensor | None = None,
        left_patches: int = 0,
        first_positions: Tensor | None = None,
        loss_weights: Tensor | None = None,
        loss_chunk_bases: int | None = None,
    ) -> Tensor | Prediction:
        """Scores the next base at each base.

        Args:
            bases: int64 [B, L].
            patch_lengths: not read; taken so that all architectures are called alike.
            left_patches: on several context ranks: how many bases, at the start of each row, belong to the slice on
                the left: 1, or 0 on the first rank. Without them, slices are of one length.
            first_positions: int64 [B], bases of its window that precede each row; None: there are none.
            loss_weights: float32 [B, L], weight of base t as a target: asks for nats in place of logits.
            loss_chunk_bases: bases whose logits exist at a time where nats are asked for; None: all of them.

        Returns:
            [B, L, 512], or [B, L, NUM_SCORED] with a head of the scored bytes: logits at t score base t + 1. With
            `loss_weights`: a Prediction.
        """
        first_own = left_patches + (0 if first_positions is None else first_positions)
        states_BLM = self.states(bases[:, left_patches:], first_own)
        if self.context.num_ranks > 1:
            left_BLM = self.context.halo(states_BLM, 1, sequence_dim=1)
            assert left_BLM is not None
            states_BLM = torch.cat([left_BLM[:, 1 - left_patches :], states_BLM], 1)
        if loss_weights is not None:
            targets = Targets(bases, loss_weights, self.class_of_byte, loss_chunk_bases)
            return Prediction(self.head(states_BLM, targets=targets))
        logits: Tensor = self.head(states_BLM)
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

    def forward(self, x: Tensor, targets: Targets | None = None) -> Tensor:
        """Looks up integers [B, L] as vectors [B, L, M], or scores vectors [B, L, M] as logits [B, L, num_rows].

        With targets, vectors are scored as the weighted nats of these, a scalar.
        """
        if targets is not None:
            return targets.nats_of_states(x, self.weight[:VOCABULARY_SIZE])
        if x.is_floating_point():
            return functional.linear(x, self.weight)
        return functional.embedding(x, self.weight)
