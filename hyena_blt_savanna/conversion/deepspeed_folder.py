"""Training checkpoints of DeepSpeed's as a format of conversion: the weights of ZeRO 0, 1, 2 and 3, of any ranks."""

from __future__ import annotations

from pathlib import Path

import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.conversion import native
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights, check_tensors, state_shapes
from hyena_blt_savanna.evaluation.native_checkpoint import NATIVE, numerics_in_words, patch_places
from hyena_blt_savanna.evaluation.sealed_folder import SealError, verify
from hyena_blt_savanna.training.checkpoints import find_newest_whole
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.training_state import TrainingState
from hyena_blt_savanna.training.universal import CONFIG, STATE, read_state, read_training_state, trained_in


def read(path: Path) -> ModelWeights:
    """Reads the weights of a training checkpoint.

    From its native part where there is one; otherwise from DeepSpeed's own files, whether or not they are cut by rank.

    Args:
        path: a training checkpoint, or a run folder (its newest whole one is taken).

    Raises:
        ConversionError: there is no training checkpoint, its manifest does not verify, or its configuration is not of
            this version or of another model.
        CheckpointError: a file is missing or cut off, or files of several checkpoints are mixed.
        PretrainedError: the native part is broken.
    """
    folder = find_checkpoint(path)
    if (folder / NATIVE).is_dir():
        return native.read_unchecked(folder / NATIVE)
    verify_training(folder)
    return weights_of(folder, read_training_state(folder))


def find_checkpoint(path: Path) -> Path:
    """The training checkpoint that a path stands for.

    Args:
        path: its folder, or the folder of a run or of its checkpoints.

    Raises:
        ConversionError: there is none.
    """
    if (path / STATE).is_file():
        return path
    newest = find_newest_whole(path / "checkpoints" if (path / "checkpoints").is_dir() else path)
    if newest is None:
        raise ConversionError(
            f"{path} holds no whole training checkpoint: neither {STATE} nor checkpoints/step_*/ is there; give the "
            "folder of a checkpoint or of a run"
        )
    return newest


def verify_training(folder: Path) -> None:
    """Compares a training checkpoint with its manifest; a native part that was removed is not missed.

    Raises:
        ConversionError: there is no manifest, or a file is missing or has changed.
    """
    try:
        verify(folder, without=None if (folder / NATIVE).is_dir() else NATIVE)
    except SealError as error:
        # DeepSpeed's files are pickles, which run what they hold.
        raise ConversionError(f"{error}; files that don't verify are not opened") from error


def weights_of(folder: Path, state: TrainingState) -> ModelWeights:
    """The model of a training checkpoint without a native part.

    Args:
        folder: of the checkpoint.
        state: what was read from it.

    Raises:
        ConversionError: its configuration is not of this version, or of another model.
    """
    try:
        config = RunConfig.parse(yaml.safe_load((folder / CONFIG).read_text()), str(folder / CONFIG))
    except ConfigError as error:
        raise ConversionError(str(error)) from error
    shapes = {name: tensor.shape for name, tensor in state.weights.items()}
    model, longest = config.trained(state.num_steps)
    check_tensors(str(folder), state_shapes(model), shapes)
    notes = [f"{folder.name} holds no {NATIVE}/: the digest of the training data is not known"]
    if patch_places(model) is not None:
        notes.append(f"{folder.name} holds no {NATIVE}/: the patcher is not known, and new sequences can't be cut")
    about = read_state(folder)
    numerics = trained_in(about.get("fp8"), about["progress"].get("fp8_gap"))
    if numerics is not None:
        notes.append(numerics_in_words(numerics))
    return ModelWeights(model, state.weights, window_bases=longest, trained_in=numerics, notes=tuple(notes))
