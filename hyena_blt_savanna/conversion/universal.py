"""Training checkpoints into universal ones: weights and optimizer state for any number of ranks and any ZeRO stage."""

from __future__ import annotations

from pathlib import Path

from hyena_blt_savanna.conversion.deepspeed_folder import find_checkpoint, verify_training, weights_of
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.evaluation.native_checkpoint import NATIVE, save_pretrained
from hyena_blt_savanna.evaluation.sealed_folder import copy_files
from hyena_blt_savanna.training.universal import (
    CONFIG,
    FP8_STATE,
    RANDOM_STATES,
    is_universal,
    read_state,
    read_training_state,
    write_universal,
)


def convert(source: Path, target: Path) -> list[str]:
    """Writes the universal form of a training checkpoint, whole or not at all, one tensor at a time.

    A run goes on from it as from any other checkpoint: at its step, with its optimizer, at its place in the data.

    Args:
        source: a training checkpoint, or a run folder (its newest whole one is taken).
        target: folder to write.

    Returns:
        Notes for the user.

    Raises:
        ConversionError: there is no training checkpoint, its manifest does not verify, or it is universal already.
        CheckpointError: a file is missing or cut off, or files of several checkpoints are mixed.
        DiskFullError: the disk is full.
    """
    folder = find_checkpoint(source)
    if is_universal(folder):
        raise ConversionError(f"{folder} is universal already: any number of ranks and any ZeRO stage goes on from it")
    verify_training(folder)
    about, state = read_state(folder), read_training_state(folder)
    notes = [
        f"written after step {state.num_steps} by {about['num_ranks']} rank(s) under ZeRO {about['zero_stage']}",
        f"a run goes on from it as RUN/checkpoints/step_{state.num_steps:08d}",
    ]

    def write_native(to: Path) -> None:
        if (folder / NATIVE).is_dir():
            copy_files(folder / NATIVE, to)
            return
        weights = weights_of(folder, state)
        notes.extend(weights.notes)
        save_pretrained(to, weights.tensors, weights.config, None, weights.window_bases, None, weights.trained_in)

    names = ["progress", "num_ranks", "zero_stage", "versions", "fp8"]
    kept = {name: about[name] for name in names if name in about}
    write_universal(
        target,
        state,
        kept,
        (folder / CONFIG).read_bytes(),
        write_native,
        random_states=folder / RANDOM_STATES,
        fp8_state=folder / FP8_STATE,
    )
    return notes
