"""The neural entropy model against its network, read plainly: one document at a time, without chunks."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.entropy_grid import ENTROPY_STEP_NATS
from hyena_blt_savanna.nucleotides import UPPER
from hyena_blt_savanna.patching import neural, neural_kernels
from hyena_blt_savanna.patching.entropy_models import (
    EntropyModel,
    EntropyModelError,
    load_entropy_model,
    read_about,
    save_entropy_model,
)
from hyena_blt_savanna.patching.marks import IN_SEQUENCE, IN_TAG, PLACE, START, place_after, states_before
from hyena_blt_savanna.patching.neural import NeuralConfig, NeuralError, NeuralModel
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import BudgetRule
from hyena_blt_savanna.patching.stored_models import StoredModelConfig

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

NETWORK: dict[str, Any] = {
    "stack": {
        "width": 16,
        "num_heads": 2,
        "blocks": ["hyena_se", "attention", "hyena_mr"],
        "hyena": {"mr_taps": 20},
        "attention": {"window": 7},
    },
    "kmers": {"sizes": [2, 4]},
}


def build(chunk_bases: int = 50, precision: str = "fp32", **network: Any) -> NeuralModel:
    tree = {"model": NETWORK | network, "chunk_bases": chunk_bases, "precision": precision}
    config = NeuralConfig.parse(tree)
    torch.manual_seed(3)
    weights = config.model.build().state_dict()
    # Far from uniform: fresh weights have entropies near ln 4 whatever is read.
    grown = {name: weight * (1 if "decay" in name else 2.5) for name, weight in weights.items()}
    return NeuralModel(config, grown)


def stream(seed: int = 0) -> NDArray[np.uint8]:
    """Documents of many lengths, with tags, joins, unknown letters, lower case, none at all."""
    random = np.random.default_rng(seed)

    def letters(length: int) -> bytes:
        return bytes(random.choice(np.frombuffer(b"ACGTACGTACGTacgt", dtype=np.uint8), length))

    documents = [
        letters(90) + b"NNNNNNNNN" + letters(40) + b"RN" + letters(3),
        b"|D__BACTERIA;P__ACGTN|" + letters(61),
        b"",
        letters(1),
        letters(49),
        letters(50),
        letters(51),
        b"N" * 30,
        letters(10) + b"@" + letters(10) + b"#" + letters(101),
        letters(12),
        b"",
        letters(60),
    ]
    return np.frombuffer(b"\0".join(documents), dtype=np.uint8)


def plain_log_probabilities(model: NeuralModel, bases: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[L, 4]: each document is read whole, behind byte 0, by a fresh network in fp64."""
    network = model.config.model.build().double()
    network.load_state_dict({name: torch.from_numpy(weight) for name, weight in model.tensors().items()})
    ends = [-1, *np.flatnonzero(bases == 0).tolist(), len(bases) - 1]
    rows = []
    for before, end in itertools.pairwise(ends):
        document = UPPER[bases[before + 1 : end + 1]]
        with torch.no_grad():
            logits = network(torch.tensor([[0, *document.tolist()]]))[0, : len(document)]
        rows.append(logits[:, network.class_of_byte[list(b"ACGT")]].log_softmax(-1).numpy())
    return np.concatenate(rows)


def plain_entropies(model: NeuralModel, bases: NDArray[np.uint8]) -> NDArray[np.float64]:
    log_p = plain_log_probabilities(model, bases)
    nats = -(np.exp(log_p) * log_p).sum(1)
    nats[states_before(bases) & PLACE != IN_SEQUENCE] = 0
    return nats


