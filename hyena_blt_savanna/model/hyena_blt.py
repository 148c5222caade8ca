"""The hybrid: local encoder, StripedHyena 2 over patches, local decoder."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.model import flops
from hyena_blt_savanna.model.auxiliary import AuxiliaryConfig
from hyena_blt_savanna.model.head import Targets
from hyena_blt_savanna.model.kmers import KmerConfig
from hyena_blt_savanna.model.local_blocks import GATED_CONVOLUTION, scale_residual_branches
from hyena_blt_savanna.model.local_decoder import DecoderConfig, LocalDecoder
from hyena_blt_savanna.model.local_encoder import EncoderConfig, LocalEncoder
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.model.positions import PositionConfig
from hyena_blt_savanna.model.prediction import Prediction
from hyena_blt_savanna.model.scored_classes import class_of_byte
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import NUM_SCORED
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel

Objective: TypeAlias = Literal["next_base", "autoencoder"]
"""What a base is predicted from besides the bases before it: what the global model made of the patches before its
own, or what the encoder made of its own."""

UNREAD_WEIGHTS: dict[Objective, tuple[str, ...]] = {
    "next_base": (),
    "autoencoder": ("global_model.*", "decoder.start", "auxiliary.*"),
}
"""Patterns of the names of the weights that an objective never reads."""


class HyenaBLTConfig(Config):
    """The hybrid model.

    Attributes:
        kind: the name of this architecture in configuration files.
        local_width: D, channels of single bases.
        max_patch_bases: J, the longest patch that the model has places for.
        kmers: words of bases that are looked up.
        positions: what the local modules are told of places, periods and lengths.
        encoder: local encoder.
        global_model: StripedHyena 2 over patches; its width is M.
        decoder: local decoder.
        auxiliary: losses besides the one of the bases.
    """

    kind: Literal["hyena_blt"] = "hyena_blt"
    local_width: PositiveInt = 96
    max_patch_bases: PositiveInt = 16
    kmers: KmerConfig = KmerConfig()
    positions: PositionConfig = PositionConfig()
    encoder: EncoderConfig = EncoderConfig(blocks=[GATED_CONVOLUTION])
    global_model: StackConfig
    decoder: DecoderConfig = DecoderConfig(blocks=[GATED_CONVOLUTION, GATED_CONVOLUTION])
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()

    def flops(
        self, num_bases: int, num_patches: int, objective: Objective = "next_base", training: bool = False
    ) -> dict[str, float]:
        """Operations of a forward pass over one sequence: the global model's parts, `local_encoder`, `local_decoder`,
        `head`. The autoencoder leaves the global model out. In training there is `auxiliary`, if a loss has a
        coefficient: its heads, and the decoder's second pass.

        The decoder reads for one base more than is given, the one behind, and for one patch more: the start vector.
        """
        width = self.local_width
        sizes = (width, self.global_model.width, self.max_patch_bases)
        into = self.encoder.to_patches.flops(num_bases, num_patches, *sizes)
        out_of = self.decoder.from_patches.flops(num_bases + 1, num_patches + 1, *sizes)
        periods = flops.linear(num_bases, 2 * len(self.positions.periods), width)
        parts = {
            **(self.global_model.flops(num_patches) if objective == "next_base" else {}),
            "local_encoder": periods + self.encoder.flops(num_bases, width) + into,
            "local_decoder": self.decoder.flops(num_bases, width) + out_of,
            "head": flops.linear(num_bases, width, NUM_SCORED),
        }
        if training and objective == "next_base" and self.auxiliary.has_losses:
            once_more = parts["local_decoder"] + parts["head"]
            parts["auxiliary"] = self.auxiliary.flops(num_bases, num_patches, *sizes, once_more)
        return parts

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, local in (("encoder", self.encoder), ("decoder", self.decoder)):
            try:
                local.check(self.local_width)
            except ConfigError as error:
                raise ValueError(f"{name}.{error}") from None
        return self

    @property
    def local_reach_bases(self) -> int:
        """How many bases before base t the local modules read when they score base t + 1."""
        of_blocks = sum(local.reach_bases(self.local_width) for local in (self.encoder, self.decoder))
        return max(self.kmers.sizes, default=1) - 1 + of_blocks

    @property
    def num_left_patches(self) -> int:
        """Patches of the slices on the left that a slice needs: enough however short they are."""
        return self.local_reach_bases + 1

    def build(self, context: ContextParallel = SINGLE_RANK) -> HyenaBLT:
        """The model with fresh weights, drawn from torch's default generator.

        Args:
            context: the ranks that hold slices of the same windows.
        """
        return HyenaBLT(self, context)


class HyenaBLT(nn.Module):
    """Logits of every single base from a global model that sees patches.

    Causal in bases: logits at t depend on bases up to t and on boundaries up to the start of base t + 1.

    On several context ranks each has a slice of equally many patches, of which the global model swaps sequence for
    channels. The local modules read a bounded stretch to the left: rows bring it along as `left_patches`, so that
    nothing about single bases is exchanged; of what the global model made of these, the neighbour tells.
    """

    class_of_byte: Tensor

    def __init__(self, config: HyenaBLTConfig, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__()
        self.config = config
        self.context = context
        widths = config.local_width, config.global_model.width, config.max_patch_bases
        self.encoder = LocalEncoder(config.encoder, config.kmers, config.positions, *widths)
        self.global_model = config.global_model.build(context)
        self.decoder = LocalDecoder(config.decoder, config.positions, *widths)
        self.register_buffer("class_of_byte", class_of_byte(), persistent=False)
        scale_residual_branches([*self.encoder.blocks, *self.decoder.blocks], config.local_width)
        # Last, so that the other weights are drawn as without.
        self.auxiliary = config.auxiliary.build(*widths)

    @property
    def auxiliary_inputs(self) -> tuple[str, ...]:
        """Fields of a batch that `forward` reads in training besides bases, patch lengths and weights."""
        return self.config.auxiliary.inputs

    def forward(
        self,
        bases: Tensor,
        patch_lengths: Tensor,
        objective: Objective = "next_base",
        loss_weights: Tensor | None = None,
        entropies: Tensor | None = None,
        left_patches: int = 0,
        first_positions: Tensor | None = None,
        loss_chunk_bases: int | None = None,
    ) -> Tensor | Prediction:
        """Scores the next base at each base.

        Args:
            bases: int64 [B, L].
            patch_lengths: integer [B, P]; zeros are padding, on the right. What they leave of the bases is an
                unfinished patch.
            objective: next_base is the language model; autoencoder see `reconstruct`.
            loss_weights: float32 [B, L], weight of base t as a target, 0 in left patches: asks for nats in place of
                logits.
            entropies: float32 [B, L], nats; read by an auxiliary loss only, in training.
            left_patches: on several context ranks: how many patches, at the start of each row, belong to the slice on
                the left: `num_left_patches`, or all there are.
            first_positions: int64 [B], bases of its window that precede each row; None: there are none.
            loss_chunk_bases: bases whose logits exist at a time where nats are asked for; None: all of them.

        Returns:
            float [B, L, NUM_SCORED]: logits at t score base t + 1; columns are A, C, G, T, end of document. With
            `loss_weights`: a Prediction, which in training as a language model has the auxiliary losses.
        """
        targets = None if loss_weights is None else Targets(bases, loss_weights, self.class_of_byte, loss_chunk_bases)
        layout = lay_out(patch_lengths, bases.shape[1], self.config.max_patch_bases)
        x_BLD, patches_BPM = self.encoder(bases, layout, 0 if first_positions is None else first_positions)
        if objective == "autoencoder":
            scored = self._from_own_patches(x_BLD, patches_BPM, patch_lengths, targets)
            return scored if targets is None else Prediction(scored)
        after_BPM = self._through_global_model(patches_BPM, left_patches)
        if targets is None:
            return self.decoder(x_BLD, after_BPM, patch_lengths)
        nats, states_BLD = self.decoder(x_BLD, after_BPM, patch_lengths, targets=targets, with_states=True)
        if not (self.training and self.config.auxiliary.has_losses):
            return Prediction(nats)
        again = None
        if self.config.auxiliary.reconstruction:
            again = self._from_own_patches(x_BLD, patches_BPM, patch_lengths, targets)
        return Prediction(nats, self.auxiliary(layout, after_BPM, states_BLD, again, targets.loss_weights, entropies))

    def _through_global_model(self, patches_BPM: Tensor, left_patches: int) -> Tensor:
        """What the global model makes of the patches; on several context ranks, the neighbour's of the left ones."""
        own_BPM: Tensor = self.global_model(patches_BPM[:, left_patches:])
        if self.context.num_ranks == 1:
            return own_BPM
        # The first patch of a row reads the decoder's start vector, and nothing that is scored here reads so far back.
        left_BPM = self.context.halo(own_BPM, self.config.num_left_patches, sequence_dim=1)
        assert left_BPM is not None
        return torch.cat([left_BPM[:, left_BPM.shape[1] - left_patches :], own_BPM], 1)

    def reconstruct(self, bases: Tensor, patch_lengths: Tensor) -> Tensor:
        """Scores each base from the encoder's vector of its own patch and the bases before it: no global model.

        Changing base t changes, before t, the logits that score bases of t's own patch and no others.

        Args:
            bases: int64 [B, L].
            patch_lengths: integer [B, P]; zeros are padding, on the right. Bases of an unfinished patch, which has
                no vector yet, are scored from a vector of zeros.

        Returns:
            float [B, L, NUM_SCORED]: logits at t score base t + 1, from the vector of patch `patch_of(t + 1)`.
        """
        return self(bases, patch_lengths, objective="autoencoder")

    def _from_own_patches(
        self, x_BLD: Tensor, patches_BPM: Tensor, patch_lengths: Tensor, targets: Targets | None
    ) -> Tensor:
        # The decoder reads one patch behind: with each vector one patch early, a base reads its own patch's.
        early_BPM = torch.cat([patches_BPM[:, 1:], torch.zeros_like(patches_BPM[:, :1])], 1)
        return self.decoder(x_BLD, early_BPM, patch_lengths, before_BM=patches_BPM[:, 0], targets=targets)
