import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.evaluation.bits_per_base import (
    EvaluationError,
    dataset_documents,
    evaluate_bits_per_base,
    fasta_documents,
    ngram_bits_per_base,
)
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.windows import WindowError
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset, write_fasta

RECORDS = [random_genome(num, seed=num, num_unknown_runs=num % 2, num_iupac=2) for num in (501, 1, 90, 37)]


def test_figures_are_the_sums_of_each_records_score(model: HyenaBLTModel) -> None:
    got = evaluate_bits_per_base(model, RECORDS, window_bases=64, overlap_bases=24)
    scores = np.concatenate([model.score(record, 64, 24).log_likelihoods for record in RECORDS]).astype(np.float64)
    letters = np.concatenate(RECORDS)
    is_base, lower = np.isin(letters, list(b"ACGTacgt")), letters >= ord("a")
    for figure, chosen in (
        (got, is_base),
        (got.repeat_masked, is_base & lower),
        (got.not_repeat_masked, is_base & ~lower),
    ):
        assert figure.num_bases == chosen.sum() > 0
        assert figure.bits_per_base == pytest.approx(-scores[chosen].mean() / math.log(2), rel=1e-6)
    assert got.num_unscored_letters == (~is_base).sum() > 0
    assert got.num_records == 4
    if model.patcher is not None:
        lengths = np.concatenate([model.patcher.segment_sequence(record) for record in RECORDS])
        assert got.num_patches == len(lengths)
        assert got.mean_patch_bases == pytest.approx(lengths.mean())
    else:
        assert got.num_patches is got.mean_patch_bases is None


def test_batches_change_nothing(model: HyenaBLTModel) -> None:
    figures = [evaluate_bits_per_base(model, RECORDS, 50, 20, batch_windows=size) for size in (1, 3, 64)]
    for other in figures[1:]:
        assert other.bits_per_base == pytest.approx(figures[0].bits_per_base, rel=1e-6)
        assert other.num_bases == figures[0].num_bases


def test_defaults_are_the_trainings_window_and_half_of_it(model_of) -> None:
    model = model_of("budget")
    unknown = evaluate_bits_per_base(model, RECORDS[2:])
    assert (unknown.window_bases, unknown.overlap_bases) == (8192, 4096)
    model.window_bases = 48
    default, given = evaluate_bits_per_base(model, RECORDS), evaluate_bits_per_base(model, RECORDS, 48, 24)
    assert dataclasses.replace(default, seconds=0) == dataclasses.replace(given, seconds=0)


def test_fasta_and_dataset_give_the_same_figure(tmp_path: Path, model_of) -> None:
    model = model_of("entropy")
    fasta = write_fasta(tmp_path / "toy.fa.gz", {f"r{i}": record for i, record in enumerate(RECORDS)}, compress=True)
    write_dataset(tmp_path / "toy", RECORDS)
    from_fasta = evaluate_bits_per_base(model, fasta_documents(fasta), 64)
    from_dataset = evaluate_bits_per_base(model, dataset_documents(tmp_path / "toy"), 64)
    assert dataclasses.replace(from_fasta, seconds=0) == dataclasses.replace(from_dataset, seconds=0)


def test_tags_of_a_dataset_are_read_and_not_scored(tmp_path: Path, model_of) -> None:
    model = model_of("static")
    write_dataset(tmp_path / "toy", [(b"|D__ACGT|", RECORDS[0])])
    tagged = evaluate_bits_per_base(model, dataset_documents(tmp_path / "toy"), 64)
    bare = evaluate_bits_per_base(model, RECORDS[:1], 64)
    assert tagged.num_bases == bare.num_bases
    assert tagged.num_unscored_letters == bare.num_unscored_letters + 9
    assert tagged.bits_per_base != bare.bits_per_base


def test_ngram_scores_the_same_bases(model_of) -> None:
    ngram = NgramConfig(order=4).fit(random_genome(30_000, seed=9))
    got = ngram_bits_per_base(ngram, [*RECORDS, np.append(RECORDS[2], np.uint8(0))])
    wanted = evaluate_bits_per_base(model_of("static"), [*RECORDS, RECORDS[2]], 64)
    assert got.num_bases == wanted.num_bases
    assert got.repeat_masked.num_bases == wanted.repeat_masked.num_bases
    assert (got.num_patches, got.window_bases) == (None, None)
    nats = np.concatenate([ngram.log_probabilities(record) for record in [*RECORDS, RECORDS[2]]])
    assert got.bits_per_base == pytest.approx(-np.nanmean(nats.astype(np.float64)) / math.log(2), rel=1e-9)


def test_a_class_without_bases_has_no_figure(model_of) -> None:
    got = evaluate_bits_per_base(model_of("static"), [np.frombuffer(b"ACGTACGT", np.uint8)], 8)
    assert got.repeat_masked.bits_per_base is None
    assert got.repeat_masked.num_bases == 0
    assert got.not_repeat_masked.bits_per_base == got.bits_per_base


def test_nothing_to_score_is_an_error(model_of) -> None:
    with pytest.raises(EvaluationError, match=r"no base A, C, G, T among the 3 letters of 1 record"):
        evaluate_bits_per_base(model_of("static"), [np.frombuffer(b"NNN", np.uint8)])
    with pytest.raises(EvaluationError, match=r"among the 0 letters of 0 record"):
        ngram_bits_per_base(NgramConfig(order=1).fit(RECORDS[0]), [])
    with pytest.raises(WindowError, match="overlap_bases is 50"):
        evaluate_bits_per_base(model_of("static"), RECORDS, 50, 50)
    with pytest.raises(EvaluationError, match="batch_windows is 0: give at least 1"):
        evaluate_bits_per_base(model_of("budget"), RECORDS, batch_windows=0)
