"""Reading sequences one position at a time, with the values of one pass over all of them.

A first stretch, of any length, is read in one parallel pass, from which the memories are taken (`model.memories`);
after it, one position at a time, for which the caller turns gradients off, once for all of them. Rows of a batch may
be read from different first stretches (`join`), be repeated and left out (`select`), and go on one without the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from hyena_blt_savanna.model.isotropic import Isotropic
from hyena_blt_savanna.model.kmer_reading import KmerReader
from hyena_blt_savanna.model.memories import Memory, reader_of
from hyena_blt_savanna.model.stack import Stack
from hyena_blt_savanna.nucleotides import VOCABULARY_SIZE


class StackReader:
    """Reads positions with blocks, one after the other: `prefill` once, then `step` as often as wanted.

    Args:
        blocks: of a stack or a local module, in evaluation mode, on one rank.
        norm: of what the last block gives; None: there is none.
    """

    def __init__(self, blocks: Iterable[nn.Module], norm: nn.Module | None = None) -> None:
        self._readers = [reader_of(block) for block in blocks]
        self._norm = norm
        self._memories: list[Memory] = []

    @classmethod
    def of(cls, stack: Stack) -> Self:
        """Reads with the blocks of a stack and its norm."""
        return cls(stack.blocks, stack.norm)

    @torch.no_grad()
    def prefill(self, x: Tensor) -> Tensor:
        """Reads the start of sequences: [B, L, M], L at least 1, to [B, L, M]."""
        self._memories = []
        for reader in self._readers:
            x, memory = reader.prefill(x)
            self._memories.append(memory)
        return x if self._norm is None else self._norm(x)

    def step(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Reads the next position of some rows.

        Args:
            x: [b, M].
            rows: int64 [b], which they are; None: all of the batch. Some alone can be read by blocks of a bounded
                reach, whose memories do not grow.

        Returns:
            [b, M].
        """
        for reader, memory in zip(self._readers, self._memories, strict=True):
            if rows is None:
                x = reader.step(x, memory)
                continue
            part = [tensor[rows] for tensor in memory]
            x = reader.step(x, part)
            for tensor, new in zip(memory, part, strict=True):
                tensor[rows] = new
        return x if self._norm is None else self._norm(x)

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 [b], only; a row may come more than once."""
        self._memories = [[tensor[rows] for tensor in memory] for memory in self._memories]

    def join(self, others: Sequence[StackReader]) -> None:
        """Adds the rows of other readers with the same blocks, behind its own."""
        memories = zip(self._memories, *(other._memories for other in others), strict=True)
        self._memories = [reader.join(list(of_block)) for reader, of_block in zip(self._readers, memories, strict=True)]

    @property
    def num_bytes(self) -> int:
        """What is remembered of all rows."""
        return sum(tensor.nbytes for memory in self._memories for tensor in memory)


class Decoder:
    """Reads bases with an isotropic model: `prefill` once, then `step` as often as wanted.

    Args:
        model: in evaluation mode, on one rank.
    """

    def __init__(self, model: Isotropic) -> None:
        self._model = model
        self._stack = StackReader.of(model.stack)
        self._kmers = None if model.kmers is None else KmerReader(model.kmers)

    @torch.no_grad()
    def prefill(self, bases: Tensor) -> Tensor:
        """Reads the start of sequences in one parallel pass.

        Args:
            bases: int64 [B, L], L at least 1.

        Returns:
            Logits [B, C] of the base after the last one.
        """
        x_BLM: Tensor = self._model.embedding(bases)
        if self._model.kmers is not None and self._kmers is not None:
            x_BLM = x_BLM + self._model.kmers(bases)
            self._kmers.prefill(bases)
        return self._logits(self._stack.prefill(x_BLM)[:, -1])

    def step(self, bases: Tensor) -> Tensor:
        """Reads the next base.

        Args:
            bases: int64 [B].

        Returns:
            Logits [B, C] of the base after it.
        """
        x_BM: Tensor = self._model.embedding(bases)
        if self._kmers is not None:
            x_BM = x_BM + self._kmers.step(bases)
        return self._logits(self._stack.step(x_BM))

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 [b], only; a row may come more than once."""
        self._stack.select(rows)
        if self._kmers is not None:
            self._kmers.select(rows)

    def join(self, others: Sequence[Decoder]) -> None:
        """Adds the rows of other decoders of the same model, behind its own."""
        self._stack.join([other._stack for other in others])
        if self._kmers is not None:
            self._kmers.join([other._kmers for other in others if other._kmers is not None])

    @property
    def num_bytes(self) -> int:
        """What is remembered of all rows, k-mers aside."""
        return self._stack.num_bytes

    def _logits(self, states_BM: Tensor) -> Tensor:
        logits: Tensor = self._model.head(states_BM)
        return logits[..., :VOCABULARY_SIZE]
