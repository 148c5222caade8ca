"""H-Net with one stage: bases, learned chunks of bases, and back to bases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.flops import linear
from hyena_blt_savanna.model.head import Head, Targets
from hyena_blt_savanna.model.kmers import KmerConfig, KmerEmbedding
from hyena_blt_savanna.model.precision import WideLinear
from hyena_blt_savanna.model.prediction import Prediction
from hyena_blt_savanna.model.routing import (
    SCAN_BLOCK,
    Router,
    Routing,
    chunk_index,
    ratio_loss,
    running_mean,
    selected_probabilities,
    straight_through,
    take_rows,
)
from hyena_blt_savanna.model.scored_classes import class_of_byte
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, NUM_SCORED, PADDING, VOCABULARY_SIZE

if TYPE_CHECKING:
    from hyena_blt_savanna.model.hyena_blt import Objective


class HNetConfig(Config):
    """H-Net with one stage."""

    kind: Literal["hnet"] = "hnet"
    """The name of this architecture in configuration files."""
    kmers: KmerConfig | None = None
    """Tables whose vectors are added to each base's own; null for none."""
    encoder: StackConfig
    """Blocks on bases, before chunks are found; their width is D."""
    main_network: StackConfig
    """Blocks on chunks; their width M is at least D."""
    decoder: StackConfig
    """Blocks on bases, behind the chunks; as wide as the encoder's."""
    chunk_bases: float = Field(8.0, gt=1)
    """N, the mean length of chunks that the ratio loss draws to."""
    ratio_loss: float = Field(0.02, ge=0)
    """Coefficient of the ratio loss beside one base's nats (dnaHNet: 0.01 to 0.02, and from 0.03 on unstable)."""

    @model_validator(mode="after")
    def _widths_fit(self) -> Self:
        inner, outer, last = self.main_network.width, self.encoder.width, self.decoder.width
        if last != outer:
            raise ValueError(f"decoder.width is {last} and encoder.width {outer}: they share states, make them equal")
        if inner < outer:
            raise ValueError(f"main_network.width is {inner} and encoder.width {outer}: make it at least as wide")
        return self

    def flops(
        self, num_bases: int, num_patches: int = 0, objective: Objective = "next_base", training: bool = False
    ) -> dict[str, float]:
        """Operations of a forward pass over one sequence: the main network's parts, and `encoder`, `router`,
        `residual`, `running_mean`, `decoder`, `head`.

        Query, key and residual are maps of D by D at each base. The running mean is a product of S by S for each S =
        SCAN_BLOCK chunks and each channel; then the same over what blocks hand on, S times fewer, and so on.

        Args:
            num_bases: L.
            num_patches: P, the number of chunks; 0: as many as the ratio loss draws to.
            objective: not read.
            training: not read: the ratio loss costs next to nothing.
        """
        width = self.encoder.width
        num_chunks = num_patches or max(1, round(num_bases / self.chunk_bases))
        return {
            **self.main_network.flops(num_chunks),
            "encoder": sum(self.encoder.flops(num_bases).values()),
            "router": 2 * linear(num_bases - 1, width, width),
            "residual": linear(num_bases, width, width),
            "running_mean": linear(num_chunks, SCAN_BLOCK, width) * SCAN_BLOCK / (SCAN_BLOCK - 1),
            "decoder": sum(self.decoder.flops(num_bases).values()),
            "head": linear(num_bases, width, NUM_SCORED),
        }

    def build(self) -> HNet:
        """The model with fresh weights, drawn from torch's default generator."""
        return HNet(self)