def assert_agree(ours: NDArray[np.float32], theirs: NDArray[Any]) -> None:
    """Within a rounding error and one step of the grid: half a step each, where both lie on it."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 + ENTROPY_STEP_NATS)


@pytest.mark.parametrize(("chunk_bases", "head"), [(7, "tied"), (50, "tied"), (1000, "tied"), (50, "scored")])
def test_entropies_are_those_of_documents_read_whole(chunk_bases: int, head: str) -> None:
    model = build(chunk_bases, head=head)
    bases = stream()
    nats = model.entropies(bases)
    assert nats.dtype == np.float32
    assert_agree(nats, plain_entropies(model, bases))
    assert np.std(nats[nats > 0]) > 0.05
    assert (nats / ENTROPY_STEP_NATS == np.rint(nats / ENTROPY_STEP_NATS)).all()
    assert nats.min() == 0
    assert nats.max() < np.log(4) + ENTROPY_STEP_NATS


def test_before_the_grid_chunks_agree_to_the_fifth_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural, "on_grid", lambda nats: nats.astype(np.float32))
    bases = stream(1)
    expected = plain_entropies(build(), bases)
    for chunk_bases in (5, 64, 4096):
        np.testing.assert_allclose(build(chunk_bases).entropies(bases), expected, rtol=0, atol=1e-5)


def test_reading_in_parts_base_by_base_and_both() -> None:
    model = build()
    bases = stream(2)
    whole = model.entropies(bases)
    for cuts in ([1], [90, 91], [5, 6, 7, 250, 400], list(range(0, 500, 60))):
        stepper = model.stepper()
        assert_agree(np.concatenate([stepper.read(part) for part in np.split(bases, cuts)]), whole)
    stepper = model.stepper()
    pushed = []
    for index, base in enumerate(bases[:250]):
        pushed.append(stepper.next_entropy_nats)
        if index == 200:
            assert_agree(stepper.read(bases[200:201]), whole[200:201])
        else:
            stepper.push(int(base))
    assert_agree(np.array(pushed, dtype=np.float32), whole[:250])
    assert stepper.read(bases[:0]).shape == (0,)
    assert_agree(stepper.read(bases[250:]), whole[250:])


def test_steppers_do_not_meet() -> None:
    model = build()
    one, other = model.stepper(), model.stepper()
    first, second = stream(3), stream(4)
    pairs = [
        (one.read(a), other.read(b)) for a, b in zip(np.array_split(first, 9), np.array_split(second, 9), strict=True)
    ]
    assert_agree(np.concatenate([a for a, _ in pairs]), model.entropies(first))
    assert_agree(np.concatenate([b for _, b in pairs]), model.entropies(second))
    # Nor does a copy meet what it was made of.
    twin, third = one.copy(), stream(5)
    twin.read(third)
    assert_agree(one.read(second), model.entropies(np.concatenate([first, second]))[len(first) :])
    assert_agree(twin.read(first), model.entropies(np.concatenate([first, third, first]))[-len(first) :])


def test_a_reader_that_begins_in_the_midst_of_a_document() -> None:
    model = build()
    # By hand: kmers 3, hyena_se 2 + 6, attention 6, hyena_mr 2 + 19, and the base itself.
    assert model.context_bases == 3 + 8 + 6 + 21 + 1
    bases = np.frombuffer(b"|TAG|", dtype=np.uint8)
    bases = np.concatenate([bases, np.random.default_rng(1).choice(np.frombuffer(b"ACGTN", dtype=np.uint8), 300)])
    whole = model.entropies(bases)
    for place in (39, 100, 250):
        begin = place - model.context_bases
        stepper = model.stepper(place_after([bases[:begin]]))
        stepper.read(bases[begin:place])
        assert_agree(stepper.read(bases[place:]), whole[place:])
    # One base less is not enough everywhere, or the reach would be too long.
    changed = bases.copy()
    at = 60
    changed[at] = ord("A") if bases[at] != ord("A") else ord("C")
    moved = np.flatnonzero(np.abs(model.log_probabilities(changed) - model.log_probabilities(bases)) > 1e-4)
    assert at + 1 < moved.max() <= at + model.context_bases


def test_no_base_looks_ahead() -> None:
    model = build()
    bases = stream(5)
    whole = model.entropies(bases)
    for length in (1, 60, 133, 400):
        assert_agree(model.entropies(bases[:length]), whole[:length])


def test_case_is_not_read() -> None:
    model = build()
    assert (model.entropies(stream()) == model.entropies(UPPER[stream()])).all()


def test_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural, "_READ_BASES", 97)
    model = build()
    bases = stream(6)
    log_p = model.log_probabilities(bases)
    expected = plain_log_probabilities(model, bases)
    in_tag = states_before(bases) & PLACE == IN_TAG
    nats = []
    for index, base in enumerate(UPPER[bases]):
        if base in b"ACGT" and not in_tag[index]:
            np.testing.assert_allclose(log_p[index], expected[index, b"ACGT".index(base)], 1e-5, 1e-5)
            nats.append(expected[index, b"ACGT".index(base)])
        else:
            assert np.isnan(log_p[index])
    assert model.bits_per_base(bases) == pytest.approx(-np.mean(nats) / np.log(2), abs=1e-5)
    with pytest.raises(NeuralError, match="no base A, C, G, T among 3 bytes"):
        model.bits_per_base(np.frombuffer(b"NN@", dtype=np.uint8))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_device_gives_what_the_kernels_of_the_cpu_give(device: str, precision: str) -> None:
    model = build(precision=precision)
    there = model.on(torch.device(device))
    assert there.digest == model.digest
    bases = stream()
    nats, wanted = there.entropies(bases), model.entropies(bases)
    if precision == "fp32":
        np.testing.assert_allclose(nats, wanted, atol=2 * ENTROPY_STEP_NATS)
    assert np.abs(nats - wanted).mean() < 0.02
    stepper = there.stepper()
    for base in bases[:40]:
        stepper.push(int(base))
    assert stepper.next_entropy_nats == pytest.approx(nats[40], abs=0.02)
    assert there.log_probabilities(bases[:0]).shape == (0,)


def test_annotation_takes_the_gpu_of_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_entropy_model(build(), tmp_path / "model.safetensors")
    config = StoredModelConfig(path=tmp_path / "model.safetensors")
    taken: list[torch.device] = []
    monkeypatch.setattr(NeuralModel, "on", lambda self, device: taken.append(device) or self)
    config.read("other", 1)
    assert len(taken) == (1 if torch.cuda.is_available() else 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("SLURM_LOCALID", "6")
    config.read("other", 1)
    assert taken[-1] == torch.device("cuda", 2)


def test_bf16_is_near() -> None:
    half, full = build(precision="bf16"), build()
    bases = stream(7)
    difference = np.abs(half.entropies(bases) - full.entropies(bases))
    assert 0 < difference.mean() < 0.02
    assert half.digest != full.digest


def test_storing(tmp_path: Path) -> None:
    model = build()
    path = tmp_path / "model.safetensors"
    save_entropy_model(model, path, {"trained_on": {"data_sha256": "ab", "left_out": [0, 10]}})
    again = load_entropy_model(path)
    assert isinstance(again, NeuralModel)
    assert again.digest == model.digest
    assert again.config == model.config
    assert (again.entropies(stream()) == model.entropies(stream())).all()
    assert read_about(path) == {"trained_on": {"data_sha256": "ab", "left_out": [0, 10]}}
    save_entropy_model(model, path)
    assert read_about(path) == {}
    with pytest.raises(EntropyModelError, match="no such file"):
        read_about(tmp_path / "other.safetensors")
    checked: EntropyModel = model
    Patcher(checked, BudgetRule(budget_nats=8.0)).save(tmp_path / "patcher")
    patcher = Patcher.load(tmp_path / "patcher")
    assert patcher.segment_sequence("ACGT" * 30).sum() == 120


def test_the_digest_reads_no_settings_at_their_defaults() -> None:
    """A setting that is added to a block must not make strangers of the models that were stored before."""
    model = build()
    settings = json.dumps({"model": NETWORK, "precision": "fp32"}, sort_keys=True)
    digest = hashlib.sha256(settings.encode())
    for name, weight in sorted(model.tensors().items()):
        digest.update(name.encode() + weight.astype("<f4").tobytes())
    assert model.digest == digest.hexdigest()


def test_the_digest_is_of_all_that_decides() -> None:
    model = build()
    assert build(chunk_bases=8).digest == model.digest
    tensors = model.tensors()
    tensors["kmers.weight"] = tensors["kmers.weight"].copy()
    tensors["kmers.weight"][3, 0] += 1e-3
    assert NeuralModel.from_tensors(model.config, tensors).digest != model.digest
    assert NeuralModel.from_tensors(model.config, model.tensors()).digest == model.digest
    stack = NETWORK["stack"] | {"attention": {"window": 8}}
    assert build(stack=stack).digest != model.digest


def test_building_leaves_the_generator_alone() -> None:
    model = build()
    before = torch.random.get_rng_state()
    NeuralModel.from_tensors(model.config, model.tensors())
    assert torch.random.get_rng_state().equal(before)


def test_mistakes() -> None:
    model = build()
    tensors = model.tensors()
    del tensors["kmers.weight"]
    with pytest.raises(NeuralError, match=r"not those of the network.*: kmers\.weight$"):
        NeuralModel.from_tensors(model.config, tensors)
    with pytest.raises(NeuralError, match=r"and \d+ more"):
        NeuralModel.from_tensors(model.config, {})
    for block, hint in (("hyena_li", "use hyena_se or hyena_mr"), ("attention", "set stack.attention.window")):
        with pytest.raises(ConfigError, match=hint):
            NeuralConfig.parse({"model": {"stack": {"width": 8, "blocks": [block]}}})


def test_the_first_base_of_a_stream() -> None:
    model = build()
    assert model.stepper().next_entropy_nats == model.entropies(stream())[0] > 0
    assert model.stepper(IN_TAG).next_entropy_nats == 0
    assert model.stepper(START).read(stream()[:0]).dtype == np.float32


@pytest.mark.parametrize("inside", [True, False])
def test_neither_threads_nor_the_kind_of_norm_matter(inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = NETWORK["stack"] | {"norm": {"epsilon": 0.3, "epsilon_inside_root": inside}}
    model = build(stack=stack)
    bases = stream(8)
    expected = plain_entropies(model, bases)
    num_threads = torch.get_num_threads()
    monkeypatch.setattr(neural_kernels, "_PRODUCTS_A_THREAD", 1)
    torch.set_num_threads(3)
    try:
        nats = model.entropies(bases)
    finally:
        torch.set_num_threads(num_threads)
    assert_agree(nats, expected)
