"""The `adaptive` model, against a plain one that counts windows of the prefix anew for each base."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hyena_blt_savanna.data.entropy_grid import ENTROPY_STEP_NATS
from hyena_blt_savanna.patching.adaptive import AdaptiveConfig, AdaptiveModel
from hyena_blt_savanna.testing.toy_streams import as_bytes, markov_bases, plain_counts, random_bases, stream_with_marks

MODEL = AdaptiveModel(AdaptiveConfig(order=3, strength=4.0))


def plain_entropy(prefix: np.ndarray, context: str, strength: float) -> float:
    """Interpolated counts of everything read so far, both strands."""
    distribution = [0.25] * 4
    for k in range(len(context) + 1):
        counts = plain_counts(prefix, k, both_strands=True)
        found = [counts[context[len(context) - k :] + base] for base in "ACGT"]
        total = sum(found) + strength
        distribution = [(n + strength * p) / total for n, p in zip(found, distribution, strict=True)]
    return -sum(p * math.log(p) for p in distribution)


def test_entropies_are_those_of_the_counts_so_far() -> None:
    bases = as_bytes("ACGGTTACGATNACGGaccgtTAACG")
    nats = MODEL.entropies(bases)
    for i in (0, 1, 5, 10, 14, 20, 25):
        context = bytes(bases[:i]).decode().upper().rpartition("N")[2][-3:]
        assert abs(nats[i] - plain_entropy(bases[:i], context, 4.0)) < ENTROPY_STEP_NATS / 2 + 1e-6
    assert nats[12] == 0.0


def test_entropies_lie_on_the_grid() -> None:
    steps = MODEL.entropies(stream_with_marks(8, 2000)) / ENTROPY_STEP_NATS
    assert (steps == np.rint(steps)).all()
    assert 0 <= steps.min() <= steps.max() <= math.log(4) / ENTROPY_STEP_NATS


def test_what_repeats_becomes_foreseeable() -> None:
    model = AdaptiveModel(AdaptiveConfig())
    unit = random_bases(500, 5)
    nats = model.entropies(np.tile(unit, 40))
    assert nats[:500].mean() > 1.35
    assert nats[-500:].mean() < 0.6
    bases, bits = markov_bases(30_000, 6)
    assert abs(model.entropies(bases)[-5000:].mean() / math.log(2) - bits[-5000:].mean()) < 0.1


@given(st.integers(0, 50), st.integers(0, 200))
@settings(max_examples=30)
def test_chunks_and_single_bases_give_the_same_entropies(seed: int, edge: int) -> None:
    stream = stream_with_marks(seed, 200)
    whole = MODEL.entropies(stream)
    stepper = MODEL.stepper()
    np.testing.assert_array_equal(np.concatenate([stepper.read(stream[:edge]), stepper.read(stream[edge:])]), whole)
    stepper, foreseen = MODEL.stepper(), []
    for base in stream.tolist():
        foreseen.append(stepper.next_entropy_nats)
        stepper.push(base)
    assert foreseen == whole.tolist()


@given(st.integers(0, 50), st.data())
@settings(max_examples=30)
def test_entropies_know_only_the_bases_before(seed: int, data: st.DataObject) -> None:
    stream = stream_with_marks(seed, 200)
    place = data.draw(st.integers(0, len(stream) - 1))
    changed = stream.copy()
    changed[place] = data.draw(st.sampled_from(list(b"ACGTN|@\0")))
    np.testing.assert_array_equal(MODEL.entropies(stream)[: place + 1], MODEL.entropies(changed)[: place + 1])
