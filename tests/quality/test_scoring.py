"""Held-out windows, and that contenders are scored on the same bases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.evaluation.native_checkpoint import NativeCheckpoint
from hyena_blt_savanna.model.hnet import HNetConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.quality.config import HeldOutConfig
from hyena_blt_savanna.quality.held_out import choose_windows, find_held_out
from hyena_blt_savanna.quality.scoring import measure_chunks, score_checkpoint, score_ngram
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_dataset, write_random_boundaries
from hyena_blt_savanna.testing.toy_training import ToyModel

WINDOW = 128


@pytest.fixture
def data(tmp_path):
    """A dataset with random patches, and runs of N in its test."""
    for name, num_bases in (("train", 4000), ("validation", 1000), ("test", 1500)):
        write_dataset(tmp_path / name, [random_genome(num_bases, seed=num_bases, num_unknown_runs=3)])
        write_random_boundaries(tmp_path / name, longest_patch_bases=8)
    return tmp_path


def checkpoint(module: nn.Module, folder) -> NativeCheckpoint:
    config = IsotropicConfig.parse({"stack": {"width": 16, "num_heads": 2, "blocks": ["hyena_se"]}})
    return NativeCheckpoint(folder, module.eval(), config, None, None)


def test_windows_are_whole_known_and_shared_with_nothing():
    stream = np.frombuffer(b"ACGT" * 30, dtype=np.uint8).copy()
    shared = np.zeros(120, dtype=bool)
    shared[25] = True
    stream[40:46] = ord("N")
    stream[50:55] = ord("N")
    chosen, about = choose_windows(stream, shared, 10, 1000)
    # Window 2 shares a base, 4 is mostly unknown, half of 5 is known.
    assert chosen == [0, 1, 3, 5, 6, 7, 8, 9, 10, 11]
    assert about == {"windows": 12, "with a duplicate": 1, "unknown": 1, "taken": 10}
    assert len(choose_windows(stream, shared, 10, 50)[0]) == 5


def test_held_out_windows_hold_no_stretch_of_the_training(tmp_path):
    train, held = random_genome(4000, seed=1), random_genome(1280, seed=2, repeat_fraction=0.0)
    held[300:400] = train[1000:1100]
    for name, sequence in (("train", train), ("validation", held), ("test", held)):
        write_dataset(tmp_path / name, [sequence])
    found = find_held_out(tmp_path, WINDOW, HeldOutConfig(validation_bases=10_000, test_bases=300))
    assert found.validation == [0, 1, 4, 5, 6, 7, 8, 9]
    assert len(found.test) == 2
    # Read again from beside the data.
    assert find_held_out(tmp_path, WINDOW, HeldOutConfig(validation_bases=10_000, test_bases=300)) == found
    with pytest.raises(DataError, match="no window of 1,000 bases is left without a stretch of 100 bases"):
        find_held_out(tmp_path, 1000, HeldOutConfig())


def test_all_contenders_are_scored_on_the_same_bases(data):
    model = checkpoint(ToyModel(), data)
    windows = [0, 2, 3, 7, 10]
    whole = score_checkpoint(model, data / "test", None, WINDOW, windows, 16)
    cut = score_checkpoint(model, data / "test", "patches", WINDOW, windows, 16)
    stream = IndexedReader(data / "test").stream
    known = np.isin(stream, list(b"ACGTacgt"))
    assert whole.num_bases == [int(known[k * WINDOW + 16 : (k + 1) * WINDOW].sum()) for k in windows]
    assert cut.num_bases == whole.num_bases
    # The toy model sees seven bases: what lies before a window's first patch is no longer in sight.
    np.testing.assert_allclose(cut.nats, whole.nats, rtol=1e-5)


def test_scores_are_those_of_a_plain_loop(data):
    module = ToyModel()
    found = score_checkpoint(checkpoint(module, data), data / "test", None, WINDOW, [3], 10)
    stream = IndexedReader(data / "test").stream[3 * WINDOW : 4 * WINDOW]
    row = [0, *bytes(stream).upper()]
    with torch.no_grad():
        logits = module(torch.tensor([row]), None)[0]
    nats = 0.0
    for place in range(11, len(row)):
        if row[place] in b"ACGT":
            nats -= float(logits[place - 1].log_softmax(0)[b"ACGT".index(row[place])])
    assert found.nats[0] == pytest.approx(nats, rel=1e-5)
    assert found.bits_per_base == pytest.approx(nats / found.num_bases[0] / math.log(2), rel=1e-5)


def test_the_count_model_is_scored_on_these_bases_too(data):
    windows = [0, 2, 3]
    found = score_ngram(data, [1, 3], WINDOW, [0, 1, 2], windows, 10)
    neural = score_checkpoint(checkpoint(ToyModel(), data), data / "test", None, WINDOW, windows, 10)
    assert found["scores"].num_bases == neural.num_bases
    by_order = found["validation_bits_per_base"]
    assert found["order"] == int(min(by_order, key=by_order.get))
    model = NgramConfig(order=found["order"]).fit(IndexedReader(data / "train").stream)
    costs = -model.log_probabilities(IndexedReader(data / "test").stream)
    assert found["scores"].nats[1] == pytest.approx(float(np.nansum(costs[2 * WINDOW + 10 : 3 * WINDOW])), rel=1e-5)


def test_learned_chunks_are_measured_over_all_windows(data, monkeypatch):
    tree = {"encoder": {"width": 8, "blocks": ["hyena_se"]}, "decoder": {"width": 8, "blocks": ["hyena_se"]}}
    tree["main_network"] = {"width": 16, "num_heads": 2, "blocks": ["hyena_se"]}
    model = HNetConfig.parse(tree).build().eval()
    starts = torch.zeros(1, WINDOW + 1, dtype=torch.bool)
    starts[0, [0, 9, 29]] = True
    monkeypatch.setattr(model, "chunk_starts", lambda bases: starts)
    mean, sd = measure_chunks(model, data / "test", WINDOW, [1, 2])
    lengths = [9, 20, WINDOW + 1 - 29] * 2
    assert (mean, sd) == (pytest.approx(np.mean(lengths)), pytest.approx(np.std(lengths)))
