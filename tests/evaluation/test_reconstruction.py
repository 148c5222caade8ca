"""The share of patches that are reconstructed, against greedy decoding and plain loops."""

import dataclasses

import numpy as np
import pytest
import torch

from hyena_blt_savanna.evaluation.bits_per_base import EvaluationError
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.reconstruction import evaluate_reconstruction, wrong_bases
from hyena_blt_savanna.evaluation.scoring import patch_lengths_of
from hyena_blt_savanna.evaluation.windows import WindowError
from hyena_blt_savanna.model.hyena_blt import HyenaBLT
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.nucleotides import UPPER
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.testing.toy_genomes import random_genome

ACGT = frozenset(b"ACGTacgt")
GENOME = random_genome(1200, seed=3)
SHORT = random_genome(90, seed=4)
TAGGED = np.concatenate([np.frombuffer(b"|D__ACGT|", np.uint8), SHORT])
LETTERS = np.frombuffer(b"ACGTNNNACGTacgtRACGGTTTCA@ACCCCAGT", np.uint8)


@pytest.fixture(scope="module")
def half_trained(hybrid_config) -> HyenaBLT:
    """Reconstructs some patches and not others."""
    torch.manual_seed(0)
    module = hybrid_config.build()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for step in range(21):
        bases = torch.from_numpy(UPPER[random_genome(1025, seed=100 + step)].astype(np.int64))[None]
        classes = module.class_of_byte[bases[:, 1:]]
        logits = module.reconstruct(bases, torch.tensor([[1, *[8, 4, 3, 1] * 64]]))[:, :-1]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), classes, ignore_index=-1).backward()
        optimizer.step()
    return module.eval()


@pytest.fixture(params=["static", "entropy", "budget"])
def model(request, half_trained, hybrid_config, patchers: dict[str, Patcher]) -> HyenaBLTModel:
    return HyenaBLTModel(half_trained, hybrid_config, patchers[request.param])


def decode_greedily(module: HyenaBLT, bases: torch.Tensor, lengths: list[int], patch: int) -> list[int]:
    """Classes of a patch's bases from its vector and the bases before the patch, each base from those decoded."""
    _, vectors = module.encoder(bases[None], lay_out(torch.tensor([lengths]), len(bases), 8))
    so_far = bases[: sum(lengths[:patch])].tolist()
    finished, found = torch.tensor([lengths[:patch]]), []
    for _ in range(lengths[patch]):
        given = torch.tensor([so_far])
        states, _ = module.encoder(given, lay_out(finished, len(so_far), 8))
        early = vectors[:, 1 : patch + 1]
        logits = module.decoder(states, early, finished, before_BM=vectors[:, 0])
        found.append(int(logits[0, -1].argmax()))
        so_far.append(b"ACGT\0"[found[-1]])
    return found


def test_a_patch_is_exact_where_greedy_decoding_finds_it(model):
    document = GENOME[:300]
    lengths = [1, *patch_lengths_of(model, document).tolist()]
    bases = torch.from_numpy(np.concatenate([[0], UPPER[document]]).astype(np.int64))
    classes = model.module.class_of_byte[bases].tolist()
    starts = np.cumsum([0, *lengths])
    exact = {}
    with torch.no_grad():
        for patch in range(1, len(lengths)):
            start, stop = starts[patch], starts[patch + 1]
            if all(base in ACGT for base in bases[start:stop].tolist()):
                exact[patch] = decode_greedily(model.module, bases, lengths, patch) == classes[start:stop]
    found = evaluate_reconstruction(model, [document], 4000)
    assert found.num_patches == len(exact)
    assert found.share_of_patches_exact == sum(exact.values()) / len(exact)
    assert 0.05 < found.share_of_patches_exact < 0.95
    for of_length in found.by_length:
        of_this = [is_exact for patch, is_exact in exact.items() if lengths[patch] == of_length.patch_bases]
        assert of_length.num_patches == len(of_this)
        assert of_length.share_of_patches_exact == pytest.approx(sum(of_this) / len(of_this))
    assert found.num_bases == sum(lengths[patch] for patch in exact)


