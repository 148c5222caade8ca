import math

import numpy as np
import pytest
import torch

from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.scoring import NoPatcherError
from hyena_blt_savanna.evaluation.windows import WindowError
from hyena_blt_savanna.nucleotides import UPPER
from hyena_blt_savanna.patching.patcher import SequenceError
from hyena_blt_savanna.testing.toy_genomes import random_genome


def plain_score(model: HyenaBLTModel, sequence: np.ndarray, window_bases: int, overlap_bases: int) -> np.ndarray:
    """One pass for each base over what it may know, with windows by their definition."""
    upper = UPPER[sequence]
    lengths = np.ones(len(upper), dtype=int) if model.patcher is None else model.patcher.segment_sequence(upper)
    starts = [0, *np.cumsum(lengths).tolist()]
    stride = window_bases - overlap_bases
    scores = []
    for base in range(len(upper)):
        patch_start = max(start for start in starts if start <= base)
        window = 0 if patch_start < window_bases else (patch_start - overlap_bases) // stride
        context = max(start for start in starts if start <= window * stride)
        finished = [length for start, length in zip(starts, lengths, strict=False) if context <= start < patch_start]
        bases = torch.tensor([[0, *upper[context:base]]])
        logits = model.module(bases, torch.tensor([[1, *finished]]))[0, -1]
        column = model.module.class_of_byte[int(upper[base])]
        scores.append(float(logits.log_softmax(-1)[column]) if chr(upper[base]) in "ACGT" else math.nan)
    return np.array(scores)


@pytest.mark.parametrize(("window_bases", "overlap_bases"), [(1000, 500), (48, 13), (30, 28)])
def test_score_equals_base_by_base(model: HyenaBLTModel, window_bases: int, overlap_bases: int) -> None:
    sequence = random_genome(230, seed=3, num_unknown_runs=1, num_iupac=2)[:110]
    with torch.no_grad():
        expected = plain_score(model, sequence, window_bases, overlap_bases)
    got = model.score(sequence, window_bases, overlap_bases, batch_windows=3)
    np.testing.assert_array_equal(np.isnan(got.log_likelihoods), np.isnan(expected))
    np.testing.assert_allclose(got.log_likelihoods, expected, rtol=1e-4, atol=1e-5)
    assert got.total == pytest.approx(np.nansum(expected), rel=1e-5)
    assert got.bits_per_base == pytest.approx(-np.nanmean(expected) / math.log(2), rel=1e-5)


def test_score_ignores_case_and_takes_text_bytes_and_arrays(model: HyenaBLTModel) -> None:
    text = random_genome(90, seed=1, lower_fraction=0).tobytes().decode()
    scores = [
        model.score(given).log_likelihoods
        for given in (text, text.lower(), text.encode(), np.frombuffer(text.encode(), np.uint8))
    ]
    for other in scores[1:]:
        np.testing.assert_array_equal(other, scores[0])


def test_tag_is_context_and_not_scored(model: HyenaBLTModel) -> None:
    score = model.score("|D__ACGT|" + "ACGTTGCA" * 5)
    assert np.isnan(score.log_likelihoods[:9]).all()
    assert not np.isnan(score.log_likelihoods[9:]).any()
    assert not np.allclose(score.log_likelihoods[9:], model.score("ACGTTGCA" * 5).log_likelihoods)


def test_default_overlap_is_half_of_a_window(model: HyenaBLTModel) -> None:
    sequence = random_genome(150, seed=2)
    default = model.score(sequence, window_bases=50).log_likelihoods
    np.testing.assert_array_equal(default, model.score(sequence, 50, 25).log_likelihoods)
    assert not np.allclose(default, model.score(sequence).log_likelihoods, equal_nan=True)


def test_embedding_predicts_what_score_says(model: HyenaBLTModel) -> None:
    sequence = random_genome(120, seed=4, lower_fraction=0)
    embedding = model.embed(sequence)
    head = model.module.decoder.head if model.patcher is not None else model.module.head
    logits = head(torch.from_numpy(embedding.bases))
    columns = model.module.class_of_byte[torch.from_numpy(sequence.astype(np.int64))]
    if model.patcher is None:
        logits = logits[:, :512]
    # State t is what base t + 1 is predicted from.
    found = logits.log_softmax(-1)[:-1].gather(-1, columns[1:, None])[:, 0]
    np.testing.assert_allclose(found.detach(), model.score(sequence).log_likelihoods[1:], rtol=1e-4, atol=1e-5)


def test_embedding_of_windows_is_that_of_each_window(model: HyenaBLTModel) -> None:
    sequence = random_genome(150, seed=6)
    whole, parts = model.embed(sequence), model.embed(sequence, window_bases=60, overlap_bases=20)
    assert parts.bases.shape == whole.bases.shape
    assert parts.patches.shape == whole.patches.shape
    np.testing.assert_array_equal(parts.patch_lengths, whole.patch_lengths)
    # The first window has the same context in both.
    np.testing.assert_allclose(parts.bases[:60], whole.bases[:60], atol=1e-5)
    assert not np.allclose(parts.bases[-40:], whole.bases[-40:], atol=1e-3)


def test_patch_states_are_the_global_models(model_of) -> None:
    model = model_of("budget")
    sequence = UPPER[random_genome(100, seed=7)]
    lengths = model.patcher.segment_sequence(sequence)
    outputs = []
    handle = model.module.global_model.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.no_grad():
        model.module(torch.tensor([[0, *sequence]]), torch.tensor([[1, *lengths]]))
    handle.remove()
    embedding = model.embed(sequence)
    np.testing.assert_allclose(embedding.patches, outputs[0][0, 1:], atol=1e-5)
    np.testing.assert_array_equal(embedding.patch_lengths, lengths)
    assert not model.module.global_model._forward_hooks


@pytest.mark.parametrize("method", ["score", "embed"])
def test_bad_sequences_are_refused(model_of, method: str) -> None:
    call = getattr(model_of("static"), method)
    with pytest.raises(SequenceError, match=r"'E' at position 3"):
        call("ACGEACG")
    with pytest.raises(SequenceError, match="empty"):
        call("")
    with pytest.raises(WindowError, match=r"overlap_bases is 8 and window_bases 8"):
        call("ACGT", window_bases=8, overlap_bases=8)
    with pytest.raises(WindowError, match="at least 1"):
        call("ACGT", window_bases=8, overlap_bases=0)


def test_hybrid_without_patcher_says_so(hybrid_config, model_of) -> None:
    model = HyenaBLTModel(model_of("static").module, hybrid_config, None)
    for call in (model.score, model.embed, model.generate):
        with pytest.raises(NoPatcherError, match="without a patcher"):
            call("ACGT")
