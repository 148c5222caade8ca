"""Figures of a stretch against plain counting, and agreement of rules against sets."""

import itertools
import json
import logging

import numpy as np
import pytest

from hyena_blt_savanna.data.gff import Coding
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.inspection import THIS, inspect
from hyena_blt_savanna.patching.inspection_rules import RULE_CLASSES, Cutting, agreements, cut_by_rules
from hyena_blt_savanna.patching.inspection_stretch import (
    InspectionError,
    Stretch,
    in_windows,
    information,
    summarise,
    window_width,
)
from hyena_blt_savanna.patching.inspection_text import as_text, list_patches, show_bases
from hyena_blt_savanna.patching.patcher import DEFAULT_PATCHER
from hyena_blt_savanna.patching.rules import BudgetRule, StaticRule
from hyena_blt_savanna.testing.toy_genomes import random_genome

RULE = BudgetRule(budget_nats=5.2, max_patch_bases=12)


def stretch_of(bases, rule=RULE, first=1, coding=None, calibrated=None):
    entropies = DEFAULT_PATCHER.entropy_model.entropies(bases)
    lengths = cut(bases, entropies, rule)
    return Stretch(
        "a toy", first, bases, entropies, np.cumsum(lengths) - lengths, lengths, rule, calibrated, coding, ("A note.",)
    )


@pytest.fixture(scope="module")
def toy():
    bases = random_genome(20_000, 5, num_unknown_runs=2, num_iupac=9)
    rng = np.random.default_rng(0)
    coding = Coding(rng.integers(0, 4, 20_000).astype(np.uint8), rng.integers(-1, 3, 20_000).astype(np.int8))
    return stretch_of(bases, first=1001, coding=coding, calibrated=4.0)


def patches_of(stretch):
    """The patches as lists of positions."""
    edges = [*stretch.starts.tolist(), len(stretch.bases)]
    return [list(range(a, b)) for a, b in itertools.pairwise(edges)]


def test_a_summary_equals_plain_counting(toy):
    patches = patches_of(toy)
    lengths = [len(patch) for patch in patches]
    nats = [sum(float(toy.entropies[i]) for i in patch) for patch in patches]
    found = summarise(toy)
    assert found.num_patches == len(patches)
    assert found.mean_bases == pytest.approx(np.mean(lengths))
    assert found.std_bases == pytest.approx(np.std(lengths))
    assert found.share_of_single_bases == lengths.count(1) / len(lengths) > 0
    assert found.share_at_maximum == lengths.count(12) / len(lengths) > 0
    assert found.mean_nats == pytest.approx(np.mean(nats))
    assert found.std_nats == pytest.approx(np.std(nats))
    known = [len(patch) for patch in patches if patch[0] == 0 or toy.bases[patch[0] - 1] in b"ACGTacgt"]
    assert len(known) < len(lengths)
    assert found.drift == pytest.approx(np.mean(known) / 4.0 - 1)
    ordered = np.sort(toy.entropies)
    for share, value in found.entropy_quantiles.items():
        assert (ordered <= value + 1e-6).mean() == pytest.approx(share, abs=0.01)


def test_windows_equal_plain_counting(toy):
    repeats = np.arange(20_000) % 3 == 0
    found = in_windows(toy, repeats, 700)
    assert len(found.middles) == 20_000 // 700
    for number, middle in enumerate(found.middles):
        inside = range(700 * number, 700 * number + 700)
        letters = bytes(toy.bases[i] for i in inside).decode()
        upper = letters.upper()
        assert middle == 1001 + np.mean(inside)
        assert found.bases_per_cut[number] == pytest.approx(700 / sum(int(i in inside) for i in toy.starts))
        assert found.nats[number] == pytest.approx(np.mean([float(toy.entropies[i]) for i in inside]))
        known = sum(upper.count(base) for base in "ACGT")
        gc = (upper.count("G") + upper.count("C")) / known if known else np.nan
        assert found.gc[number] == pytest.approx(gc, nan_ok=True)
        assert found.soft_masked[number] == pytest.approx(sum(letter.islower() for letter in letters) / 700)
        assert found.known[number] == known / 700
        assert found.repeats[number] == pytest.approx(sum(int(repeats[i]) for i in inside) / 700)


def test_windows_of_unknown_letters_have_no_gc_content():
    found = in_windows(stretch_of(np.frombuffer(b"N" * 40 + b"GGGGAAAA", np.uint8)), np.zeros(48, bool), 8)
    assert np.isnan(found.gc[:5]).all()
    assert found.gc[5] == 0.5


