"""The plan of a run: what fits, what is said, and what is refused."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.data.manifest import read_annotation_manifest
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.fp8_gate import Fp8Config
from hyena_blt_savanna.training.planning import Machine, PlanError, Planner, Shape
from hyena_blt_savanna.training.planning_text import load_run, plan_lines
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.schedule import ScheduleError
from tools import plan_run

MODEL = {
    "kind": "hyena_blt",
    "local_width": 8,
    "kmers": {"sizes": [2, 6]},
    "encoder": {"blocks": []},
    "global_model": {"width": 32, "num_heads": 2, "blocks": ["attention", "hyena_se"]},
    "decoder": {"blocks": ["gated_convolution"], "hidden_width": 8},
}
SMALL = {
    "reduce_bucket_size": 10_000,
    "stage3_max_live_parameters": 10_000,
    "stage3_prefetch_bucket_size": 1_000,
    "stage3_param_persistence_threshold": 100,
}


def run(**stage: Any) -> RunConfig:
    """A run of one stage."""
    settings = {"steps": 10, "window_bases": 2000, "batch_windows": 4} | stage
    return RunConfig.parse(
        {
            "run": "nowhere",
            "data": {"folder": "nowhere"},
            "model": MODEL,
            "training": {"stages": [settings]},
            "deepspeed": {"zero_optimization": {"stage": 1, **SMALL}},
        }
    )


@pytest.fixture(scope="module")
def planner() -> Planner:
    """Keeps what it has rehearsed."""
    return Planner(run(), Machine(4, 1e12))


def smallest_by_trying(planner: Planner) -> Shape | None:
    """All shapes in the order of what they cost; the largest micro batch of the first that fits."""
    for context, checkpointing, stage in itertools.product((1, 2), (False, True), (1, 2, 3)):
        fitting = [
            shape
            for windows in range(context, 0, -1)
            if context % windows == 0
            for shape in [Shape(context, stage, windows, checkpointing)]
            if planner.plan(0, shape).memory.total_bytes <= planner.machine.usable_bytes
        ]
        if Shape(context, stage, 1, checkpointing) in fitting:
            return fitting[0]
    return None


def test_the_smallest_is_what_trying_all_finds(planner: Planner):
    shapes = [Shape(c, z, 1, k) for c, z, k in itertools.product((1, 2), (1, 2, 3), (False, True))]
    sizes = {planner.plan(0, shape).memory.total_bytes for shape in shapes}
    found = set()
    for usable in sorted(sizes):
        planner.machine = Machine(4, usable * 1.001 / 0.9)
        expected = smallest_by_trying(planner)
        assert planner.smallest(0).shape == expected
        found.add((expected.context, expected.zero_stage, expected.activation_checkpointing))
    # Not the same one for all sizes.
    assert {context for context, *_ in found} == {1, 2}
    assert {stage for _, stage, _ in found} >= {1, 3}
    assert {checkpointing for *_, checkpointing in found} == {False, True}
    planner.machine = Machine(4, min(sizes) * 0.9)
    needed = f"needs {min(sizes) / 1e9:.1f} GB a rank"
    with pytest.raises(PlanError, match=rf"stage 0: nothing fits on 4 rank.*the best, context 2, ZeRO 3.*{needed}"):
        planner.smallest(0)


def test_a_larger_micro_batch_is_taken_where_it_fits():
    planner = Planner(run(batch_windows=12), Machine(1, 1e12))
    assert planner.smallest(0).shape == Shape(1, 0, 12, False)
    four, six = (planner.plan(0, Shape(1, 0, windows, False)).memory.total_bytes for windows in (4, 6))
    planner.machine = Machine(1, (four + six) / 2 / 0.9)
    assert planner.smallest(0).shape == Shape(1, 0, 4, False)


def test_time_is_operations_by_what_all_ranks_reach():
    planner = Planner(run(), Machine(2, 1e12, peak_flops=1e9, utilisation=0.25), mean_patch_bases=10)
    flops = training_flops_per_base(run().model, 2000, 10)
    plans = [planner.plan(0, Shape(1, 1, 2, checkpointing)) for checkpointing in (False, True)]
    assert [plan.flops_per_base for plan in plans] == [flops] * 2
    # Computed a second time: a forward pass, a third of forward and backward.
    assert [plan.step_seconds for plan in plans] == pytest.approx([4 * 2000 * flops / 5e8 * k for k in (1, 4 / 3)])


def test_auto_is_bf16_on_gpus_alone():
    config = run().model_copy(update={"training": run().training.model_copy(update={"precision": "auto"})})
    made = [
        Planner(config, Machine(1, 1e12, is_gpu=is_gpu)).plan(0, Shape(1, 0, 1, False)).memory.parts["activations"]
        for is_gpu in (True, False)
    ]
    assert made[0] < 0.9 * made[1]


def test_fp8_is_rehearsed_as_torch_computes_it():
    kept = []
    for settings in ({"precision": "bf16"}, {"precision": "fp8", "fp8": Fp8Config(recipe="block", bf16_blocks=0)}):
        config = run().model_copy(update={"training": run().training.model_copy(update=settings)})
        kept.append(Planner(config, Machine(1, 1e12)).plan(0, Shape(1, 0, 1, False)).memory.parts["activations"])
    assert 0.5 * kept[0] < kept[1] < kept[0]


def test_patches_are_as_long_as_the_data_have_them(toy_data: Path):
    stored = read_annotation_manifest(toy_data / "train", "patches").statistics["forward"].mean_bases
    config = run().model_copy(update={"data": run().data.model_copy(update={"folder": toy_data})})
    assert Planner(config, Machine(1, 1)).mean_patch_bases == stored != 8
    assert Planner(config, Machine(1, 1), 5.0).mean_patch_bases == 5
    assert Planner(run(), Machine(1, 1)).mean_patch_bases == 8


def test_a_mesh_that_does_not_divide_the_ranks_is_refused():
    tree = run().to_dict() | {"parallel": {"context": 2}}
    with pytest.raises(ConfigError, match=r"parallel.context = 2 does not divide the 3 ranks.*choose from 1, 3"):
        list(plan_lines(Planner(RunConfig.parse(tree), Machine(3, 1e12))))


def test_a_batch_that_no_mesh_shares_is_refused():
    # 3 ranks: one window each is too many, and 3 context ranks don't divide 2 heads.
    with pytest.raises(PlanError, match=r"stage 0 can't be shared among 3 rank.*context = 3 does not divide num_heads"):
        Planner(run(batch_windows=1), Machine(3, 1e12)).smallest(0)


def test_each_stage_has_its_own_window_and_mesh():
    tree = run().to_dict()
    stage = tree["training"]["stages"][0]
    tree["training"]["stages"] = [stage, {**stage, "window_bases": 4000, "context": 2, "micro_batch_windows": 1}]
    planner = Planner(RunConfig.parse(tree), Machine(2, 1e12))
    assert [planner.configured_shape(index) for index in (0, 1)] == [Shape(1, 1, 2, False), Shape(2, 1, 1, False)]
    whole, halved = (planner.plan(index, Shape(index + 1, 1, 1, False)).memory.parts for index in (0, 1))
    assert halved["activations"] == pytest.approx(whole["activations"], rel=0.1)
    text = "\n".join(plan_lines(planner))
    assert "stage 1: 10 steps of 4 windows of 4,000 bases" in text
    assert "  training.stages.1.context=1\n  training.stages.1.micro_batch_windows=2" in text


def test_what_is_configured_may_not_run_while_something_else_does():
    config = run(batch_windows=1)
    planner = Planner(config, Machine(2, 1e12))
    with pytest.raises(ScheduleError):
        planner.configured_shape(0)
    text = "\n".join(plan_lines(planner))
    assert "as configured it can't be run: there are more ranks (2) than windows in a step" in text
    assert "training.stages.0.context=2" in text


def test_the_table_adds_up():
    lines = list(plan_lines(Planner(run(), Machine(1, 1e12))))
    num_weights = sum(weight.numel() for weight in run().model.build().parameters())
    assert lines[0].startswith(
        f"hyena_blt, {num_weights:,} parameters, fp32, patches of 8.0 bases; 1 GPU(s) of 1000 GB"
    )
    for column in (-2, -1):
        parts = [float(line.split()[column]) for line in lines if line.startswith("  ") and ", GB" in line]
        [total] = [float(line.split()[column]) for line in lines if line.startswith("memory of a rank, GB")]
        assert sum(parts) == pytest.approx(total, abs=0.005 * len(parts) + 0.005)


def test_the_tool_needs_neither_data_nor_deepspeed():
    arguments = ["configs/model/quickstart.yaml", "configs/training/quickstart.yaml", "--gpus=1", "--gpu-memory-gb=1"]
    arguments += ["training.stages=[{steps: 1, window_bases: 512, batch_windows: 1}]"]
    code = (
        "import sys; from tools.plan_run import main; status = main(); "
        "assert 'deepspeed' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "11,015,136 parameters" in done.stdout


def test_the_tool_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["plan_run.py", "no/such.yaml", "--gpus=1", "--gpu-memory-gb=1"])
    assert plan_run.main() == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "no/such.yaml: no such file" in said.err


def test_a_run_may_lack_its_folders():
    config = load_run(["configs/model/quickstart.yaml", "configs/training/quickstart.yaml"])
    assert config.model.kind == "hyena_blt"
    with pytest.raises(ConfigError, match="training: missing"):
        load_run(["configs/model/quickstart.yaml"])
    with pytest.raises(ConfigError, match="data"):
        load_run(["configs/model/quickstart.yaml", "configs/training/quickstart.yaml", "data=3"])
