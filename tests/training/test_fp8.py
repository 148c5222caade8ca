"""Trainings in FP8: what is refused, the gate, resuming bit for bit, ranks, and what checkpoints tell of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.conversion import deepspeed_folder, native, universal
from hyena_blt_savanna.evaluation.native_checkpoint import read_native
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.evaluation.tensor_files import read_safetensors
from hyena_blt_savanna.model import fp8
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.training import fp8_gate
from hyena_blt_savanna.training.pretrain import main
from hyena_blt_savanna.training.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
LAST, MIDDLE = "checkpoints/step_00000006", "checkpoints/step_00000003"


@pytest.fixture(scope="module")
def config(toy_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = yaml.safe_load(toy_config.read_text())
    tree["model"]["global_model"] = {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_li", "attention"] * 2}
    tree["training"] = {
        "stages": [{"steps": 6, "window_bases": 64, "batch_windows": 2, "micro_batch_windows": 1}],
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup_steps": 1},
        "precision": "fp8",
        "fp8": {"recipe": "delayed", "history_steps": 2, "tolerance_bits": 0.002, "gate_windows": 4},
        "validation": {"every_steps": 6, "num_bases": 640},
        "checkpoints": {"every_steps": 3, "keep_last": 5},
        "logging": {"every_steps": 1},
    }
    path = tmp_path_factory.mktemp("fp8") / "fp8.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end, by one rank."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert main([str(config), f"run={run}"]) == 0
    return run


def start_from_middle(whole: Path, to: Path) -> Path:
    """A run that was killed after its first checkpoint."""
    shutil.copytree(whole / MIDDLE, to / MIDDLE)
    return to


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.load() for name, tensor in read_safetensors(run / LAST / "native").items()}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["training.precision=bf16"], "fp8 is read with precision fp8 only, and precision is bf16: use fp8=null"),
        (["training.validation=null"], "on validation windows at each checkpoint, and validation is null"),
        (["training.fp8.bf16_blocks=3"], "are all of the 6 blocks of model.global_model: use at most 2"),
        (["training.objective=autoencoder"], "the global model, which training.objective autoencoder leaves out"),
        (["training.fp8.recipe=dynamic"], "training.fp8.recipe"),
    ],
)
def test_what_is_refused(config: Path, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.load([config, "run=runs/toy", *overrides])
    assert says in str(caught.value)


def test_the_file_of_settings(config: Path) -> None:
    files = [ROOT / "configs" / name for name in ("model/quickstart.yaml", "training/gpu.yaml", "training/fp8.yaml")]
    found = RunConfig.load([*files, "run=runs/toy", "data.folder=data"]).training
    assert found.fp8 == fp8_gate.Fp8Config()
    assert (found.precision, found.stages[0].window_bases) == ("fp8", 8192)


def test_models_of_several_stacks_are_refused(config: Path) -> None:
    tree = yaml.safe_load(config.read_text())
    stack = {"width": 16, "blocks": ["hyena_se"]}
    tree["model"] = {"kind": "hnet", "encoder": stack, "main_network": stack, "decoder": stack}
    with pytest.raises(ConfigError, match=r"model.kind hnet has several: use training.precision=bf16"):
        RunConfig.parse({**tree, "run": "runs/toy"})


def test_the_block_may_be_left_out(config: Path) -> None:
    found = RunConfig.load([config, "run=runs/toy", "training.fp8=null"])
    assert found.training.fp8 is not None
    assert (found.training.fp8.recipe, found.training.fp8.bf16_blocks) == ("current", 1)
    assert RunConfig.load([config, "run=runs/toy", "training.precision=bf16", "training.fp8=null"]).training.fp8 is None


@pytest.mark.parametrize(
    ("override", "says"),
    [("backend=transformer_engine", "can't be used: "), ("recipe=block", "block is TransformerEngine's")],
)
def test_what_this_machine_has_not(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    assert main([str(config), f"run={tmp_path / 'run'}", f"training.fp8.{override}"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_a_run_and_what_it_tells(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [start] = lines_of(whole, "start")
    numerics = {"recipe": "delayed", "backend": "torch", "bf16_blocks": 1, "history_steps": 2}
    numerics["version"] = torch.__version__
    assert (start["precision"], start["fp8"]) == ("fp8", numerics)
    gates = lines_of(whole, "fp8_gate")
    assert [line["step"] for line in gates] == [3, 6]
    for line in gates:
        assert line["is_within"]
        assert 0 < line["difference_bits"] == abs(line["bits_fp8"] - line["bits_bf16"]) < 0.002
        # Four windows of the validation stream.
        assert 200 < line["num_bases"] <= 4 * 72
    gap = {name: gates[1][name] for name in ("step", "bits_fp8", "bits_bf16", "num_bases", "difference_bits")}
    wanted = {"precision": "fp8", **numerics, "gap": gap}
    assert read_native(whole).trained_in == wanted
    assert f"FP8 and bf16 were {gap['difference_bits']:.4f} bits per base apart" in capsys.readouterr().err
    scales = torch.load(whole / LAST / "fp8.pt", weights_only=True)
    assert len(scales) == 4 * 5
    assert all((value[0] > 0).all() for value in scales.values())


@pytest.mark.slow
def test_what_copies_tell(whole: Path, tmp_path: Path) -> None:
    wanted = read_native(whole).trained_in
    HyenaBLTModel.load_from_checkpoint(whole).save(tmp_path / "saved")
    weights = native.read(tmp_path / "saved")
    assert weights.trained_in == wanted
    assert "trained in FP8 (delayed scaling by torch" in weights.notes[0]
    native.write(weights, tmp_path / "converted")
    assert read_native(tmp_path / "converted").trained_in == wanted
    universal.convert(whole / MIDDLE, tmp_path / "with_native" / MIDDLE)
    run = start_from_middle(whole, tmp_path / "no_native")
    shutil.rmtree(run / MIDDLE / "native")
    found = deepspeed_folder.read(run / MIDDLE)
    assert found.trained_in == read_native(whole / MIDDLE).trained_in
    universal.convert(run / MIDDLE, tmp_path / "universal" / MIDDLE)
    assert read_native(tmp_path / "universal" / MIDDLE).trained_in == found.trained_in
    assert (tmp_path / "universal" / MIDDLE / "fp8.pt").read_bytes() == (whole / MIDDLE / "fp8.pt").read_bytes()


@pytest.mark.slow
def test_it_goes_on_bit_for_bit(config: Path, whole: Path, tmp_path: Path) -> None:
    run = start_from_middle(whole, tmp_path / "again")
    assert main([str(config), f"run={run}"]) == 0
    wanted = weights_of(whole)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in weights_of(run).items())
    assert lines_of(run, "fp8_gate")[0]["bits_fp8"] == lines_of(whole, "fp8_gate")[1]["bits_fp8"]
    # Of the next scales too: the later half, but for one step of the earlier.
    states = [torch.load(each / LAST / "fp8.pt", weights_only=True) for each in (whole, run)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_delayed_scales_are_part_of_what_goes_on(config: Path, whole: Path, tmp_path: Path) -> None:
    run = start_from_middle(whole, tmp_path / "lost")
    scales = torch.load(run / MIDDLE / "fp8.pt", weights_only=True)
    torch.save({name: value / 64 for name, value in scales.items()}, run / MIDDLE / "fp8.pt")
    manifest = json.loads((run / MIDDLE / "manifest.json").read_text())
    del manifest["files"]["fp8.pt"]
    (run / MIDDLE / "manifest.json").write_text(json.dumps(manifest))
    assert main([str(config), f"run={run}"]) == 0
    wanted = weights_of(whole)
    assert any(not torch.equal(tensor, wanted[name]) for name, tensor in weights_of(run).items())


@pytest.mark.slow
def test_another_fp8_is_refused_and_bf16_is_not(
    config: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start_from_middle(whole, tmp_path / "other")
    for override in ("recipe=current", "bf16_blocks=2", "history_steps=3"):
        assert main([str(config), f"run={run}", f"training.fp8.{override}"]) == 2
        said = capsys.readouterr().err
        assert "was trained in FP8 with recipe delayed" in said
        assert "go on in bf16 (training.precision=bf16 training.fp8=null)" in said
    assert main([str(config), f"run={run}", "training.precision=bf16", "training.fp8=null"]) == 0
    assert "and the run goes on in bf16; at step 3, FP8 and bf16 were" in capsys.readouterr().err
    assert read_native(run).trained_in is None
    # And back, with scales that begin anew.
    assert main([str(config), f"run={run}", "training.stages.0.steps=8"]) == 0
    assert "was trained in fp32 or bf16, and the run goes on in FP8 (recipe delayed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_gate_sees_products_that_are_wrong(
    config: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fp8._multiply
    monkeypatch.setattr(fp8, "_multiply", lambda *args, **more: -50 * plain(*args, **more))
    for policy, code in (("stop", 3), ("warn", 0)):
        run = start_from_middle(whole, tmp_path / policy)
        overrides = [f"training.fp8.on_drift={policy}", "training.checkpoints.every_steps=2"]
        assert main([str(config), f"run={run}", *overrides]) == code
        said = capsys.readouterr().err
        assert "step 4: FP8 scores" in said
        assert "training.fp8.tolerance_bits is 0.002" in said
        gates = lines_of(run, "fp8_gate")
        assert [line["step"] for line in gates] == ([4] if policy == "stop" else [4, 6])
        assert not any(line["is_within"] for line in gates)
        # Saved before it stopped, and said with the weights.
        about = read_native(run).trained_in
        assert about is not None
        assert about["gap"]["step"] == gates[-1]["step"]
        assert about["gap"]["difference_bits"] == gates[-1]["difference_bits"] > 0.01


def test_a_gap_that_is_no_number_is_too_wide() -> None:
    gate = fp8_gate.Fp8Gate(fp8_gate.Fp8Config(tolerance_bits=0.1), None, None)  # type: ignore[arg-type]
    for bits, is_within in ((2.05, True), (1.95, True), (2.2, False), (1.8, False), (float("nan"), False)):
        assert (gate.why_drifted(fp8_gate.Gap(1, bits, 2.0, 100)) is None) == is_within


def run_all(arguments: list[list[str]]) -> list[int]:
    return [main(each) for each in arguments]


@pytest.mark.slow
def test_ranks_train_as_one_does(config: Path, whole: Path, tmp_path: Path) -> None:
    ways = {
        "zero2": ["deepspeed.zero_optimization.stage=2"],
        "context": ["parallel.context=2"],
        "from one": ["deepspeed.zero_optimization.stage=3", "training.activation_checkpointing=true"],
    }
    start_from_middle(whole, tmp_path / "from one")
    arguments = [[str(config), f"run={tmp_path / name}", *overrides] for name, overrides in ways.items()]
    assert run_ranks(run_all, 2, arguments, timeout_seconds=300) == [[0, 0, 0]] * 2
    wanted = lines_of(whole, "training")
    scales = torch.load(whole / MIDDLE / "fp8.pt", weights_only=True)
    for name in ways:
        found = lines_of(tmp_path / name, "training")
        for ours, theirs in zip(found, wanted[-len(found) :], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3), name
    # Largest values of the whole batch, whichever rank had them; of factors, which jump less than gradients.
    found_scales = torch.load(tmp_path / "zero2" / MIDDLE / "fp8.pt", weights_only=True)
    assert set(found_scales) == set(scales)
    for name, value in found_scales.items():
        assert torch.allclose(value[:, :2], scales[name][:, :2], rtol=0.05), name
