"""K-mer tables: one learned vector for each word of k bases that ends at a base."""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.dropout import draw_seed, dropout_shares
from hyena_blt_savanna.nucleotides import BASE_CODE, OTHER_CODE, VOCABULARY_SIZE

LONGEST_KMER = 12


class KmerConfig(Config):
    """Which words are looked up.

    Attributes:
        sizes: lengths k of the words; a table has 4^k + 1 rows.
        dropout: chance that a table's vector is left out at a base, in training only; those kept are scaled up, so
            that the sum over the tables keeps its mean. Context ranks leave out what one rank leaves out.
    """

    sizes: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    dropout: float = Field(0.0, ge=0, lt=1)

    @field_validator("sizes")
    @classmethod
    def _check_sizes(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(sizes)) != len(sizes) or any(not 1 <= k <= LONGEST_KMER for k in sizes):
            raise ValueError(f"k-mer sizes must be different numbers from 1 to {LONGEST_KMER}")
        return tuple(sorted(sizes))

    def num_rows(self) -> int:
        """Rows of all tables together."""
        return sum(4**k + 1 for k in self.sizes)


class KmerTables(nn.Module):
    """Sum of the vectors of the k-mers that end at a base.

    The index of a k-mer is its base-4 number, so that no two words share a row; words that hold another letter, or
    reach back before the first base, share one row a table.

    Source: the role of the tables is that of the hash n-grams of Byte Latent Transformer (Pagnoni et al. 2024,
    section 3.2.1); direct indices lose none of DNA's words to collisions.
    """

    base_codes: Tensor

    def __init__(self, config: KmerConfig, width: int) -> None:
        super().__init__()
        self.sizes = config.sizes
        self.dropout = config.dropout
        # One table for all k keeps the number of look-ups, and of parameters to keep track of, at one.
        self.weight = nn.Parameter(torch.empty(max(config.num_rows(), 1), width))
        nn.init.normal_(self.weight)
        self.register_buffer("base_codes", _base_codes(), persistent=False)

    def indices(self, bases: Tensor) -> Tensor:
        """Rows of the table for each base.

        Args:
            bases: int64 [B, L].

        Returns:
            int64 [B, L, number of sizes].
        """
        code = self.base_codes[bases]
        other = (code == OTHER_CODE).long()
        code = code.masked_fill(code == OTHER_CODE, 0)
        rows, first_row = [], 0
        word, spoiled, reach = torch.zeros_like(code), torch.zeros_like(code), 0
        for k in self.sizes:
            for back in range(reach, k):
                word = word + (_shift(code, back, 0) << (2 * back))
                spoiled = spoiled | _shift(other, back, 1)
            reach = k
            rows.append(first_row + torch.where(spoiled.bool(), 4**k, word))
            first_row += 4**k + 1
        return torch.stack(rows, -1)

    def forward(self, bases: Tensor, first_position: int | Tensor = 0) -> Tensor:
        """Looks up all words.

        Args:
            bases: int64 [B, L].
            first_position: how many bases of the sequence precede those given, for all rows or int64 [B]; what is left
                out at a base in training depends on it.

        Returns:
            [B, L, D]; zeros without tables.
        """
        if not self.sizes:
            return self.weight.new_zeros(*bases.shape, self.weight.shape[1])
        indices = self.indices(bases).flatten(0, 1)
        kept = None
        if self.training and self.dropout:
            first = first_position[:, None] if isinstance(first_position, Tensor) else first_position
            positions = (torch.arange(bases.shape[1], device=bases.device) + first).expand(bases.shape)
            shares = dropout_shares(draw_seed(), self.dropout, positions, len(self.sizes))
            kept = shares.flatten(0, 1).to(self.weight.dtype)
        pooled = nn.functional.embedding_bag(indices, self.weight, mode="sum", per_sample_weights=kept)
        return pooled.view(*bases.shape, -1)


class KmerEmbedding(nn.Module):
    """Sum of a base's own vector and those of the k-mers that end at it."""

    def __init__(self, config: KmerConfig, width: int) -> None:
        super().__init__()
        self.bases = nn.Embedding(VOCABULARY_SIZE, width)
        self.kmers = KmerTables(config, width)

    def reset_parameters(self, std: float) -> None:
        """Draws rows so that the sum over all tables has standard deviation `std`."""
        share = std / (len(self.kmers.sizes) + 1) ** 0.5
        nn.init.normal_(self.bases.weight, std=share)
        nn.init.normal_(self.kmers.weight, std=share)

    def forward(self, bases: Tensor, first_position: int | Tensor = 0) -> Tensor:
        """Bases int64 [B, L] to [B, L, D]; see `KmerTables`."""
        x_BLD = self.bases(bases)
        return x_BLD + self.kmers(bases, first_position) if self.kmers.sizes else x_BLD


def _shift(values: Tensor, back: int, fill: int) -> Tensor:
    """values[t - back] at t; `fill` before the first."""
    return nn.functional.pad(values, (back, 0), value=fill)[:, : values.shape[1]]


def _base_codes() -> Tensor:
    codes = torch.full((VOCABULARY_SIZE,), OTHER_CODE, dtype=torch.long)
    codes[: len(BASE_CODE)] = torch.from_numpy(BASE_CODE.astype("int64"))
    return codes