class HNet(nn.Module):
    """Logits of every single base from a main network that sees chunks, whose boundaries are learned.

    Causal in bases: whether a chunk begins at t is found from bases up to t, which logits at t may read.

    Source: Hwang, Wang and Gu 2025 (arXiv:2507.07955), with this package's blocks in place of Mamba-2; goombalab/hnet.
    """

    class_of_byte: Tensor

    def __init__(self, config: HNetConfig) -> None:
        super().__init__()
        self.config = config
        width, inner = config.encoder.width, config.main_network.width
        self.embedding = _embedding(config.kmers, width)
        self.encoder = config.encoder.build()
        self.router = Router(width)
        # What a chunk's state is widened by. ZeRO 3 can't share out a weight of no numbers.
        self.widening = nn.Parameter(torch.zeros(inner - width)) if inner > width else None
        self.main_network = config.main_network.build()
        self.residual = WideLinear(width, width)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)
        self.decoder = config.decoder.build()
        self.head = Head(width, NUM_SCORED)
        nn.init.zeros_(self.head.weight)
        self.register_buffer("class_of_byte", class_of_byte(), persistent=False)

    def forward(
        self,
        bases: Tensor,
        patch_lengths: Tensor | None = None,
        loss_weights: Tensor | None = None,
        loss_chunk_bases: int | None = None,
    ) -> Tensor | Prediction:
        """Scores the next base at each base.

        Args:
            bases: int64 [B, L]; byte 1 is padding, on the right.
            patch_lengths: not read; taken so that all architectures are called alike.
            loss_weights: float32 [B, L], weight of base t as a target: asks for nats in place of logits.
            loss_chunk_bases: bases whose logits exist at a time where nats are asked for; None: all of them.

        Returns:
            float [B, L, NUM_SCORED]: logits at t score base t + 1; columns are A, C, G, T, end of document. With
            `loss_weights`: a Prediction, with the number of chunks and, in training and where it has a coefficient,
            the ratio loss: that of a row, times its bases and the coefficient.
        """
        states, routing = self._route(bases)
        decoded = self.decoder(self._through_chunks(states, routing))
        if loss_weights is None:
            logits: Tensor = self.head(decoded)
            return logits
        nats = self.head(decoded, targets=Targets(bases, loss_weights, self.class_of_byte, loss_chunk_bases))
        ratio_nats = self._ratio_nats(routing, bases != PADDING) if self.training else None
        return Prediction(nats, ratio_nats, routing.starts.sum())

    def _ratio_nats(self, routing: Routing, is_real: Tensor) -> Tensor | None:
        if not self.config.ratio_loss:
            return None
        # The byte in front of a row is no base.
        num_bases = is_real[:, 1:].sum(1)
        losses = ratio_loss(routing, is_real, self.config.chunk_bases)
        return self.config.ratio_loss * (losses * num_bases).sum()

    @torch.no_grad()
    def chunk_starts(self, bases: Tensor) -> Tensor:
        """Where chunks begin.

        Args:
            bases: int64 [B, L].

        Returns:
            bool [B, L]; a row's bases divided by its starts is the mean length of its chunks.
        """
        return self._route(bases)[1].starts

    def _route(self, bases: Tensor) -> tuple[Tensor, Routing]:
        states: Tensor = self.encoder(self.embedding(bases))
        # An end of document stands in front of the next document, as one stands in front of a row.
        return states, self.router(states, bases == END_OF_DOCUMENT, bases != PADDING)

    def _through_chunks(self, states: Tensor, routing: Routing) -> Tensor:
        """[B, L, D] to [B, L, D]: the states and, at each base, what has been made of the chunks up to its own."""
        width = states.shape[2]
        first, chunk = chunk_index(routing.starts)
        chunks = take_rows(states, first)
        if self.widening is not None:
            widening = self.widening.to(chunks.dtype).expand(*chunks.shape[:2], -1)
            chunks = torch.cat([chunks, widening], -1)
        chunks = self.main_network(chunks)[..., :width]
        means = running_mean(chunks, routing.probabilities.gather(1, first))
        certain = straight_through(selected_probabilities(routing))[..., None]
        mixed = take_rows(means, chunk) * certain + self.residual(states)
        return mixed.to(states.dtype)


def _embedding(kmers: KmerConfig | None, width: int) -> nn.Module:
    if kmers is None or not kmers.sizes:
        return nn.Embedding(VOCABULARY_SIZE, width)
    embedding = KmerEmbedding(kmers, width)
    embedding.reset_parameters(std=1.0)
    return embedding
