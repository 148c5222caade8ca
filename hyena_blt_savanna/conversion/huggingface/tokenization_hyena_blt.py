"""The tokenizer: a base is its byte."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizer

from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, PADDING, VOCABULARY_SIZE

_NUM_BYTES = 256


class GenomeTokenizer(PreTrainedTokenizer):
    """Letters to bytes and back, behind the end-of-document byte that every window begins with.

    Nothing is lost: case is kept (the models read upper case), and so is any other text, as the bytes of its UTF-8.
    Token i is written as the character of that number; ids from 256 on stand for no byte and decode to nothing.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    vocab_files_names: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        settings = {
            "bos_token": chr(END_OF_DOCUMENT),
            "eos_token": chr(END_OF_DOCUMENT),
            "pad_token": chr(PADDING),
            "padding_side": "right",
            "clean_up_tokenization_spaces": False,
            "special_tokens_pattern": "bos",
        }
        super().__init__(**{**settings, **kwargs})

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return VOCABULARY_SIZE

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens."""
        return {chr(index): index for index in range(VOCABULARY_SIZE)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text.encode("utf-8", "surrogatepass").decode("latin-1"))

    def _convert_token_to_id(self, token: str) -> int:
        return ord(token)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text that a row of tokens stands for."""
        return bytes(ord(token) for token in tokens if ord(token) < _NUM_BYTES).decode("utf-8", "replace")
