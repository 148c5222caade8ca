"""Context parallelism as the model sees it: swap the sequence for channels and back, or take a halo from the left.

A sequence is cut into contiguous slices, one a rank. An operator is written for one device, between two
calls of a `ContextParallel`; which ranks there are, and how they talk, is known to that object alone. It
owns no weights, and each of its methods is differentiable: its backward is the transposed exchange.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class ContextParallel(ABC):
    """The ranks that hold the slices of one sequence, seen from one of them.

    Attributes:
        num_ranks: number of slices C.
        rank: which slice is held here; slice 0 is the leftmost.
    """

    num_ranks: int
    rank: int

    @abstractmethod
    def gather_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        """Swaps channels for sequence: [D, L/C] to [D/C, L] (at the dimensions given).

        Args:
            x: a slice of the sequence with all channels; the number of channels (or heads) divides by C.
            channel_dim: the dimension that is cut; rank r keeps its r-th contiguous part.
            sequence_dim: the dimension that becomes whole, slices in rank order.
        """

    @abstractmethod
    def scatter_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        """Undoes `gather_sequence`: [D/C, L] to [D, L/C]."""

    @abstractmethod
    def own_channels(self, x: Tensor, channel_dim: int) -> Tensor:
        """The part of a tensor of all channels (a filter, a skip weight) that belongs to a gathered sequence here."""

    @abstractmethod
    def halo(self, x: Tensor, length: int, sequence_dim: int) -> Tensor | None:
        """The `length` positions that lie left of this rank's slice.

        Args:
            x: this rank's slice, of one shape on all ranks.
            length: number of positions wanted, at least 1; may be longer than a neighbour's slice.
            sequence_dim: the dimension of the sequence.

        Returns:
            A tensor like x with `length` positions, zeros where the sequence has not begun; or None where
            no rank has a neighbour, which means all zeros.
        """

    def close(self) -> None:
        """Ends what the ranks exchange through. Every rank calls, when the model is no longer used."""
        return None

    def earlier(self, x: Tensor, length: int, sequence_dim: int) -> Tensor | None:
        """What was read before a gathered sequence, where a sequence is read in several passes.

        Args:
            x: the gathered sequence.
            length: number of positions wanted, at least 1.
            sequence_dim: the dimension of the sequence.

        Returns:
            A tensor like x with up to `length` positions, fewer where the sequence has not begun; None: there are none.
        """
        return None


class SingleRank(ContextParallel):
    """The whole sequence on one rank: every exchange is the identity."""

    num_ranks = 1
    rank = 0

    def gather_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        return x

    def scatter_sequence(self, x: Tensor, channel_dim: int, sequence_dim: int) -> Tensor:
        return x

    def own_channels(self, x: Tensor, channel_dim: int) -> Tensor:
        return x

    def halo(self, x: Tensor, length: int, sequence_dim: int) -> Tensor | None:
        return None


SINGLE_RANK = SingleRank()
