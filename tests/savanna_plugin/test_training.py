"""Training through `savanna.training.pretrain` is training here: the same losses on the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from hyena_blt_savanna.conversion.convert import Conversion, convert
from hyena_blt_savanna.data.batches import EvaluationWindows, read_batch
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.training.loss import scored_weight, weighted_nats

if TYPE_CHECKING:
    from hyena_blt_savanna.testing.savanna_runs import Curve

Runs = tuple[Path, dict[str, Any]]
TOLERANCE = 1e-5


def assert_same(run: Curve, losses: list[float], norms: list[float]) -> None:
    assert run.losses == pytest.approx(losses, rel=0, abs=TOLERANCE)
    # AdamW hides a wrong scale of gradients; their norms don't.
    assert run.norms[:2] == pytest.approx(norms[:2], rel=TOLERANCE)
    # From the first step with a rate above nothing on, it turns rounding into steps of full size.
    assert run.norms == pytest.approx(norms, rel=1e-3)


def test_twenty_steps_are_those_of_our_own_loop(runs: Runs) -> None:
    _, found = runs
    losses, norms = found["reference"]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.1, "nothing was learned"
    for name in ("first", "zero_3", "from_native"):
        assert_same(found[name], losses, norms)


def test_savannas_own_blocks_learn_as_ours_do(runs: Runs) -> None:
    _, found = runs
    for name in ("savanna_blocks", "from_folder"):
        assert_same(found[name], *found["reference"])


def test_bf16_stays_near(runs: Runs) -> None:
    _, found = runs
    losses, _ = found["reference"]
    assert found["bf16"].losses == pytest.approx(losses, rel=0, abs=2e-3)
    assert max(abs(a - b) for a, b in zip(found["bf16"].losses, losses, strict=True)) > TOLERANCE


@pytest.mark.parametrize("name", ["data", "data_zero_3", "context", "context_savanna", "tensor_savanna"])
def test_two_ranks_are_one(runs: Runs, runs_of_two: dict[str, Any], name: str) -> None:
    _, found = runs
    assert_same(runs_of_two[name], *found["reference"])


def test_savanna_resumes_its_own_checkpoint(runs: Runs) -> None:
    _, found = runs
    assert found["resumed"].losses == found["first"].losses[10:]
    assert found["resumed"].rates == found["first"].rates[10:]
    assert found["resumed"].token_index == found["first"].token_index == 20 * 4 * 128
    for name, weight in found["first"].weights.items():
        assert torch.equal(found["resumed"].weights[name], weight), name


def test_savanna_resumes_on_two_ranks(runs_of_two: dict[str, Any]) -> None:
    assert runs_of_two["data_resumed"].losses == runs_of_two["data"].losses[10:]
    assert runs_of_two["data_resumed"].norms == runs_of_two["data"].norms[10:]


def test_evaluation_is_of_whole_windows(runs: Runs, toy_data: Path, tmp_path: Path) -> None:
    folder, found = runs
    convert(Conversion(folder / "saved", tmp_path / "native", "savanna", "native"))
    model = read_native(tmp_path / "native").module
    windows, losses = EvaluationWindows(toy_data / "validation", window_bases=128), []
    # Two evaluations of two micro batches of two windows: spread evenly, each micro batch for itself.
    for first in range(0, 8, 2):
        batch = read_batch([windows.find((first + place) * len(windows) // 8) for place in range(2)], 1.0)
        with torch.inference_mode():
            logits = model(batch.bases, batch.patch_lengths)
            nats = weighted_nats(logits, batch.bases, batch.loss_weights, model.class_of_byte)
        losses.append(float(nats / scored_weight(batch.loss_weights)))
    assert found["first"].validation == pytest.approx(sum(losses) / 4, rel=TOLERANCE)


def test_operations_are_counted_by_the_hybrid(runs: Runs) -> None:
    folder, found = runs
    config = read_native(folder / "native").config
    # 4 windows of 128 bases; the mean of random patches of 1 to 8 bases is near 4.5.
    forward = sum(config.flops(128, round(128 / 4.5)).values())
    assert found["first"].flops == pytest.approx(3 * 4 * forward, rel=0.02)


def fixed_logits(folder: Path) -> torch.Tensor:
    from hyena_blt_savanna.testing.savanna_runs import logits_of_fixed_windows

    return logits_of_fixed_windows(read_native(folder).module)


@pytest.mark.parametrize("name", ["first", "savanna_blocks"])
def test_checkpoints_become_native_with_the_same_logits(runs: Runs, tmp_path: Path, name: str) -> None:
    folder, found = runs
    saved = folder / ("saved" if name == "first" else name)
    result = convert(Conversion(saved, tmp_path / "native", "auto", "native"))
    assert (result["from"], result["window_bases"]) == ("savanna", 128)
    torch.testing.assert_close(fixed_logits(tmp_path / "native"), found[name].logits, rtol=1e-5, atol=1e-5)


def test_ranks_of_tensor_parallelism_are_put_together(runs: Runs, runs_of_two: dict[str, Any], tmp_path: Path) -> None:
    folder, found = runs
    convert(Conversion(folder / "tensor", tmp_path / "native", "savanna", "native"))
    # The same run on one rank.
    torch.testing.assert_close(fixed_logits(tmp_path / "native"), found["savanna_blocks"].logits, rtol=1e-3, atol=1e-3)
