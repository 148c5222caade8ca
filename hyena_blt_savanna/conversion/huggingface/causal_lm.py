"""What the exported models share: logits over bytes, loss, generation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.conversion.huggingface.configuration_hyena_blt import GenomeConfig
from hyena_blt_savanna.model.kmers import KmerConfig, KmerTables
from hyena_blt_savanna.model.scored_classes import class_of_byte
from hyena_blt_savanna.nucleotides import NUM_SCORED, SCORED, TAG_MARK, VOCABULARY_SIZE

IGNORED_LABEL = -100
_LISTED_NAMES = 8


class GenomeModelError(ValueError):
    """An input or a folder that a model can't use; the message says what to change."""


@dataclass
class GenomeOutput(ModelOutput):
    """What a model gives.

    Attributes:
        loss: scalar, nats a base, where labels were given.
        logits: [B, L, 512]; those at t score base t + 1. Bytes that the model does not predict have the lowest number
            of the dtype.
        hidden_states: where they were asked for, a tuple of states of bases. Isotropic: what the first block reads,
            and what comes after each block, the last one behind the final norm. Hybrid: what the encoder makes of the
            bases, and what the head reads.
        patch_states: [B, P, M] of a hybrid, where hidden states were asked for: what the global model made of the
            finished patches.
        patch_lengths: int32 [B, P] of a hybrid, in bases; zeros are padding. The first patch is the byte in front,
            and what the lengths leave of the bases is a patch that is not finished.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    patch_states: Tensor | None = None
    patch_lengths: Tensor | None = None


class Reading(NamedTuple):
    """What an architecture makes of bases; fields as in `GenomeOutput`, logits [B, L, C] of its own columns."""

    logits: Tensor
    hidden_states: tuple[Tensor, ...]
    patch_states: Tensor | None = None
    patch_lengths: Tensor | None = None


class GenomeCausalLM(PreTrainedModel, GenerationMixin, ABC):
    """A genomic language model: next bases from the bases before them.

    Args:
        config: of the model.
    """

    config_class = GenomeConfig
    base_model_prefix = "model"
    model: nn.Module

    def __init__(self, config: GenomeConfig) -> None:
        super().__init__(config)
        wanted, default = torch.get_default_dtype(), torch.float32
        try:
            # Grids are computed in fp32 whatever the weights become.
            torch.set_default_dtype(default)
            self.model = self.parse_architecture(config.architecture or {}).build()  # type: ignore[attr-defined]
        finally:
            torch.set_default_dtype(wanted)
        self.model.to(wanted)

    @classmethod
    @abstractmethod
    def parse_architecture(cls, tree: Mapping[str, Any]) -> Config:
        """The architecture's own configuration, which builds the torch module."""

    @abstractmethod
    def read(self, bases: Tensor, num_bases: Tensor, with_states: bool) -> Reading:
        """Scores the next base at each base.

        Args:
            bases: int64 [B, L], upper case.
            num_bases: int64 [B], how many bases of each row are no padding.
            with_states: whether hidden states are wanted.
        """

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """Loads a model; see `PreTrainedModel.from_pretrained`.

        Raises:
            GenomeModelError: weights are missing. They would be made up otherwise.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        missing = sorted(info["missing_keys"])
        if missing:
            more = f" and {len(missing) - _LISTED_NAMES} more" if len(missing) > _LISTED_NAMES else ""
            raise GenomeModelError(
                f"the folder lacks weights of the model that config.json describes: "
                f"{', '.join(missing[:_LISTED_NAMES])}{more}; copy or export it again"
            )
        return (model, info) if output_loading_info else model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> GenomeOutput | tuple[Any, ...]:
        """Scores the next base at each base.

        Args:
            input_ids: int64 [B, L], bytes of either case. A row begins with byte 0, as the tokenizer gives it.
            attention_mask: [B, L], ones and, on the right, zeros where a row is padded.
            labels: int64 [B, L], usually the same as `input_ids`: base t is scored by the logits at t - 1. -100 is
                left out, and so is what is never scored: tags, and bytes other than A, C, G, T and end of document.
            output_hidden_states: whether to return states.
            return_dict: False gives a tuple.
            logits_to_keep: give the logits of so many last positions; 0: of all.
            num_items_in_batch: the loss is a sum divided by this, as transformers' Trainer asks for it; None: a mean.
            kwargs: not read.

        Raises:
            GenomeModelError: the padding is not on the right.
        """
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        found = self.read(upper_case(input_ids), _num_bases(input_ids, attention_mask), with_states)
        loss = None if labels is None else _loss(found.logits, input_ids, labels, num_items_in_batch)
        output = GenomeOutput(
            loss=loss,
            logits=_over_bytes(found.logits[:, -logits_to_keep:]),
            hidden_states=found.hidden_states if with_states else None,
            patch_states=found.patch_states if with_states else None,
            patch_lengths=found.patch_lengths,
        )
        as_tuple = return_dict is False or (return_dict is None and not self.config.return_dict)
        return output.to_tuple() if as_tuple else output

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """All bases so far: the sequence is read again for each base."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fills the buffers that no file holds; the architecture draws its own weights when it is built."""
        if isinstance(module, KmerTables):
            module.base_codes.copy_(KmerTables(KmerConfig(sizes=()), width=1).base_codes)
        elif module is self.model:
            classes = module.class_of_byte
            assert isinstance(classes, Tensor)
            classes.copy_(class_of_byte() if self._predicts_scored_bytes() else torch.arange(VOCABULARY_SIZE))

    def _predicts_scored_bytes(self) -> bool:
        return True


def upper_case(ids: Tensor) -> Tensor:
    """Bytes with the letters a to z as A to Z."""
    return torch.where((ids >= ord("a")) & (ids <= ord("z")), ids - 32, ids)


def _num_bases(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Bases of each row that are no padding, int64 [B]."""
    if attention_mask is None:
        return torch.full_like(input_ids[:, 0], input_ids.shape[1])
    real = attention_mask.bool()
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise GenomeModelError(
            "attention_mask has zeros before ones: these models are padded on the right (padding_side='right'); "
            "generate for prompts of one length, or one by one"
        )
    return real.sum(1)


def _loss(logits: Tensor, ids: Tensor, labels: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Cross-entropy of scored bases in nats, in fp32 at least; logits [B, L, C] of all bytes or of scored ones."""
    marks = ids == TAG_MARK
    is_kept = (labels != IGNORED_LABEL) & ~(marks | (marks.cumsum(1) % 2 == 1))
    classes = class_of_byte().to(labels.device)[upper_case(labels).clamp(min=0)]
    is_kept &= classes >= 0
    if logits.shape[-1] != NUM_SCORED:
        classes = upper_case(labels)
    targets = classes.where(is_kept, IGNORED_LABEL)[:, 1:]
    reduction = "mean" if num_items is None else "sum"
    wide = logits[:, :-1].flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    nats = nn.functional.cross_entropy(wide, targets.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction)
    return nats if num_items is None else nats / num_items


def _over_bytes(logits: Tensor) -> Tensor:
    """Logits [B, L, C] of scored bytes as logits [B, L, 512] of all; those of all as they are."""
    if logits.shape[-1] != NUM_SCORED:
        return logits
    # Not minus infinity: a probability of 0 times that is no number.
    lowest = logits.new_full((*logits.shape[:-1], VOCABULARY_SIZE), torch.finfo(logits.dtype).min)
    return lowest.index_copy(-1, torch.tensor(list(SCORED), device=logits.device), logits)
