"""The hybrid: local encoder, StripedHyena 2 over patches, local decoder; with the patcher that finds its patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyena_blt_savanna.conversion.huggingface.causal_lm import GenomeCausalLM, GenomeModelError, Reading
from hyena_blt_savanna.conversion.huggingface.configuration_hyena_blt import GenomeConfig
from hyena_blt_savanna.model.hyena_blt import HyenaBLT, HyenaBLTConfig
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, Bytes
from hyena_blt_savanna.patching.cutting import PatchCutter
from hyena_blt_savanna.patching.entropy_models import rebuild_entropy_model
from hyena_blt_savanna.patching.patcher import Patcher, PatcherDescription

_NUM_BYTES = 256


class HyenaBLTForCausalLM(GenomeCausalLM):
    """The hybrid; `model` is the torch module, and `patcher` finds boundaries from the bases alone.

    The entropy model's tensors are a buffer of bytes, so that they travel with the weights and no dtype touches them.

    Args:
        config: of the model.

    Raises:
        GenomeModelError: the configuration has no patcher.
    """

    model: HyenaBLT
    entropy_model: Tensor

    def __init__(self, config: GenomeConfig) -> None:
        super().__init__(config)
        if config.patcher is None:
            raise GenomeModelError("config.json has no patcher, and a hybrid finds no patches without: export it again")
        self.register_buffer("entropy_model", torch.zeros(config.patcher["entropy_model_bytes"], dtype=torch.uint8))
        self._patcher: Patcher | None = None
        self.post_init()

    @classmethod
    def parse_architecture(cls, tree: Mapping[str, Any]) -> HyenaBLTConfig:
        """See `GenomeCausalLM`."""
        return HyenaBLTConfig.parse(dict(tree), "architecture in config.json")

    @property
    def patcher(self) -> Patcher:
        """Entropy model and rule; built when first asked for, after the weights were loaded."""
        if self._patcher is None:
            self._patcher = unpack_patcher(self.config.patcher, self.entropy_model)
        return self._patcher

    def read(self, bases: Tensor, num_bases: Tensor, with_states: bool) -> Reading:
        """See `GenomeCausalLM`.

        Raises:
            GenomeModelError: an id is no byte.
        """
        lengths = self.find_patches(bases, num_bases)
        layout = lay_out(lengths, bases.shape[1], self.model.config.max_patch_bases)
        # The parts and not the whole, which in training asks for what auxiliary losses are made of.
        encoded, patches = self.model.encoder(bases, layout)
        after = self.model.global_model(patches)
        logits, states = self.model.decoder(encoded, after, lengths, with_states=True)
        return Reading(logits, (encoded, states), after, lengths)

    def find_patches(self, bases: Tensor, num_bases: Tensor) -> Tensor:
        """Lengths of the finished patches of each row.

        The last bases are a finished patch only if the base behind them, whatever it is, starts one: so its logits
        read what they would if it were there.

        Args:
            bases: int64 [B, L], upper case.
            num_bases: int64 [B].

        Returns:
            int32 [B, P], on the bases' device; zeros are padding.

        Raises:
            GenomeModelError: an id is no byte.
        """
        if bases.numel() and not 0 <= int(bases.min()) <= int(bases.max()) < _NUM_BYTES:
            raise GenomeModelError(f"input_ids go up to {int(bases.max())}: bytes are 0 to {_NUM_BYTES - 1}")
        rows = bases.cpu().numpy().astype(np.uint8)
        found = [self._patches_of_row(row[:length]) for row, length in zip(rows, num_bases.tolist(), strict=True)]
        lengths = np.zeros((len(found), max(map(len, found))), dtype=np.int32)
        for row, row_lengths in zip(lengths, found, strict=True):
            row[: len(row_lengths)] = row_lengths
        return torch.from_numpy(lengths).to(bases.device)

    def _patches_of_row(self, row: Bytes) -> NDArray[np.int32]:
        # The byte in front is a patch of its own, and not part of the patcher's stream.
        num_front = int(len(row) > 0 and row[0] == END_OF_DOCUMENT)
        bases, patcher = row[num_front:], self.patcher
        cutter, entropies, next_nats = PatchCutter(patcher.rule), None, 0.0
        if patcher.entropy_model is not None:
            stepper = patcher.entropy_model.stepper()
            entropies = stepper.read(bases)
            next_nats = stepper.next_entropy_nats
        lengths = [np.ones(num_front, dtype=np.int32), cutter.cut(bases, entropies)]
        if cutter.num_unfinished_bases and cutter.next_starts_patch(next_nats):
            lengths.append(cutter.finish())
        return np.concatenate(lengths)

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's table of bytes."""
        return self.model.encoder.embedding.bases

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's head, of the bytes that are scored."""
        return self.model.decoder.head


def pack_patcher(patcher: Patcher) -> tuple[dict[str, Any], bytes]:
    """A patcher as plain values for config.json, and its entropy model's tensors as bytes."""
    model = patcher.entropy_model
    data = b""
    if model is not None:
        data = safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in model.tensors().items()})
    return {
        "description": patcher.describe().to_dict(),
        "entropy_model_settings": None if model is None else model.config.to_dict(),
        "entropy_model_bytes": len(data),
        "about": patcher.about,
    }, data


def unpack_patcher(packed: Mapping[str, Any], data: Tensor) -> Patcher:
    """The patcher that `pack_patcher` was given.

    Args:
        packed: its plain values.
        data: uint8 [N], its bytes.

    Raises:
        EntropyModelError: the bytes are not those of this entropy model.
    """
    description = PatcherDescription.parse(packed["description"], "patcher in config.json")
    stored, model = description.entropy_model, None
    if stored is not None:
        tensors = safetensors.numpy.load(data.cpu().numpy().tobytes())
        model = rebuild_entropy_model(stored.kind, packed["entropy_model_settings"], tensors, stored.digest)
    return Patcher(model, description.rule, description.calibration, packed["about"])
