"""A run goes on with another number of ranks, another ZeRO stage or other frozen weights, as if it had not changed."""

from __future__ import annotations

import contextlib
import io
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyena_blt_savanna.evaluation.sealed_folder import SealError, seal, verify
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_training import split_windows, toy_windows
from hyena_blt_savanna.training.checkpoints import CheckpointConfig, Checkpoints, Progress
from hyena_blt_savanna.training.engine import TrainingEngine
from hyena_blt_savanna.training.first_weights import freeze
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.training_state import CheckpointError, restore
from hyena_blt_savanna.training.universal import is_universal, read_training_state, write_universal

MODEL = HyenaBLTConfig(
    local_width=8,
    max_patch_bases=8,
    kmers={"sizes": [2, 3]},
    # Many sizes are odd multiples of two, so that four ranks can't share them evenly.
    global_model={"width": 10, "num_heads": 1, "blocks": ["hyena_li"]},
)
FROZEN = ("*.log_*", "*.mlp.*", "encoder.to_patches.weight", "decoder.start")
STEPS_BEFORE, STEPS_AFTER, SGD_STEPS = 3, 10, 5
NUM_WINDOWS, WINDOW_BASES = 4, 40

Case = tuple[str, int, str]
"""Name of what is written or read, ZeRO stage, optimizer."""


def make_engine(
    ranks: Ranks, zero_stage: int, optimizer: str, frozen: tuple[str, ...] = FROZEN, weights: Path | None = None
) -> TrainingEngine:
    torch.manual_seed(5 + ranks.num_ranks + zero_stage)
    model = MODEL.build()
    for parameter in model.parameters():
        # Some weights start at zero, behind which nothing is learned.
        torch.nn.init.normal_(parameter, std=0.2)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    freeze(model, frozen)
    sgd = None
    if optimizer == "sgd":
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        sgd = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    # Without a threshold, all of a small model would be kept whole on every rank.
    zero = {"stage": zero_stage, "stage3_param_persistence_threshold": 60}
    return TrainingEngine(
        model,
        ranks,
        OptimizerConfig(lr=3e-3),
        deepspeed_block={"zero_optimization": zero, "zero_allow_untested_optimizer": True},
        torch_optimizer=sgd,
    )


def train(engine: TrainingEngine, start: int, num_steps: int, lr: float) -> list[float]:
    losses = []
    ranks = engine.ranks
    for step in range(start, start + num_steps):
        mine = split_windows(toy_windows(NUM_WINDOWS, WINDOW_BASES, seed=step), ranks.num_ranks)[ranks.rank]
        sums = ranks.sum(engine.accumulate([mine]).values())
        engine.update(lr)
        losses.append(sums[0] / sums[1])
    return losses


def go_on(engine: TrainingEngine, optimizer: str) -> dict:
    """What is compared: losses under AdamW, weights under SGD (law 4)."""
    if optimizer == "adamw":
        return {"losses": train(engine, STEPS_BEFORE, STEPS_AFTER, 3e-3)}
    train(engine, STEPS_BEFORE, SGD_STEPS, 0.1)
    return {"weights": engine.consolidated_weights()}


def checkpoints_of(folder: Path, ranks: Ranks) -> Checkpoints:
    return Checkpoints(folder, CheckpointConfig(), {"model": {"kind": "toy"}}, ranks)


def writes(ranks: Ranks, folder: Path, zero_stage: int, optimizer: str) -> dict:
    """Trains, saves, and goes on undisturbed."""
    engine = make_engine(ranks, zero_stage, optimizer)
    train(engine, 0, STEPS_BEFORE, 3e-3 if optimizer == "adamw" else 0.1)
    checkpoints_of(folder, ranks).save(engine, Progress(step=STEPS_BEFORE))
    weights = engine.consolidated_weights()
    return {"saved": weights, **go_on(engine, optimizer)}


