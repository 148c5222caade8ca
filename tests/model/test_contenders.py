"""The contenders of the benchmark, from the very files that it trains: causality, and what is the same in all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.config import merge
from hyena_blt_savanna.evaluation.native_checkpoint import patch_places
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import StaticRule
from hyena_blt_savanna.training.model_config import ModelConfig

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "configs" / "model" / "quickstart.yaml", *sorted((ROOT / "configs/quality/models").glob("*.yaml"))]
EXPECTED = {"isotropic", "isotropic_no_tables", "transformer", "hyenadna", "hnet", "kmer_tokens"}
NUM_BASES = 240


def config_of(path: Path) -> Any:
    return TypeAdapter(ModelConfig).validate_python(merge([path])["model"])


def build(path: Path) -> nn.Module:
    """In evaluation mode, with no weight that hides a dependence by being zero."""
    torch.manual_seed(0)
    model = config_of(path).build()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.numel() and weight.abs().max() == 0:
                weight.normal_(std=0.3)
    return model.double().eval()


def cut(config: Any, bases: Tensor) -> Tensor:
    """Patches of each row, found anew from its bases: int [B, P]; the byte in front is one of its own."""
    if patch_places(config) is None:
        return torch.ones_like(bases)
    _, longest = patch_places(config)
    num_bases = min(longest, 6)
    patcher = Patcher(None, StaticRule(patch_bases=num_bases, max_patch_bases=num_bases))
    rows = [[1, *patcher.segment_sequence(row[1:].astype(np.uint8))] for row in bases.numpy()]
    return torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows])


def random_bases() -> Tensor:
    torch.manual_seed(1)
    bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (1, NUM_BASES))]
    # A run of N forces a boundary after its first letter, and spoils a word.
    bases[0, 100:104] = ord("N")
    bases[0, 0] = 0
    return bases


def test_all_are_there() -> None:
    assert {path.stem for path in FILES} >= EXPECTED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_changing_a_base_changes_no_logit_before_it(path: Path) -> None:
    model, bases = build(path), random_bases()
    places = [1, 2, 5, 37, 99, 100, 102, 103, 104, 150, 238, 239]
    rows = bases.repeat(1 + len(places), 1)
    for row, place in enumerate(places, start=1):
        rows[row, place] = ord("A") if rows[row, place] != ord("A") else ord("C")
    with torch.no_grad():
        logits = model(rows, cut(model.config, rows))
    for row, place in enumerate(places, start=1):
        difference = (logits[row] - logits[0]).abs().amax(-1)
        assert difference[:place].max() < 1e-9
        assert difference[place] > 1e-7


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_later_bases_are_not_read_at_all(path: Path) -> None:
    """The logits of a prefix are those of the whole: nothing behind it leaks by its length or its kind."""
    model, bases = build(path), random_bases()
    with torch.no_grad():
        whole = model(bases, cut(model.config, bases))
        for length in (61, 102, 181):
            lengths = cut(model.config, bases[:, :length])
            # The last patch is not finished as long as nothing is known of the next base.
            if patch_places(model.config) is not None:
                lengths[0, -1] = 0
            torch.testing.assert_close(model(bases[:, :length], lengths)[:, :-1], whole[:, : length - 1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_training_gives_the_logits_of_evaluation(path: Path) -> None:
    model, bases = build(path), random_bases()
    lengths = cut(model.config, bases)
    with torch.no_grad():
        evaluated = model(bases, lengths)
        trained = model.train()(bases, lengths)
    assert isinstance(evaluated, Tensor)
    assert torch.equal(trained, evaluated)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""Where models run. On a CPU the tests below compare its arithmetic of 32 bits with that of 64."""


def step_of(model: nn.Module, bases: Tensor, lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a weighted sum of them; float64 on the CPU."""
    model.zero_grad()
    device = next(model.parameters()).device
    logits = model(bases.to(device), lengths.to(device))
    weights = torch.sin(torch.arange(logits.numel())).view(logits.shape).to(device)
    (logits.float() * weights).sum().backward()
    gradients = {name: each.grad.double().cpu() for name, each in model.named_parameters() if each.grad is not None}
    return logits.detach().double().cpu(), gradients


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm().clamp(min=1e-30))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_step_on_every_device(path: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    model, bases = build(path), random_bases()
    lengths = cut(model.config, bases)
    exact, exact_gradients = step_of(model, bases, lengths)
    model = model.float().to(device)
    logits, gradients = step_of(model, bases, lengths)
    assert relative_error(logits, exact) < 1e-5
    assert gradients.keys() == exact_gradients.keys()
    for name, gradient in gradients.items():
        assert relative_error(gradient, exact_gradients[name]) < 2e-4, name
    with torch.autocast(device, torch.bfloat16):
        narrow, _ = step_of(model, bases, lengths)
    assert 1e-4 < relative_error(narrow, exact) < 5e-2


@contextmanager
def recorded_attention() -> Iterator[list[dict[str, Any]]]:
    calls: list[dict[str, Any]] = []
    original = functional.scaled_dot_product_attention

    def record(*arguments: Any, **named: Any) -> Tensor:
        assert len(arguments) == 3
        calls.append(named)
        return original(*arguments, **named)

    functional.scaled_dot_product_attention = record
    try:
        yield calls
    finally:
        functional.scaled_dot_product_attention = original


def test_the_transformer_attends_without_a_mask() -> None:
    """So that a fused kernel takes it, in memory linear in the length."""
    model, bases = build(ROOT / "configs/quality/models/transformer.yaml"), random_bases()
    with recorded_attention() as calls, torch.no_grad():
        model(bases)
    assert calls == [{"is_causal": True}] * 4


def test_what_is_the_same_in_all() -> None:
    """Global width and depth, and the tables where they are meant to be the same."""
    configs = {path.stem: config_of(path) for path in FILES}
    quickstart = configs["quickstart"]
    stacks = {
        "isotropic": configs["isotropic"].stack,
        "isotropic_no_tables": configs["isotropic_no_tables"].stack,
        "hnet": configs["hnet"].main_network,
        "kmer_tokens": configs["kmer_tokens"].global_model,
    }
    for name, stack in stacks.items():
        assert stack == quickstart.global_model, name
    for name in ("transformer", "hyenadna"):
        assert configs[name].stack.width == quickstart.global_model.width
        assert len(configs[name].stack.blocks) == len(quickstart.global_model.blocks)
    for name in ("isotropic", "hnet"):
        assert configs[name].kmers == quickstart.kmers
    for name in ("isotropic_no_tables", "transformer", "hyenadna"):
        assert configs[name].kmers is None
    # Nobody pays for logits of bytes that are never scored.
    for name in ("isotropic", "isotropic_no_tables", "transformer", "hyenadna"):
        assert configs[name].head == "scored"
