"""A trained isotropic model as a frozen entropy model: one file that patching reads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.evaluation.native_checkpoint import PretrainedError, read_native
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.patching.entropy_models import save_entropy_model
from hyena_blt_savanna.patching.neural import NeuralConfig, NeuralModel

logger = logging.getLogger(__name__)


def freeze_entropy_model(
    checkpoint: Path,
    to: Path,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> NeuralModel:
    """Writes the model of a checkpoint as an entropy model, with what it was trained on (see `stored_models`).

    Args:
        checkpoint: a run folder, a training checkpoint or a native one.
        to: path of the file.
        precision: of its matrix products from now on.

    Returns:
        The model that was written.

    Raises:
        PretrainedError: there is no checkpoint, or its model can't be an entropy model.
        DiskFullError: the disk is full.
    """
    native = read_native(checkpoint)
    if not isinstance(native.config, IsotropicConfig):
        raise PretrainedError(
            f"{native.folder} holds a model of kind {native.config.to_dict()['kind']!r}, and an entropy model reads "
            "single bases: train one with configs/model/entropy.yaml, whose kind is isotropic"
        )
    try:
        config = NeuralConfig.parse({"model": native.config.to_dict(), "precision": precision})
    except ConfigError as error:
        raise PretrainedError(f"{native.folder} can't be an entropy model: {error}; train it anew") from error
    model = NeuralModel(config, native.module.state_dict())
    save_entropy_model(model, to, {"trained_on": native.trained_on})
    logger.info("%s: %s bases of context, digest %s", to, f"{model.context_bases:,}", model.digest[:12])
    return model