def reads(ranks: Ranks, folder: Path, zero_stage: int, optimizer: str) -> dict:
    """Goes on from a checkpoint of another mesh."""
    engine = make_engine(ranks, zero_stage, optimizer)
    progress = checkpoints_of(folder, ranks).load(engine, checkpoint(folder))
    assert (progress.step, engine.deepspeed.global_steps) == (STEPS_BEFORE, STEPS_BEFORE)
    return go_on(engine, optimizer)


def saves_again(ranks: Ranks, folder: Path, zero_stage: int, optimizer: str) -> dict:
    """What has been shared out anew is saved, and read by DeepSpeed itself."""
    engine = make_engine(ranks, zero_stage, optimizer)
    progress = checkpoints_of(folder, ranks).load(engine, checkpoint(folder))
    again = checkpoints_of(folder.with_name(f"{folder.name}_again"), ranks)
    path = again.save(engine, progress)
    engine = make_engine(ranks, zero_stage, optimizer)
    again.load(engine, path)
    return go_on(engine, optimizer)


def thaws(ranks: Ranks, folder: Path, zero_stage: int, optimizer: str) -> dict:
    """Weights that were frozen are trained: the others go on with their state, these begin one."""
    engine = make_engine(ranks, zero_stage, optimizer, frozen=())
    checkpoints_of(folder, ranks).load(engine, checkpoint(folder))
    return {"losses": train(engine, STEPS_BEFORE, STEPS_AFTER, 3e-3)}


def starts_from_weights(ranks: Ranks, folder: Path, zero_stage: int, optimizer: str) -> dict:
    """A run of its own, from the weights alone."""
    engine = make_engine(ranks, zero_stage, optimizer, weights=checkpoint(folder) / "native" / "model.safetensors")
    return {"losses": train(engine, STEPS_BEFORE, STEPS_AFTER, 3e-3)}


def refuses_other_model(ranks: Ranks, folder: Path, zero_stage: int, optimizer: str) -> dict:
    engine = make_engine(ranks, zero_stage, optimizer)
    engine.module = HyenaBLTConfig(
        local_width=8,
        max_patch_bases=8,
        kmers={"sizes": [2]},
        global_model={"width": 20, "num_heads": 2, "blocks": ["hyena_se"]},
    ).build()
    path = checkpoint(folder)
    with pytest.raises(CheckpointError) as caught:
        restore(engine, read_training_state(path), str(path))
    message = str(caught.value)
    assert f"{path} holds the weights of another model" in message
    assert "is missing" in message
    assert re.search(r"\n  and \d+ more$", message)
    return {}


def group(cases: list[tuple[Callable[..., dict], Path, int, str]]) -> list[dict]:
    ranks = join_ranks()
    return [action(ranks, folder, zero_stage, optimizer) for action, folder, zero_stage, optimizer in cases]


@pytest.fixture(scope="module")
def meshes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict], list[tuple[str, str, dict]]]:
    """Checkpoints of several meshes, how their runs went on, and how others went on from them."""
    folder = tmp_path_factory.mktemp("meshes")
    plans = {
        4: [
            (writes, "zero3_adamw_of_4", 3),
            (writes, "zero3_sgd_of_4", 3),
        ],
        2: [
            (writes, "zero1_adamw_of_2", 1),
            (writes, "zero2_sgd_of_2", 2),
            (writes, "zero0_adamw_of_2", 0),
            (reads, "zero3_adamw_of_4", 3),
            (reads, "zero3_sgd_of_4", 1),
            (reads, "zero3_adamw_of_4_universal", 2),
            (saves_again, "zero3_adamw_of_4", 2),
        ],
        1: [
            (refuses_other_model, "zero3_adamw_of_4", 0),
            (thaws, "zero3_adamw_of_4", 3),
            (starts_from_weights, "zero3_adamw_of_4_universal", 3),
            (reads, "zero3_adamw_of_4", 3),
            (reads, "zero1_adamw_of_2", 3),
            (reads, "zero2_sgd_of_2", 0),
            (reads, "zero0_adamw_of_2", 1),
            (reads, "zero3_sgd_of_4", 2),
            (reads, "zero3_adamw_of_4_universal", 0),
        ],
    }
    undisturbed: dict[str, dict] = {}
    others: list[tuple[str, str, dict]] = []
    for num_ranks, plan in plans.items():
        cases = [(action, folder / name, stage, "sgd" if "sgd" in name else "adamw") for action, name, stage in plan]
        results = run_ranks(group, num_ranks, cases, timeout_seconds=300)[0]
        for (action, name, stage), result in zip(plan, results, strict=True):
            if action is writes:
                undisturbed[name] = result
            else:
                others.append((action.__name__, f"{name} to ZeRO {stage} of {num_ranks}", result))
        if num_ranks == 4:
            make_universal(folder / "zero3_adamw_of_4", folder / "zero3_adamw_of_4_universal")
    return folder, undisturbed, others


