"""Native checkpoints as a format of conversion."""

from __future__ import annotations

from pathlib import Path

from hyena_blt_savanna.conversion.weights import ModelWeights, check_tensors, state_shapes
from hyena_blt_savanna.evaluation.native_checkpoint import find_native, numerics_in_words, read_parts, save_pretrained


def read(path: Path) -> ModelWeights:
    """Reads a native checkpoint, or the newest one of a run folder.

    Args:
        path: as `read_native` takes it.

    Raises:
        ConversionError: the weights don't fit the configuration.
        PretrainedError: there is no checkpoint, or it is broken.
    """
    weights = read_unchecked(path)
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    check_tensors(str(find_native(path)), state_shapes(weights.config), shapes)
    return weights


def read_unchecked(path: Path) -> ModelWeights:
    """Likewise, whether or not the weights fit the configuration.

    Raises:
        PretrainedError: there is no checkpoint, or it is broken.
    """
    parts = read_parts(path)
    notes = (numerics_in_words(parts.trained_in),) if parts.trained_in else ()
    return ModelWeights(
        parts.config, parts.tensors, parts.patcher, parts.window_bases, parts.trained_on, parts.trained_in, notes
    )


def write(weights: ModelWeights, folder: Path) -> list[str]:
    """Writes a native checkpoint, whole or not at all.

    Args:
        weights: of any model.
        folder: a folder of that name is replaced.

    Returns:
        Nothing: it holds all there is.

    Raises:
        PretrainedError: it can't be written.
    """
    save_pretrained(
        folder,
        weights.tensors,
        weights.config,
        weights.patcher,
        weights.window_bases,
        weights.trained_on,
        weights.trained_in,
    )
    return []
