"""Universal checkpoints: training checkpoints that any number of ranks and any ZeRO stage goes on from.

step_00000100/
    native/                consolidated weights, as evaluation and other tools read them
    optimizer/             a safetensors file for each state of the optimizer (exp_avg, exp_avg_sq), by names of
                           parameters; steps.json
    random_states/, fp8.pt, config.yaml, state.json, manifest.json    as in other training checkpoints
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.evaluation.native_checkpoint import NATIVE
from hyena_blt_savanna.evaluation.sealed_folder import copy_files, read_seal, seal, written_whole
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, TensorFileError, read_safetensors, write_safetensors
from hyena_blt_savanna.training.training_state import CheckpointError, TrainingState
from hyena_blt_savanna.training.zero_files import read_zero_files

FORMAT_VERSION = 1
CONFIG = "config.yaml"
DEEPSPEED = "deepspeed"
FP8_STATE = "fp8.pt"
OPTIMIZER = "optimizer"
RANDOM_STATES = "random_states"
STATE = "state.json"
STEPS = "steps.json"
UNREADABLE = ("round_robin_gradients", "elastic_checkpoint")
"""Settings of ZeRO under which DeepSpeed's files name wrong places, or none."""


def is_universal(path: Path) -> bool:
    """Whether a training checkpoint belongs to no number of ranks."""
    return (path / OPTIMIZER).is_dir()


def read_training_state(path: Path) -> TrainingState:
    """Weights and optimizer state of a training checkpoint, universal or not.

    Args:
        path: its folder, whose manifest has been verified.

    Raises:
        CheckpointError: a file is missing or cut off, files of several checkpoints are mixed, or they were written
            with settings that leave the places of the weights open.
    """
    about = read_state(path)
    if is_universal(path):
        return _read_universal(path, about)
    listed = {(path / name).resolve() for name in read_seal(path)["files"]}
    strange = [file.name for file in (path / DEEPSPEED).iterdir() if file.resolve() not in listed]
    if strange:
        raise CheckpointError(
            f"{path / DEEPSPEED} holds {', '.join(sorted(strange))}, of which its manifest does not know: files of "
            "several checkpoints are mixed; remove it, or copy the checkpoint again into an empty folder"
        )
    _check_places(path)
    state = read_zero_files(path / DEEPSPEED, about.get("optimizer_names"), about.get("tied_names", {}))
    if state.num_steps != about["progress"]["step"]:
        raise CheckpointError(
            f"{path / DEEPSPEED} was written after step {state.num_steps}, and {STATE} beside it after step "
            f"{about['progress']['step']}: files of several checkpoints are mixed; copy it again into an empty folder"
        )
    return state


def _check_places(path: Path) -> None:
    config = yaml.safe_load((path / CONFIG).read_text())
    found = [key for key in UNREADABLE if config.get("deepspeed", {}).get("zero_optimization", {}).get(key)]
    if found:
        raise CheckpointError(
            f"{path} was written with deepspeed.zero_optimization.{found[0]}, and its files don't tell the places of "
            f"the weights: only their {NATIVE}/ can be read; give it to start_from of a new run"
        )


def read_state(path: Path) -> dict[str, Any]:
    """What a training checkpoint says of itself.

    Raises:
        CheckpointError: it is no training checkpoint.
    """
    try:
        return dict(json.loads((path / STATE).read_text()))
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no {STATE}: it is no training checkpoint") from None


def trained_in(numerics: Mapping[str, Any] | None, gap: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a reader of weights must know of a training in FP8.

    Args:
        numerics: of its layers (`model.fp8.Fp8Layers`); None of any other training.
        gap: what its gate found last.
    """
    return None if numerics is None else {"precision": "fp8", **numerics, "gap": gap}


def write_universal(
    folder: Path,
    state: TrainingState,
    about: Mapping[str, Any],
    config: bytes,
    write_native: Callable[[Path], None],
    random_states: Path | None = None,
    fp8_state: Path | None = None,
) -> None:
    """Writes a universal checkpoint, whole or not at all.

    Args:
        folder: where; a folder of that name is replaced.
        state: weights and optimizer.
        about: `progress`, and whatever else STATE is to say.
        config: of the run, as YAML.
        write_native: writes the weights into a folder.
        random_states: folder of the ranks' random states, which is copied; None: there are none.
        fp8_state: file of what delayed scales follow, which is copied if it is there.
    """
    with written_whole(folder) as partial:
        write_native(partial / NATIVE)
        (partial / OPTIMIZER).mkdir()
        for key, tensors in state.optimizer.items():
            write_safetensors(partial / OPTIMIZER, tensors, stem=key)
        steps = {"keys": list(state.optimizer), "steps": state.optimizer_steps}
        write_whole(partial / OPTIMIZER / STEPS, json.dumps(steps, indent=1).encode())
        if random_states is not None:
            copy_files(random_states, partial / RANDOM_STATES)
        if fp8_state is not None and fp8_state.exists():
            write_whole(partial / FP8_STATE, fp8_state.read_bytes())
        write_whole(partial / CONFIG, config)
        about = {**about, "format_version": FORMAT_VERSION, "num_samples": state.num_samples}
        write_whole(partial / STATE, json.dumps(about, indent=1).encode())
        seal(partial, {"format_version": FORMAT_VERSION})


def _read_universal(path: Path, about: Mapping[str, Any]) -> TrainingState:
    folder = path / OPTIMIZER
    try:
        weights = {name: _in_fp32(tensor) for name, tensor in read_safetensors(path / NATIVE).items()}
        listed = json.loads((folder / STEPS).read_text())
        optimizer = {key: read_safetensors(folder, key) for key in listed["keys"]}
    except (TensorFileError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    return TrainingState(weights, optimizer, listed["steps"], about["progress"]["step"], about["num_samples"])


def _in_fp32(tensor: LazyTensor) -> LazyTensor:
    if not tensor.dtype.is_floating_point or tensor.dtype == torch.float32:
        return tensor
    return tensor.map(lambda loaded: loaded.float())