def checkpoint(folder: Path) -> Path:
    return folder / f"step_{STEPS_BEFORE:08d}"


def make_universal(folder: Path, to: Path) -> None:
    """Like the converter, for a model that has no run."""
    state = read_training_state(checkpoint(folder))

    def write_native(native: Path) -> None:
        native.mkdir()
        save_file({name: tensor.load() for name, tensor in state.weights.items()}, native / "model.safetensors")

    about = {"progress": {"step": STEPS_BEFORE, "interval": {}}, "num_ranks": 4, "zero_stage": 3}
    config = (checkpoint(folder) / "config.yaml").read_bytes()
    write_universal(checkpoint(to), state, about, config, write_native)


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh(meshes):
    folder, undisturbed, others = meshes
    assert is_universal(checkpoint(folder / "zero3_adamw_of_4_universal"))
    num_compared = 0
    for action, name, result in others:
        if action not in ("reads", "saves_again"):
            continue
        num_compared += 1
        wanted = undisturbed[name.split()[0].removesuffix("_universal")]
        for found, loss in zip(result.get("losses", ()), wanted.get("losses", ()), strict=True):
            assert math.isclose(found, loss, rel_tol=0, abs_tol=1e-5), name
        for weight, value in wanted.get("weights", {}).items():
            difference = (result["weights"][weight] - value).abs().max() / value.abs().max().clamp(min=1e-30)
            assert difference < 1e-5, (name, weight, float(difference))
    assert num_compared == 10