@pytest.mark.parametrize(
    ("num_bases", "width"), [(1, 1), (7, 7), (300, 10), (3001, 20), (6001, 50), (15_001, 100), (4_639_675, 20_000)]
)
def test_windows_have_round_widths(num_bases, width):
    assert window_width(num_bases) == width


def test_a_piece_is_what_a_piece_of_everything_is(toy):
    piece = toy.piece(3000, 5000)
    assert piece.first == 4001
    assert np.array_equal(piece.bases, toy.bases[3000:5000])
    assert np.array_equal(piece.coding.strands, toy.coding.strands[3000:5000])
    inside = [i for i, start in enumerate(toy.starts) if 3000 <= start < 5000]
    assert np.array_equal(piece.starts, [toy.starts[i] - 3000 for i in inside])
    assert np.array_equal(piece.lengths, [toy.lengths[i] for i in inside])


def test_a_sample_is_made_of_whole_pieces():
    bases = random_genome(1_000_000, 1)
    coding = Coding((bases & 3).astype(np.uint8), (bases % 3).astype(np.int8))
    stretch = stretch_of(bases, coding=coding)
    assert stretch.sampled(1_000_000) is stretch
    sample = stretch.sampled(200_000)
    assert len(sample.bases) == 3 * 65_536
    begins = [0, (1_000_000 - 65_536) // 2, 1_000_000 - 65_536]
    inside = np.concatenate([np.arange(begin, begin + 65_536) for begin in begins])
    assert np.array_equal(sample.bases, stretch.bases[inside])
    assert np.array_equal(sample.entropies, stretch.entropies[inside])
    assert np.array_equal(sample.coding.strands, coding.strands[inside])
    assert np.array_equal(sample.coding.codon_places, coding.codon_places[inside])
    is_start = np.isin(np.arange(len(bases)), stretch.starts)
    assert np.array_equal(np.isin(np.arange(len(inside)), sample.starts), is_start[inside])


def test_rules_reach_the_wanted_mean_with_the_bounds_of_this_cut(toy):
    cuttings = cut_by_rules(toy, list(RULE_CLASSES), 5.0)
    assert set(cuttings) == set(RULE_CLASSES) - {"byte"}
    for kind, cutting in cuttings.items():
        assert cutting.rule.kind == kind
        assert cutting.lengths.mean() == pytest.approx(5, rel=0.05), kind
        assert cutting.lengths.max() <= 12
        assert cutting.lengths.sum() == len(toy.bases)
        assert np.array_equal(cutting.starts, [0, *np.cumsum(cutting.lengths)[:-1]])


def test_a_rule_that_cannot_reach_the_mean_is_left_out(toy, caplog):
    with caplog.at_level(logging.WARNING):
        cuttings = cut_by_rules(toy, ["static", "jump", "byte"], 2.0)
    assert list(cuttings) == ["static"]
    assert "left out: rule 'jump'" in caplog.text
    assert list(cut_by_rules(toy, ["byte"], 1.2)) == ["byte"]


def test_a_rule_that_does_not_exist_is_named(toy):
    with pytest.raises(InspectionError, match=r"no rule is named 'budgets'; known: static, .*budget"):
        cut_by_rules(toy, ["budgets"], 5.0)


def test_agreement_is_a_matter_of_sets():
    bases = np.frombuffer(b"ACGTNNACGTACGTACGTAC", np.uint8)
    # A patch is forced at 0, and at 5, after the first N.
    a, b = [0, 3, 5, 8, 10, 14], [0, 4, 5, 8, 14, 15, 16]
    cuttings = {name: Cutting(StaticRule(), np.array(starts), np.array([])) for name, starts in (("a", a), ("b", b))}
    found = agreements(bases, cuttings | {"c": cuttings["a"]})
    free_a, free_b = set(a) - {0, 5}, set(b) - {0, 5}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["a", "b"].share == pytest.approx(len(free_a & free_b) / ((len(free_a) + len(free_b)) / 2))
    assert found["a", "b"].by_chance == pytest.approx(4 * 5 / 18 / 4.5)
    assert found["a", "c"].share == 1


def test_random_cuttings_agree_by_chance():
    rng = np.random.default_rng(3)
    bases = random_genome(50_000, 2)
    cuttings = {}
    for name, rate in (("rare", 0.05), ("frequent", 0.2)):
        cuttings[name] = Cutting(StaticRule(), np.flatnonzero(rng.random(50_000) < rate), np.array([]))
    found = agreements(bases, cuttings)["rare", "frequent"]
    assert found.share == pytest.approx(found.by_chance, rel=0.1)


def test_information_is_what_the_entropies_of_a_patch_sum_to():
    nats = np.array([1, 0.5, 0.25, 1, 1], dtype=np.float32)
    assert information(nats, np.array([0, 2, 3])).tolist() == [1.5, 0.25, 2.0]


def test_bases_are_shown_with_cuts_and_entropies_under_them(toy):
    piece = toy.piece(95, 240)
    lines = list(show_bases(piece, 50))
    assert len(lines) == 3 * 3 + 1
    shown = []
    for ticks, letters, bars in zip(lines[:-1:3], lines[1:-1:3], lines[2:-1:3], strict=True):
        number, _, text = letters.partition("  ")
        offset = int(number.replace(",", "")) - piece.first
        column, base = len(number) + 2, offset
        for letter in text:
            if letter == "|":
                assert base in piece.starts
            else:
                assert letter == chr(piece.bases[base])
                assert bars[column] in "▁▂▃▄▅▆▇█"
                assert (ticks[column : column + 1] == "╷") == ((piece.first + base) % 10 == 0)
                base += 1
            column += 1
        shown.append(base - offset)
        assert text.count("|") == sum(int(offset <= start < base) for start in piece.starts)
    assert shown == [50, 50, 45]
    low, high = np.argmin(piece.entropies[:50]), np.argmax(piece.entropies[:50])
    letters, bars = lines[1], lines[2]
    columns = [i for i in range(letters.index("  ") + 2, len(letters)) if letters[i] != "|"]
    assert (bars[columns[low]], bars[columns[high]]) == ("▁", "█")


def test_patches_are_listed_with_their_bases(toy):
    piece = toy.piece(0, 60)
    _, *lines = list_patches(piece)
    for line, start, length in zip(lines, piece.starts, piece.lengths, strict=True):
        number, bases, nats, letters = line.split()
        assert (int(number.replace(",", "")), int(bases)) == (1001 + start, length)
        stop = min(60, start + length)
        assert letters.rstrip("…") == piece.bases[start:stop].tobytes().decode()
        assert float(nats) == pytest.approx(piece.entropies[start:stop].sum(), abs=1e-3)


def test_everything_together(toy):
    kinds = ["static", "entropy", "monotonic", "budget"]
    found = inspect(toy, kinds)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(plain["cuttings"]) == [THIS, *kinds]
    assert plain["cuttings"][THIS]["mean_bases"] == pytest.approx(toy.lengths.mean())
    assert plain["summary"]["num_patches"] == len(toy.lengths)
    text = as_text(found)
    assert "A note." in text
    assert "20,000 bases: give a region" in text
    assert f"{100 * summarise(toy).drift:+.2f} % in mean length, calibrated to 4.000" in text
    # The budget that calibration finds again cuts as this one does, in the example too.
    assert plain["cuttings"]["budget"]["mean_bases"] == pytest.approx(plain["cuttings"][THIS]["mean_bases"], rel=1e-3)
    begin = found.example.first - toy.first
    assert b"N" not in found.example.bases.tobytes().upper()
    for name, cutting in found.cuttings.items():
        inside = cutting.starts[(cutting.starts >= begin) & (cutting.starts < begin + 150)] - begin
        assert np.array_equal(found.example_starts[name], inside), name


def test_sampled_rules_cut_the_example_where_it_lies():
    stretch = stretch_of(random_genome(400_000, 8), StaticRule(patch_bases=4))
    found = inspect(stretch, ["static"], num_sampled_bases=70_000)
    assert len(found.sample.bases) == 65_536
    begin = found.example.first - 1
    assert begin == (400_000 - 150) // 2
    assert set(np.diff(found.example_starts["static"])) == {4}
    assert np.array_equal(found.example_starts[THIS] + begin, np.arange(begin + -begin % 4, begin + 150, 4))
    assert as_text(found).count("sampled from 400,000") == 1


def test_a_stretch_without_a_patch_is_refused(toy):
    with pytest.raises(InspectionError, match="no patch starts in it"):
        inspect(toy.piece(int(toy.starts[5]) + 1, int(toy.starts[6])), [])
