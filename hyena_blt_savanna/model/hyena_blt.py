"""The hybrid: local encoder, StripedHyena 2 over patches, local decoder."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.model import flops
from hyena_blt_savanna.model.kmers import KmerConfig
from hyena_blt_savanna.model.local_blocks import GATED_CONVOLUTION, LocalConfig, scale_residual_branches
from hyena_blt_savanna.model.local_decoder import LocalDecoder
from hyena_blt_savanna.model.local_encoder import LocalEncoder
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import NUM_SCORED, SCORED, VOCABULARY_SIZE

Objective: TypeAlias = Literal["next_base", "autoencoder"]
"""What a base is predicted from besides the bases before it: what the global model made of the patches before its
own, or what the encoder made of its own."""

UNREAD_WEIGHTS: dict[Objective, tuple[str, ...]] = {
    "next_base": (),
    "autoencoder": ("global_model.*", "decoder.start"),
}
"""Patterns of the names of the weights that an objective never reads."""


class HyenaBLTConfig(Config):
    """The hybrid model.

    Attributes:
        kind: the name of this architecture in configuration files.
        local_width: D, channels of single bases.
        max_patch_bases: J, the longest patch that the model has places for.
        kmers: words of bases that are looked up.
        encoder: local encoder.
        global_model: StripedHyena 2 over patches; its width is M.
        decoder: local decoder.
    """

    kind: Literal["hyena_blt"] = "hyena_blt"
    local_width: PositiveInt = 96
    max_patch_bases: PositiveInt = 16
    kmers: KmerConfig = KmerConfig()
    encoder: LocalConfig = LocalConfig(blocks=[GATED_CONVOLUTION])
    global_model: StackConfig
    decoder: LocalConfig = LocalConfig(blocks=[GATED_CONVOLUTION, GATED_CONVOLUTION])

    def flops(self, num_bases: int, num_patches: int, objective: Objective = "next_base") -> dict[str, float]:
        """Operations of a forward pass over one sequence: the global model's parts, `local_encoder`, `local_decoder`,
        `head`. The autoencoder leaves the global model out.

        Beside their blocks, encoder and decoder have a linear map for each place of a patch, into the global model
        and out of it; the start vector goes out too.
        """
        width, all_places = self.local_width, self.max_patch_bases * self.local_width
        into = flops.linear(num_patches, all_places, self.global_model.width)
        out_of = flops.linear(num_patches + 1, self.global_model.width, all_places)
        return {
            **(self.global_model.flops(num_patches) if objective == "next_base" else {}),
            "local_encoder": self.encoder.flops(num_bases, width) + into,
            "local_decoder": self.decoder.flops(num_bases, width) + out_of,
            "head": flops.linear(num_bases, width, NUM_SCORED),
        }

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, local in (("encoder", self.encoder), ("decoder", self.decoder)):
            try:
                local.check(self.local_width)
            except ConfigError as error:
                raise ValueError(f"{name}.{error}") from None
        return self

    def build(self) -> HyenaBLT:
        """The model with fresh weights, drawn from torch's default generator."""
        return HyenaBLT(self)


class HyenaBLT(nn.Module):
    """Logits of every single base from a global model that sees patches.

    Causal in bases: logits at t depend on bases up to t and on boundaries up to the start of base t + 1.
    """

    class_of_byte: Tensor

    def __init__(self, config: HyenaBLTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch_width, longest = config.local_width, config.global_model.width, config.max_patch_bases
        self.encoder = LocalEncoder(config.kmers, config.encoder, width, patch_width, longest)
        self.global_model = config.global_model.build()
        self.decoder = LocalDecoder(config.decoder, width, patch_width, longest)
        self.register_buffer("class_of_byte", _class_of_byte(), persistent=False)
        self.reset_parameters()

    @property
    def local_reach_bases(self) -> int:
        """How many bases before base t the local modules read when they score base t + 1."""
        blocks = (self.config.encoder, self.config.decoder)
        of_blocks = sum(local.reach_bases(self.config.local_width) for local in blocks)
        return max(self.config.kmers.sizes, default=1) - 1 + of_blocks

    def reset_parameters(self) -> None:
        """Draws the local modules' weights; the global model has drawn its own."""
        scale_residual_branches([*self.encoder.blocks, *self.decoder.blocks], self.config.local_width)
        self.encoder.embedding.reset_parameters(std=1.0)
        for linear in (self.encoder.places, self.decoder.places, self.decoder.head):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(self.decoder.places.bias)
        nn.init.zeros_(self.decoder.head.weight)
        nn.init.normal_(self.encoder.lengths.weight, std=0.02)

    def forward(self, bases: Tensor, patch_lengths: Tensor, objective: Objective = "next_base") -> Tensor:
        """Scores the next base at each base.

        Args:
            bases: int64 [B, L].
            patch_lengths: integer [B, P]; zeros are padding, on the right. What they leave of the bases is an
                unfinished patch.
            objective: next_base is the language model; autoencoder see `reconstruct`.

        Returns:
            float [B, L, NUM_SCORED]: logits at t score base t + 1; columns are A, C, G, T, end of document.
        """
        layout = lay_out(patch_lengths, bases.shape[1], self.config.max_patch_bases)
        x_BLD, patches_BPM = self.encoder(bases, layout)
        if objective == "autoencoder":
            # The decoder reads one patch behind: with each vector one patch early, a base reads its own patch's.
            early_BPM = torch.cat([patches_BPM[:, 1:], torch.zeros_like(patches_BPM[:, :1])], 1)
            return self.decoder(x_BLD, early_BPM, patch_lengths, before_BM=patches_BPM[:, 0])
        patches_BPM = self.global_model(patches_BPM)
        return self.decoder(x_BLD, patches_BPM, patch_lengths)

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


def _class_of_byte() -> Tensor:
    classes = torch.full((VOCABULARY_SIZE,), -1, dtype=torch.long)
    classes[list(SCORED)] = torch.arange(NUM_SCORED)
    return classes