@pytest.mark.slow
@pytest.mark.parametrize("action", ["thaws", "starts_from_weights"])
def test_other_ways_on_begin_with_the_same_loss(meshes, action):
    """Frozen weights that are trained now; weights alone, without the optimizer's state."""
    _, undisturbed, others = meshes
    [found] = [result["losses"] for name, _, result in others if name == action]
    wanted = undisturbed["zero3_adamw_of_4"]["losses"]
    assert math.isclose(found[0], wanted[0], rel_tol=0, abs_tol=1e-5)
    assert max(abs(loss - other) for loss, other in zip(found, wanted, strict=True)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3_adamw_of_4", "zero1_adamw_of_2", "zero2_sgd_of_2", "zero0_adamw_of_2"])
def test_weights_are_read_from_the_shards(meshes, name):
    folder, undisturbed, _ = meshes
    path = checkpoint(folder / name)
    found = {key: tensor.load() for key, tensor in read_training_state(path).weights.items()}
    wanted = undisturbed[name]["saved"]
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    if name != "zero0_adamw_of_2":
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with contextlib.redirect_stdout(io.StringIO()):
            theirs = get_fp32_state_dict_from_zero_checkpoint(str(path), tag="deepspeed")
        # DeepSpeed's own reader leaves out the frozen weights of ZeRO 1.
        assert theirs.keys() <= found.keys()
        assert all(torch.equal(found[key], theirs[key]) for key in theirs)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def rank_file(rank: int, what: str) -> str:
    return f"zero_pp_rank_{rank}_mp_rank_00_{what}_states.pt"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        (
            "zero3_adamw_of_4",
            lambda path: (path / "deepspeed" / rank_file(2, "optim")).unlink(),
            r"written by 4 ranks and lacks zero_pp_rank_2_mp_rank_00_optim_states\.pt",
        ),
        (
            "zero3_adamw_of_4",
            lambda path: (path / "deepspeed" / rank_file(1, "model")).unlink(),
            r"written by 4 ranks and lacks zero_pp_rank_1_mp_rank_00_model_states\.pt",
        ),
        (
            "zero1_adamw_of_2",
            lambda path: (path / "deepspeed" / "mp_rank_00_model_states.pt").unlink(),
            r"lacks mp_rank_00_model_states\.pt",
        ),
        (
            "zero1_adamw_of_2",
            lambda path: [(path / "deepspeed" / rank_file(rank, "optim")).unlink() for rank in range(2)],
            r"lacks zero_pp_rank_\*_optim_states\.pt",
        ),
        (
            "zero3_adamw_of_4",
            lambda path: truncate(path / "deepspeed" / rank_file(3, "optim")),
            r"zero_pp_rank_3_mp_rank_00_optim_states\.pt can't be read",
        ),
        (
            "zero0_adamw_of_2",
            lambda path: (path / "state.json").write_text(
                (path / "state.json").read_text().replace('"optimizer_names"', '"optimizers"')
            ),
            "does not tell the order of its optimizer's parameters",
        ),
        ("zero0_adamw_of_2", lambda path: (path / "state.json").unlink(), "has no state.json: it is no training"),
        (
            "zero0_adamw_of_2",
            lambda path: (path / "state.json").write_text(
                (path / "state.json").read_text().replace('"step": 3', '"step": 4')
            ),
            "was written after step 3, and state.json beside it after step 4: files of several checkpoints are mixed",
        ),
    ],
)
def test_broken_folders_are_refused(meshes, tmp_path, name, damage, says):
    path = tmp_path / "step_00000003"
    shutil.copytree(checkpoint(meshes[0] / name), path)
    damage(path)
    with pytest.raises(SealError):
        verify(path)
    # Even if somebody has sealed it as it is.
    seal(path, {})
    with pytest.raises(CheckpointError, match=says):
        read_training_state(path)


@pytest.mark.slow
def test_a_file_too_many_is_refused(meshes, tmp_path):
    path = tmp_path / "step_00000003"
    shutil.copytree(checkpoint(meshes[0] / "zero1_adamw_of_2"), path)
    shutil.copyfile(path / "deepspeed" / rank_file(1, "optim"), path / "deepspeed" / rank_file(2, "optim"))
    # Nobody vouches for it, and it would be unpickled.
    with pytest.raises(CheckpointError, match=r"holds zero_pp_rank_2_.*, of which its manifest does not know"):
        read_training_state(path)
    seal(path, {})
    with pytest.raises(CheckpointError, match="has optim files of rank 2: files of several checkpoints are mixed"):
        read_training_state(path)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["model", "optim"])
def test_files_of_two_steps_are_refused(meshes, tmp_path, what):
    path = tmp_path / "step_00000003"
    shutil.copytree(checkpoint(meshes[0] / "zero3_adamw_of_4"), path)
    file = path / "deepspeed" / rank_file(1, what)
    content = torch.load(file, weights_only=False)
    if what == "model":
        content["global_steps"] += 2
    else:
        for state in content["optimizer_state_dict"]["optimizer_state_dict"]["state"].values():
            state["step"] += 2
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=rf"are mixed.*\n(.*\n)*  {file.name} .* step 5"):
        read_training_state(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "optimizer" / "steps.json").unlink(),
        lambda path: (path / "optimizer" / "exp_avg.safetensors").unlink(),
        lambda path: truncate(path / "optimizer" / "exp_avg_sq.safetensors"),
        lambda path: truncate(path / "native" / "model.safetensors"),
    ],
)
def test_broken_universal_checkpoints_are_refused(meshes, tmp_path, damage):
    make_universal(meshes[0] / "zero3_adamw_of_4", tmp_path)
    damage(checkpoint(tmp_path))
    with pytest.raises(CheckpointError, match="can't be read"):
        read_training_state(checkpoint(tmp_path))
