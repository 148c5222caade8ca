"""The isotropic model: StripedHyena 2 on single bases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hyena_blt_savanna.conversion.huggingface.causal_lm import GenomeCausalLM, Reading
from hyena_blt_savanna.conversion.huggingface.configuration_hyena_blt import GenomeConfig
from hyena_blt_savanna.model.isotropic import Isotropic, IsotropicConfig


class IsotropicForCausalLM(GenomeCausalLM):
    """The isotropic model; `model` is the torch module.

    Args:
        config: of the model.
    """

    model: Isotropic
    _tied_weights_keys = {"model.head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: GenomeConfig) -> None:
        super().__init__(config)
        self.post_init()

    @classmethod
    def parse_architecture(cls, tree: Mapping[str, Any]) -> IsotropicConfig:
        """See `GenomeCausalLM`."""
        return IsotropicConfig.parse(dict(tree), "architecture in config.json")

    def read(self, bases: Tensor, num_bases: Tensor, with_states: bool) -> Reading:
        """See `GenomeCausalLM`; padding on the right changes nothing before it."""
        states: list[Tensor] = []
        blocks = self.model.stack.blocks
        handles = []
        if with_states:
            handles.append(blocks[0].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])))
            handles += [
                block.register_forward_hook(lambda _, inputs, output: states.append(output)) for block in blocks[:-1]
            ]
            handles.append(self.model.stack.register_forward_hook(lambda _, inputs, output: states.append(output)))
        try:
            logits = self.model(bases)
        finally:
            for handle in handles:
                handle.remove()
        return Reading(logits, tuple(states))

    def get_input_embeddings(self) -> nn.Module:
        """The table of bytes."""
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.model.head

    def _predicts_scored_bytes(self) -> bool:
        return self.model.config.head == "scored"
