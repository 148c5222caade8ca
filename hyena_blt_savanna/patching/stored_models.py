"""Entropy models that were fitted before: on other data, or by the training loop, fold by fold.

A model must not judge what it has learned. So a stored model says what it was trained on, and annotation refuses to
cut a training stream by a model that has seen it: each stretch of the stream needs the model that left it out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.patching.entropy_models import (
    EntropyModel,
    EntropyModelError,
    kind_of,
    learned_digests,
    load_entropy_model,
    read_about,
    read_digest,
)

_NUMBERS_ON_NODE = ("OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")


class StoredModelConfig(Config):
    """An entropy model from a file."""

    kind: Literal["stored"] = "stored"
    path: Path
    """A file that tools/freeze_entropy_model.py wrote, or entropy_model.safetensors of an annotation's patcher."""
    fold_paths: list[Path] = Field(default_factory=list)
    """For a model that was trained on these very data: the models that each left one fold of the training stream
    out, in the order of the folds."""

    def digests(self) -> list[str]:
        """Digests of the models in the files; a model that is trained anew keeps its path.

        Raises:
            EntropyModelError: a file is missing or damaged.
        """
        return [read_digest(path) for path in (self.path, *self.fold_paths)]

    def read(self, data_sha256: str, num_folds: int) -> tuple[EntropyModel, list[EntropyModel]]:
        """Reads the models.

        Args:
            data_sha256: digest of the training stream that is to be cut.
            num_folds: stretches that it is divided into.

        Returns:
            The model of new sequence, and for each fold the one that has not seen it.

        Raises:
            EntropyModelError: a file is missing or broken, or a fold would be judged by a model that has seen it.
        """
        model = _on_gpu(load_entropy_model(self.path))
        if not self.fold_paths:
            if data_sha256 in learned_digests(read_about(self.path)):
                raise EntropyModelError(
                    f"{self.path} was trained on these very data, and a model must not judge what it has learned: give "
                    "entropy_model.fold_paths, models that left one fold out each (data.left_out while training), or "
                    "fit an ngram, which is done out of fold"
                )
            return model, [model] * num_folds
        if len(self.fold_paths) != num_folds:
            raise EntropyModelError(
                f"{len(self.fold_paths)} entropy_model.fold_paths for {num_folds} folds: give one each, or set folds"
            )
        for fold, path in enumerate(self.fold_paths):
            if _trained_on(path) != (data_sha256, {"fold": fold, "folds": num_folds}):
                raise EntropyModelError(
                    f"{path}: its training did not leave fold {fold} of {num_folds} of these data out "
                    f"(it says: {read_about(path).get('trained_on')}): train it with data.left_out.fold={fold} "
                    f"data.left_out.folds={num_folds} on this dataset"
                )
        return model, [_on_gpu(load_entropy_model(path)) for path in self.fold_paths]


def _on_gpu(model: EntropyModel) -> EntropyModel:
    """A neural model on the GPU, where there is one: of several, that of this process's number on its node."""
    if kind_of(model) != "neural":
        return model
    # Imported here: only who reads a neural model waits for torch.
    import torch

    from hyena_blt_savanna.patching.neural import NeuralModel

    assert isinstance(model, NeuralModel)
    if not torch.cuda.is_available():
        return model
    number = next((int(os.environ[name]) for name in _NUMBERS_ON_NODE if name in os.environ), 0)
    return model.on(torch.device("cuda", number % torch.cuda.device_count()))


def _trained_on(path: Path) -> tuple[Any, Any]:
    trained_on = read_about(path).get("trained_on") or {}
    return trained_on.get("data_sha256"), trained_on.get("left_out")
