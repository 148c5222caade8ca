"""The patcher: what users call, what is stored, and boundaries while generating."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data import whole_files
from hyena_blt_savanna.data.entropy_grid import ENTROPY_STEP_NATS
from hyena_blt_savanna.data.errors import DiskFullError
from hyena_blt_savanna.patching import Patcher, compute_entropy, segment_sequence
from hyena_blt_savanna.patching.adaptive import AdaptiveConfig, AdaptiveModel
from hyena_blt_savanna.patching.cutting import cut
from hyena_blt_savanna.patching.entropy_models import (
    EntropyModel,
    EntropyModelError,
    load_entropy_model,
    read_about,
    rebuild_entropy_model,
    save_entropy_model,
)
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import MODEL_FILE, PATCHER_FILE, SequenceError
from hyena_blt_savanna.patching.rules import (
    BudgetRule,
    ByteRule,
    EntropyRule,
    JumpRule,
    MonotonicRule,
    PatchRuleConfig,
    PatchRuleError,
    StaticRule,
)
from hyena_blt_savanna.testing.toy_streams import as_bytes, markov_bases, random_bases, stream_with_marks

MODEL = NgramConfig(order=3, smoothing_folds=2).fit(markov_bases(20_000, 4)[0])
RULES = [
    BudgetRule(budget_nats=6.0, min_patch_bases=2),
    EntropyRule(threshold_nats=0.9, max_patch_bases=12),
    StaticRule(patch_bases=5),
    MonotonicRule(rise_nats=0.2),
    JumpRule(threshold_nats=0.8, rise_nats=0.0),
    ByteRule(),
]


def test_a_sequence_may_be_text_bytes_or_an_array_of_either_case() -> None:
    text = "ACGTNNACCA@GGTTTACGACGT"
    patcher = Patcher(MODEL, RULES[0])
    expected = MODEL.entropies(as_bytes(text))
    for sequence in (text, text.lower(), text.encode(), as_bytes(text)):
        np.testing.assert_array_equal(patcher.compute_entropy(sequence), expected)
        np.testing.assert_array_equal(patcher.segment_sequence(sequence), cut(as_bytes(text), expected, RULES[0]))


def test_a_bare_sequence_can_be_cut_without_a_fitted_model() -> None:
    sequence = bytes(random_bases(4000, 1)).decode()
    entropies, lengths = compute_entropy(sequence), segment_sequence(sequence)
    assert entropies.shape == (4000,)
    assert entropies[0] == pytest.approx(np.log(4), abs=ENTROPY_STEP_NATS / 2)
    assert lengths.sum() == 4000
    assert 7.9 < lengths.mean() < 8.6
    # What repeats can be foreseen, and its patches grow to the maximum.
    assert segment_sequence(sequence[:300] * 60)[-20:-1].tolist() == [16] * 19


def test_boundaries_of_a_bare_sequence_are_causal() -> None:
    bases = random_bases(3000, 2)
    changed = bases.copy()
    changed[1500:] = random_bases(1500, 3)
    before, after = (np.cumsum(segment_sequence(sequence)) for sequence in (bases, changed))
    assert before[before <= 1500].tolist() == after[after <= 1500].tolist()


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("", "empty"),
        (b"", "empty"),
        (5, "not int"),
        (None, "not NoneType"),
        (["A"], "not list"),
        (np.zeros((2, 2), np.uint8), r"not uint8 \[2, 2\]"),
        (np.zeros(3), r"not float64 \[3\]"),
        ("ACGE", "'E' at position 3"),
        ("ACé", "'é' at position 2"),
        ("AC GT\n", "' ' at position 2"),
        ("|E;|ACU", "'U' at position 6.*write T for U"),
        (b"AC\xffG", "'ÿ' at position 2"),
    ],
)
def test_what_is_no_sequence_is_refused(sequence: object, message: str) -> None:
    with pytest.raises(SequenceError, match=message):
        compute_entropy(sequence)  # type: ignore[arg-type]
    with pytest.raises(SequenceError, match=message):
        segment_sequence(sequence)  # type: ignore[arg-type]


@given(st.integers(0, 100), st.sampled_from(RULES))
@settings(max_examples=60)
def test_boundaries_while_generating_equal_those_afterwards(seed: int, rule: PatchRuleConfig) -> None:
    patcher, stream = Patcher(MODEL, rule), stream_with_marks(seed, 300)
    entropies = patcher.compute_entropy(stream)
    stepper = patcher.stepper()
    assert stepper.next_starts_patch
    starts = []
    for i, base in enumerate(stream.tolist()):
        assert stepper.next_entropy_nats == entropies[i]
        if stepper.next_starts_patch:
            starts.append(i)
        assert stepper.push(base) == stepper.next_starts_patch
    lengths = patcher.segment_sequence(stream)
    assert starts == [0, *np.cumsum(lengths)[:-1].tolist()]


@given(st.integers(0, 100), st.sampled_from(RULES), st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=40)
def test_reading_at_once_equals_reading_base_by_base(seed: int, rule: PatchRuleConfig, cuts: list[int]) -> None:
    """In stretches of any length, while copies go another way."""
    patcher, stream = Patcher(MODEL, rule), stream_with_marks(seed, 300)
    pushed, at_once, since = patcher.stepper(), patcher.stepper(), 0
    for part in np.split(stream, sorted(cuts)):
        at_once.copy().read(stream_with_marks(seed + 1, 50))
        lengths = []
        for base in part.tolist():
            since += 1
            if pushed.push(base):
                lengths.append(since)
                since = 0
        assert at_once.read(part).tolist() == lengths
        assert at_once.next_starts_patch == pushed.next_starts_patch
        assert at_once.next_entropy_nats == pushed.next_entropy_nats


@pytest.mark.parametrize("model", [MODEL, AdaptiveModel(AdaptiveConfig(order=4))])
def test_a_copy_of_a_stepper_knows_nothing_of_the_other(model: EntropyModel) -> None:
    stream = random_bases(400, 8)
    stepper = model.stepper()
    stepper.read(stream[:200])
    twin = stepper.copy()
    twin.read(random_bases(100, 9))
    np.testing.assert_array_equal(stepper.read(stream[200:]), model.entropies(stream)[200:])


def test_a_static_patcher_needs_no_model(tmp_path: Path) -> None:
    patcher = Patcher(None, StaticRule(patch_bases=3))
    assert patcher.segment_sequence("ACGTACGTNACG").tolist() == [3, 3, 3, 3]
    stepper = patcher.stepper()
    assert [stepper.push(base) for base in b"ACGT"] == [False, False, True, False]
    assert stepper.next_entropy_nats == 0.0
    with pytest.raises(PatchRuleError, match="no entropy model"):
        patcher.compute_entropy("ACGT")
    patcher.save(tmp_path / "p")
    assert [path.name for path in (tmp_path / "p").iterdir()] == [PATCHER_FILE]
    assert Patcher.load(tmp_path / "p").rule == patcher.rule


def test_a_rule_that_reads_entropies_needs_a_model_and_a_limit() -> None:
    with pytest.raises(PatchRuleError, match="give an entropy model"):
        Patcher(None, RULES[0])
    with pytest.raises(PatchRuleError, match="no limit yet"):
        Patcher(MODEL, BudgetRule())


@pytest.mark.parametrize("model", [MODEL, AdaptiveModel(AdaptiveConfig(order=4))])
def test_a_patcher_is_stored_whole(tmp_path: Path, model: AdaptiveModel) -> None:
    patcher = Patcher(model, BudgetRule(budget_nats=0.1 + 0.2 + 9, max_patch_bases=20))
    patcher.save(tmp_path)
    loaded = Patcher.load(tmp_path)
    assert loaded.rule == patcher.rule
    assert loaded.describe() == patcher.describe()
    stream = stream_with_marks(3)
    np.testing.assert_array_equal(loaded.compute_entropy(stream), patcher.compute_entropy(stream))
    np.testing.assert_array_equal(segment_sequence(stream, tmp_path), segment_sequence(stream, patcher))
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Patcher(MODEL, RULES[0]).save(tmp_path / "patcher")
    return tmp_path / "patcher"


def test_a_missing_patcher_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/patcher\.yaml: no such file; give the folder of a patcher"):
        Patcher.load(tmp_path / "nowhere")


def test_a_missing_or_damaged_model_is_named(folder: Path) -> None:
    path = folder / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(EntropyModelError, match=f"{MODEL_FILE}: not a whole safetensors file"):
        Patcher.load(folder)
    path.unlink()
    with pytest.raises(EntropyModelError, match=f"{MODEL_FILE}: no such file"):
        Patcher.load(folder)


def test_changed_counts_are_found_by_the_digest(folder: Path) -> None:
    path = folder / MODEL_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(EntropyModelError, match="not those of its digest"):
        Patcher.load(folder)


def test_a_model_is_rebuilt_from_its_parts() -> None:
    bases = random_bases(500, 3)
    rebuilt = rebuild_entropy_model("ngram", MODEL.config.to_dict(), MODEL.tensors(), MODEL.digest)
    np.testing.assert_array_equal(rebuilt.entropies(bases), MODEL.entropies(bases))
    with pytest.raises(EntropyModelError, match="no entropy model of kind 'oracle'; known: ngram, adaptive, neural"):
        rebuild_entropy_model("oracle", MODEL.config.to_dict(), MODEL.tensors(), MODEL.digest)


def test_the_model_of_another_patcher_is_refused(folder: Path) -> None:
    save_entropy_model(NgramConfig(order=2).fit(random_bases(5000, 3)), folder / MODEL_FILE)
    with pytest.raises(EntropyModelError, match=r"was written for.*copy both files from one place"):
        Patcher.load(folder)


def test_another_format_version_is_refused(folder: Path) -> None:
    tree = yaml.safe_load((folder / PATCHER_FILE).read_text())
    (folder / PATCHER_FILE).write_text(yaml.safe_dump(tree | {"format_version": 2}))
    with pytest.raises(EntropyModelError, match="format_version 2; this code reads 1"):
        Patcher.load(folder)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"format_version": "9", "kind": "ngram"}, {}, "format_version 9, kind ngram"),
        ({"format_version": "1", "kind": "oracle"}, {}, "kind oracle; this code reads.*ngram, adaptive"),
        ({"format": "pt"}, {}, "format_version None"),
        ({"format_version": "1", "kind": "ngram"}, {}, r"model\.safetensors: its metadata lack config and digest"),
        ({"format_version": "1", "kind": "ngram", "config": "{}"}, {}, "its metadata lack digest"),
        ({"format_version": "1", "kind": "ngram", "config": "{", "digest": ""}, {}, r"model\.safetensors: Expecting"),
        (
            {"format_version": "1", "kind": "ngram", "config": '{"ordr": 2}', "digest": ""},
            {},
            r"model\.safetensors: its settings(.|\n)*did you mean 'order'",
        ),
        (
            {"format_version": "1", "kind": "ngram", "config": '{"order": 2}', "digest": ""},
            {"counts": np.zeros((4, 4), np.uint32)},
            r"counts.*\(4, 4\).*order 2",
        ),
    ],
)
def test_a_file_of_something_else_is_refused(
    tmp_path: Path, metadata: dict[str, str], tensors: dict[str, np.ndarray], message: str
) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "model.safetensors", metadata)
    with pytest.raises(EntropyModelError, match=message):
        load_entropy_model(tmp_path / "model.safetensors")


def test_what_is_said_about_a_model_must_be_json(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({}, tmp_path / "model.safetensors", {"about": "{"})
    with pytest.raises(EntropyModelError, match=r"model\.safetensors: its `about` is not JSON"):
        read_about(tmp_path / "model.safetensors")


def test_a_full_disk_leaves_no_patcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_files.os, "fsync", full)
    with pytest.raises(DiskFullError, match=MODEL_FILE):
        Patcher(MODEL, RULES[0]).save(tmp_path)
    assert not list(tmp_path.iterdir())
