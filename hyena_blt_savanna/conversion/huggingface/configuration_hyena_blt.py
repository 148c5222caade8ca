"""config.json of an exported model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, PADDING, VOCABULARY_SIZE


class GenomeConfig(PreTrainedConfig):
    """An exported model.

    Attributes:
        architecture: the model's own configuration; its `kind` is hyena_blt or isotropic.
        patcher: rule, entropy model and calibration, as in patcher.yaml; with the entropy model's settings, and the
            bytes of its tensors, which lie among the weights. None for a model of single bases.
        window_bases: longest window of the training, if known.
        trained_on: digest of the training data and the fold of them that was left out, if known.
        trained_in: of a training in FP8, how products were computed, and how far from bf16 that was in the end.
        code_version: of the package that wrote the folder.
    """

    model_type = "hyena_blt_genome"

    architecture: dict[str, Any] | None = None
    patcher: dict[str, Any] | None = None
    window_bases: int | None = None
    trained_on: dict[str, Any] | None = None
    trained_in: dict[str, Any] | None = None
    code_version: str | None = None
    vocab_size: int = VOCABULARY_SIZE
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = False
    bos_token_id: int | None = END_OF_DOCUMENT
    eos_token_id: int | list[int] | None = END_OF_DOCUMENT
    pad_token_id: int | None = PADDING
