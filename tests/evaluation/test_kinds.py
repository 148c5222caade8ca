"""Scoring, drawing and reporting with models that find their own chunks, and with words as tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.evaluation.bits_per_base import EvaluationError, evaluate_bits_per_base
from hyena_blt_savanna.evaluation.generation import generate
from hyena_blt_savanna.evaluation.native_checkpoint import PretrainedError, save_pretrained
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.reconstruction import evaluate_reconstruction
from hyena_blt_savanna.evaluation.scoring import NoPatcherError, NoStatesError
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.model.kmer_tokens import KmerTokensConfig
from hyena_blt_savanna.nucleotides import UPPER
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import StaticRule
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_fasta

STACK = {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "attention"]}
CONFIGS: dict[str, Config] = {
    "hnet": HNetConfig.parse(
        {
            "kmers": {"sizes": [2, 3]},
            "encoder": {"width": 12, "blocks": ["hyena_se"]},
            "main_network": STACK,
            "decoder": {"width": 12, "blocks": ["hyena_se"]},
        }
    ),
    "kmer_tokens": KmerTokensConfig.parse({"word_bases": 4, "global_model": STACK}),
}
WORDS = Patcher(None, StaticRule(patch_bases=4, max_patch_bases=4))
GENOME = random_genome(300, seed=9, num_unknown_runs=1, num_iupac=2)


def build(kind: str) -> HyenaBLTModel:
    torch.manual_seed(0)
    module = CONFIGS[kind].build()  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() and parameter.abs().max() == 0:
                parameter.normal_(std=0.5)
    return HyenaBLTModel(module, CONFIGS[kind], WORDS if kind == "kmer_tokens" else None)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> HyenaBLTModel:
    return build(request.param)


def plain_scores(model: HyenaBLTModel, sequence: np.ndarray) -> np.ndarray:
    """One pass for each base over the bases before it."""
    upper, scores = UPPER[sequence], []
    for base in range(len(upper)):
        finished = [1]
        if model.patcher is not None:
            lengths = model.patcher.segment_sequence(upper[: base + 1])
            # Whatever the base is, the patches before its own are finished.
            finished += lengths[:-1].tolist()
        with torch.no_grad():
            logits = model.module(torch.tensor([[0, *upper[:base]]]), torch.tensor([finished]))[0, -1]
        column = model.module.class_of_byte[int(upper[base])]
        scores.append(float(logits.log_softmax(-1)[column]) if chr(upper[base]) in "ACGT" else np.nan)
    return np.array(scores)


def test_score_equals_base_by_base(model: HyenaBLTModel) -> None:
    expected = plain_scores(model, GENOME[:120])
    np.testing.assert_allclose(model.score(GENOME[:120]).log_likelihoods, expected, rtol=1e-4, atol=2e-5)


def test_bits_per_base(model: HyenaBLTModel) -> None:
    found = evaluate_bits_per_base(model, [GENOME, GENOME[:50]], 1000)
    totals = [model.score(part).total for part in (GENOME, GENOME[:50])]
    assert found.bits_per_base == pytest.approx(-sum(totals) / np.log(2) / found.num_bases, rel=1e-5)
    if model.patcher is None:
        assert found.num_patches is found.mean_patch_bases is None
    else:
        assert found.num_patches == sum(len(WORDS.segment_sequence(UPPER[part])) for part in (GENOME, GENOME[:50]))


def test_drawn_bases_score_as_when_they_were_drawn(model: HyenaBLTModel) -> None:
    for prompt in ("", "ACGTNNNAC", "|D__TOY|ACG"):
        drawn = generate(model, prompt, 30, seed=1)
        scored = model.score(drawn.sequence).log_likelihoods[len(prompt) :]
        np.testing.assert_allclose(drawn.log_likelihoods, scored, rtol=1e-4, atol=2e-5)
        expected = WORDS.segment_sequence(drawn.sequence) if model.patcher else []
        assert drawn.patch_lengths.tolist() == list(expected)


def test_a_checkpoint_gives_the_same(model: HyenaBLTModel, tmp_path: Path) -> None:
    model.save(tmp_path / "native")
    again = HyenaBLTModel.load_from_checkpoint(tmp_path / "native")
    assert again.config == model.config
    np.testing.assert_array_equal(again.score(GENOME).log_likelihoods, model.score(GENOME).log_likelihoods)


def test_states() -> None:
    embedding = build("hnet").embed(GENOME[:70])
    assert embedding.bases.shape == (70, 12)
    assert embedding.patches.shape == (0, 0)
    with pytest.raises(NoStatesError, match="a KmerTokens model has states of words and none of single bases"):
        build("kmer_tokens").embed(GENOME[:70])


def test_what_needs_patches_is_refused(model: HyenaBLTModel) -> None:
    with pytest.raises(
        EvaluationError, match=rf"model\.kind is {model.config.to_dict()['kind']}: it has no vectors of patches"
    ):
        evaluate_reconstruction(model, [GENOME])


def test_words_need_a_patcher_of_words(tmp_path: Path) -> None:
    model = build("kmer_tokens")
    too_long = Patcher(None, StaticRule(patch_bases=4, max_patch_bases=5))
    with pytest.raises(PretrainedError, match="patches of up to 5 bases, and the model has places for 4"):
        save_pretrained(tmp_path / "native", model.module.state_dict(), model.config, too_long)
    model.patcher = None
    for use in (lambda: model.score("ACGT"), lambda: generate(model, "ACGT", 3)):
        with pytest.raises(NoPatcherError, match="came without a patcher"):
            use()


def test_the_tool_evaluates(
    model: HyenaBLTModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from runpy import run_path

    model.save(tmp_path / "native")
    fasta = write_fasta(tmp_path / "toy.fa", {"chr1": GENOME})
    tool = Path(__file__).parents[2] / "tools" / "evaluate.py"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path / "native"), "--data", str(fasta)])
    assert run_path(str(tool))["main"]() == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bits_per_base"] == pytest.approx(-model.score(GENOME).total / np.log(2) / figures["num_bases"])