def test_windows_and_batches_change_nothing_but_the_global_model(model):
    whole = evaluate_reconstruction(model, [GENOME, SHORT], 4000)
    cut = evaluate_reconstruction(model, [GENOME, SHORT], 128, 64, batch_windows=3)
    assert dataclasses.replace(cut, seconds=0, probes=None, window_bases=0, overlap_bases=0) == dataclasses.replace(
        whole, seconds=0, probes=None, window_bases=0, overlap_bases=0
    )
    assert (cut.window_bases, cut.overlap_bases) == (128, 64)


def test_only_patches_of_acgt_outside_tags_count(model):
    documents = [TAGGED, LETTERS, np.append(SHORT, np.uint8(0))]
    wanted, other = 0, 0
    for document, tag_bases in zip([TAGGED, LETTERS, SHORT], (9, 0, 0), strict=True):
        start = 0
        for length in patch_lengths_of(model, document).tolist():
            counts = start >= tag_bases and all(base in ACGT for base in document[start : start + length].tolist())
            wanted, other, start = wanted + counts, other + (not counts), start + length
    found = evaluate_reconstruction(model, documents)
    assert (found.num_patches, found.num_other_patches) == (wanted, other)
    assert other > 3
    assert found.probes is None


def test_probes_find_more_than_guessing_in_both_vectors(model):
    found = evaluate_reconstruction(model, [random_genome(12_000, seed=8)], 512)
    assert found.probes is not None
    assert found.probes.num_fitted_patches + found.probes.num_tested_patches == found.num_patches
    assert abs(found.probes.num_fitted_patches - found.probes.num_tested_patches) <= 64
    guessed = found.probes.commonest_base.share_of_bases_right
    assert 0.2 < guessed < 0.35
    assert found.probes.encoder.share_of_bases_right > guessed + 0.2
    assert found.probes.global_model.share_of_bases_right > guessed + 0.05
    assert len(found.probes.encoder.by_place) == 8


def test_probed_patches_are_limited(model, monkeypatch):
    monkeypatch.setattr("hyena_blt_savanna.evaluation.reconstruction.PROBED_PATCHES", 150)
    found = evaluate_reconstruction(model, [GENOME], 128)
    assert found.probes is not None
    assert (found.probes.num_fitted_patches, found.probes.num_tested_patches) == (86, 64)


def test_wrong_bases_by_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    lengths = [[1, 3, 2, 4, 0], [2, 2, 1, 5, 2], [1, 1, 1, 1, 6]]
    bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (3, 12), generator=generator)]
    logits = torch.randn(3, 12, 5, generator=generator)
    counts = torch.rand(3, 12, generator=generator) < 0.8
    class_of_byte = torch.full((512,), -1)
    class_of_byte[list(b"ACGT\0")] = torch.arange(5)
    wrong, judged = wrong_bases(logits, bases, torch.tensor(lengths), class_of_byte, counts)
    for row in range(3):
        start = 0
        for patch, length in enumerate(lengths[row]):
            places = range(start, start + length)
            start += length
            assert bool(judged[row, patch]) == (length > 0 and all(t > 0 and counts[row, t] for t in places))
            if judged[row, patch]:
                best = [int(logits[row, t - 1].argmax()) for t in places]
                right = [found == b"ACGT".index(int(bases[row, t])) for found, t in zip(best, places, strict=True)]
                assert int(wrong[row, patch]) == right.count(False)
    assert judged.any()
    assert not judged[:, 1:].all()


def test_what_has_no_patches_is_refused(model_of, model):
    with pytest.raises(EvaluationError, match=r"model\.kind is isotropic: it has no vectors of patches"):
        evaluate_reconstruction(model_of("isotropic"), [GENOME])
    with pytest.raises(EvaluationError, match="no patch of A, C, G and T alone among"):
        evaluate_reconstruction(model, [np.frombuffer(b"NNNN", np.uint8)])
    with pytest.raises(EvaluationError, match="batch_windows is 0: give at least 1"):
        evaluate_reconstruction(model, [GENOME], batch_windows=0)
    with pytest.raises(WindowError, match="overlap_bases is 50"):
        evaluate_reconstruction(model, [GENOME], 50, 50)
