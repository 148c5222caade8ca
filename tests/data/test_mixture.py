"""Mixtures: exact shares, an order that is a function of seed and place, any number of sources."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data import mixture
from hyena_blt_savanna.data.batches import BatchLoader, TrainingSamples
from hyena_blt_savanna.data.mixture import (
    BLOCK_SAMPLES,
    MixtureOrder,
    MixturePart,
    MixtureSamples,
    MixtureSourceConfig,
    block_counts,
    check_sources,
)
from hyena_blt_savanna.testing.toy_genomes import write_dataset, write_random_boundaries

SHORT_PHASE = [0.35, 0.24, 0.18, 0.09, 0.09, 0.03, 0.02, 0.005, 0.0003]


def plain_counts(weights: list[float]) -> list[int]:
    """Largest remainders in exact numbers."""
    total = sum(Fraction(weight) for weight in weights)
    shares = [Fraction(weight) / total * mixture.BLOCK_SAMPLES for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda i: counts[i] - shares[i])
    for index in by_remainder[: mixture.BLOCK_SAMPLES - sum(counts)]:
        counts[index] += 1
    return counts


@pytest.mark.parametrize("block", [BLOCK_SAMPLES, 1000, 7])
def test_shares_are_exact_to_a_sample(monkeypatch, block):
    monkeypatch.setattr(mixture, "BLOCK_SAMPLES", block)
    rng = np.random.default_rng(0)
    for weights in (SHORT_PHASE, [1.0], [3.0, 1.0], rng.exponential(size=300).tolist()):
        assert block_counts(weights).tolist() == plain_counts(weights)


def test_each_block_has_its_shares_and_each_source_its_places_in_turn(monkeypatch):
    monkeypatch.setattr(mixture, "BLOCK_SAMPLES", 500)
    counts = block_counts(SHORT_PHASE[:7])
    order = MixtureOrder(counts, seed=1)
    places = [order.place(0, index) for index in range(3 * 500)]
    for block in range(3):
        here = places[block * 500 : (block + 1) * 500]
        assert Counter(source for source, _ in here) == dict(enumerate(counts.tolist()))
        for source, count in enumerate(counts.tolist()):
            of_source = sorted(index for other, index in here if other == source)
            assert of_source == list(range(block * count, (block + 1) * count))
    # No source is crowded together.
    assert len({source for source, _ in places[:50]}) >= 4
    sources = [source for source, _ in places]
    assert sources[:500] != sources[500:1000]
    assert [MixtureOrder(counts, seed=2).place(0, i)[0] for i in range(500)] != sources[:500]
    assert [order.place(1, i)[0] for i in range(500)] != sources[:500]


def test_places_far_on_cost_no_more_than_the_first():
    order = MixtureOrder(block_counts(SHORT_PHASE), seed=0)
    source, index = order.place(0, 10**12)
    share = SHORT_PHASE[source] / sum(SHORT_PHASE)
    assert abs(index - share * 10**12) < BLOCK_SAMPLES


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingSamples]:
    """Three datasets, each of one letter of its own."""
    folder = tmp_path_factory.mktemp("toys")
    samples = []
    for number, letter in enumerate("ACG"):
        prefix: Path = folder / letter
        write_dataset(prefix, [np.full(400 + 300 * number, ord(letter), dtype=np.uint8)])
        write_random_boundaries(prefix, longest_patch_bases=8, seed=number)
        samples.append(TrainingSamples(prefix, strands="forward", seed=number))
    return samples


def test_more_sources_than_a_byte_counts(toys):
    parts = [MixturePart(1.0 + number % 3, toys[number % 3]) for number in range(300)]
    samples = MixtureSamples(parts, seed=4)
    letters = Counter(chr(samples.find(0, 64, index).read().bases[0]) for index in range(1200))
    expected = {letter: 1200 * weight / 6 for letter, weight in zip("ACG", (1, 2, 3), strict=True)}
    assert all(abs(letters[letter] - wanted) < 90 for letter, wanted in expected.items())
    order = MixtureOrder(block_counts([part.weight for part in parts]), seed=4)
    assert len({order.place(0, index)[0] for index in range(6000)}) == 300


def test_a_sample_is_its_sources_own(toys):
    samples = MixtureSamples([MixturePart(weight, one) for weight, one in zip((0.5, 0.2, 0.3), toys, strict=True)], 9)
    order = MixtureOrder(block_counts([0.5, 0.2, 0.3]), seed=9)
    for index in range(200):
        source, place = order.place(2, index)
        window, other = samples.find(2, 64, index).read(), toys[source].sample(2, 64, place)
        assert window.bases.tobytes() == other.bases.tobytes()
        assert window.start == other.start
    assert samples.longest_patch_bases == max(one.longest_patch_bases for one in toys)
    with BatchLoader(samples, 0, 64, 4, start_step=3) as first, BatchLoader(samples, 0, 64, 4, start_step=4) as later:
        begun = [next(first).bases for _ in range(8)]
        resumed = [next(later).bases for _ in range(4)]
    assert [bases.tolist() for bases in begun[4:]] == [bases.tolist() for bases in resumed]


@pytest.mark.parametrize(
    ("sources", "says"),
    [
        ([("a/x", 1), ("b/x", 1)], "x: several sources of one name"),
        ([("a/x", 0), ("b/y", 0)], "all weights are 0"),
        ([("a/x", 1), ("b/y", 1e-9)], "y has weight 1e-09, which is none of 1,048,576 samples"),
    ],
)
def test_sources_that_cannot_be_mixed(sources, says):
    configs = [MixtureSourceConfig(path=Path(path), weight=weight) for path, weight in sources]
    with pytest.raises(ValueError, match=says):
        check_sources(configs)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none(weight):
    with pytest.raises(ConfigError, match="weight"):
        MixtureSourceConfig.parse({"path": "a", "weight": weight})


def test_a_name_of_its_own():
    named = [
        MixtureSourceConfig(path=Path("a/x"), weight=1, name="one"),
        MixtureSourceConfig(path=Path("b/x"), weight=1),
    ]
    check_sources(named)
    assert [source.name for source in named] == ["one", "x"]
