"""Bases to ids and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyena_blt_savanna.conversion.huggingface.tokenization_hyena_blt import GenomeTokenizer


@pytest.mark.parametrize(
    "text", ["ACGT", "acgtNNacgTRYK", "|D__BACTERIA;|ACGT@ACGT#AC", "xyz é \n\t€😀 <s>", "", " A  C ", "\x00ACGT\x00"]
)
def test_the_tokenizer_loses_nothing(text: str, tmp_path: Path) -> None:
    tokenizer = GenomeTokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids == [0, *text.encode()]
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.strip("\x00")
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]
    tokenizer.save_pretrained(tmp_path)
    assert GenomeTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
