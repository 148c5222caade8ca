"""Classes of bases against searches that try everything."""

from dataclasses import replace

import numpy as np
import pytest

from hyena_blt_savanna.data.gff import Coding
from hyena_blt_savanna.nucleotides import BASES
from hyena_blt_savanna.patching.inspection_composition import base_classes, compose, homopolymers, tandem_repeats
from hyena_blt_savanna.patching.inspection_stretch import Stretch
from hyena_blt_savanna.patching.rules import StaticRule
from hyena_blt_savanna.testing.toy_genomes import random_genome


def tandem_by_trying(text):
    """Every unit at every place, as many whole copies as there are, and what follows of one more."""
    found = [False] * len(text)
    for unit_bases in range(2, 7):
        for start in range(len(text) - 3 * unit_bases + 1):
            unit = text[start : start + unit_bases]
            if set(unit) - set("ACGT") or len(set(unit)) == 1 or text[start : start + 3 * unit_bases] != 3 * unit:
                continue
            stop = start + 3 * unit_bases
            while stop < len(text) and text[stop] == text[stop - unit_bases]:
                stop += 1
            found[start:stop] = [True] * (stop - start)
    return found


def homopolymers_by_trying(text):
    found = [False] * len(text)
    for start in range(len(text) - 4):
        if text[start] in "ACGT" and text[start : start + 5] == 5 * text[start]:
            found[start : start + 5] = [True] * 5
    return found


def check_repeats(bases):
    text = bases.tobytes().decode().upper()
    assert tandem_repeats(bases).tolist() == tandem_by_trying(text)
    assert homopolymers(bases).tolist() == homopolymers_by_trying(text)


@pytest.mark.parametrize("num_letters", [1, 2, 3, 4])
def test_repeats_equal_a_search_that_tries_everything(num_letters):
    rng = np.random.default_rng(num_letters)
    letters = np.frombuffer(BASES[:num_letters] + b"Nacgt"[: num_letters + 1], np.uint8)
    for _ in range(30):
        check_repeats(rng.choice(letters, size=int(rng.integers(0, 80))))
    check_repeats(random_genome(3000, num_letters, num_unknown_runs=2, num_iupac=5))


@pytest.mark.parametrize(
    ("text", "tandem"),
    [
        ("GATATATG", 6 * [1]),
        ("CCAGCAGCAGCATT", 11 * [1]),
        ("AAAAAAAAAA", []),
        ("CACACNACACA", []),
        ("ACGTACGTACGTAC", 14 * [1]),
        ("acACaC", 6 * [1]),
    ],
)
def test_tandem_repeats_by_hand(text, tandem):
    assert tandem_repeats(np.frombuffer(text.encode(), np.uint8)).sum() == len(tandem)
    check_repeats(np.frombuffer(text.encode(), np.uint8))


@pytest.fixture
def stretch():
    bases = random_genome(5000, 4, num_unknown_runs=4)
    rng = np.random.default_rng(1)
    starts = np.flatnonzero(rng.random(5000) < 0.2)
    return Stretch(
        title="toy",
        first=1,
        bases=bases,
        entropies=rng.random(5000).astype(np.float32),
        starts=starts,
        lengths=np.diff(np.append(starts, 5000)).astype(np.int32),
        rule=StaticRule(),
    )


def test_gc_quarters_are_those_of_windows_of_128(stretch):
    classes = base_classes(stretch)
    quarters = [name for name in classes if name.startswith("GC")]
    contents = {}
    for start in range(0, 5000 - 127, 128):
        text = stretch.bases[start : start + 128].tobytes().decode().upper()
        known = sum(text.count(base) for base in "ACGT")
        inside = [classes[name][start : start + 128] for name in quarters]
        if known * 2 < 128:
            assert not any(mask.any() for mask in inside)
            continue
        assert [int(mask.all()) + int(mask.any()) for mask in inside].count(2) == 1
        contents[start] = (
            (text.count("G") + text.count("C")) / known,
            [bool(mask.all()) for mask in inside].index(True),
        )
    assert not any(classes[name][5000 // 128 * 128 :].any() for name in quarters)
    edges = np.quantile([gc for gc, _ in contents.values()], [0.25, 0.5, 0.75])
    for gc, quarter in contents.values():
        assert quarter == sum(edge < gc for edge in edges)


def test_figures_of_classes_equal_plain_counting(stretch):
    rng = np.random.default_rng(2)
    coding = Coding(rng.integers(0, 4, 5000).astype(np.uint8), rng.integers(-1, 3, 5000).astype(np.int8))
    stretch = replace(stretch, coding=coding)
    other = np.arange(0, 5000, 7)
    composition = compose(stretch, {"this": stretch.starts, "other": other})
    classes = base_classes(stretch)
    assert list(composition) == list(classes)
    expected = {
        "everything": lambda i: True,
        "coding": lambda i: coding.strands[i] > 0,
        "coding, forward strand": lambda i: coding.strands[i] == 1,
        "coding, reverse strand": lambda i: coding.strands[i] == 2,
        "forward codons, second base": lambda i: coding.strands[i] == 1 and coding.codon_places[i] == 1,
        "reverse codons, third base": lambda i: coding.strands[i] == 2 and coding.codon_places[i] == 2,
        "not coding": lambda i: coding.strands[i] == 0,
        "soft-masked": lambda i: chr(stretch.bases[i]).islower(),
        "not soft-masked": lambda i: chr(stretch.bases[i]).isupper(),
        "letters other than A, C, G, T": lambda i: chr(stretch.bases[i]).upper() not in "ACGT",
    }
    for name, belongs in expected.items():
        inside = {i for i in range(5000) if belongs(i)}
        found = composition[name]
        assert found.num_bases == len(inside)
        assert found.share == len(inside) / 5000
        assert found.mean_nats == pytest.approx(np.mean([float(stretch.entropies[i]) for i in inside]))
        assert found.bases_per_cut["this"] == pytest.approx(len(inside) / len(inside & set(stretch.starts.tolist())))
        assert found.bases_per_cut["other"] == pytest.approx(len(inside) / len(inside & set(other.tolist())))


def test_classes_without_bases_are_left_out_and_those_without_cuts_are_infinite():
    bases = np.frombuffer(b"ACGTTTTTTGCA", np.uint8)
    stretch = Stretch("toy", 1, bases, np.ones(12, np.float32), np.array([0]), np.array([12]), StaticRule())
    composition = compose(stretch, {"this": stretch.starts})
    assert list(composition) == ["everything", "homopolymers"]
    assert composition["homopolymers"].bases_per_cut["this"] == np.inf
