"""What an entropy model is to the rest of the package, and how one is stored.

An entropy model is frozen: the same offline, in evaluation and while generating. It is stored as one
safetensors file that holds its tensors and, as metadata, its kind, its settings and its digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.marks import START

FORMAT_VERSION = "1"


class EntropyModelError(ValueError):
    """A stored entropy model that can't be read or is not the one that was asked for."""


class EntropyStepper(Protocol):
    """Reads one stream from its start, in chunks or base by base."""

    @property
    def next_entropy_nats(self) -> float:
        """Entropy of the base after those read so far; a float32 value."""

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""

    def read(self, bases: Bytes) -> NDArray[np.float32]:
        """Reads the next bases, uint8 [L]; returns the entropy of each given those before it, float32 [L], nats."""

    def copy(self) -> EntropyStepper:
        """Another reader of the same stream, at the same place: what one reads, the other does not know."""


class StreamEntropies(Protocol):
    """Whatever gives each base of a stream its entropy: all that annotation needs."""

    @property
    def context_bases(self) -> int:
        """Bases before a base that its entropy depends on, at most; 0: all since the start of the stream."""

    def stepper(self, state: int = START) -> EntropyStepper:
        """A reader of one stream: from its start, or from a place with the `state` (see `marks`) before it.

        It knows nothing of the bases before that place: read `context_bases` of them first.
        """


class EntropyModel(StreamEntropies, Protocol):
    """A frozen model of the next base, with all that storing it takes."""

    @property
    def config(self) -> Config:
        """Its settings; `config.kind` names the model."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides its entropies."""

    def entropies(self, bases: Bytes) -> NDArray[np.float32]:
        """Entropy of each base given the bases before it, float32 [L], nats; `bases` is read from its start."""

    def tensors(self) -> dict[str, NDArray[Any]]:
        """What a file of the model holds beside its settings."""


_Classes = tuple[type[Config], Any]
"""Settings and class of a kind; the class has `from_tensors(config, tensors)`."""


def _ngram() -> _Classes:
    from hyena_blt_savanna.patching.ngram import NgramConfig, NgramModel

    return NgramConfig, NgramModel


def _adaptive() -> _Classes:
    from hyena_blt_savanna.patching.adaptive import AdaptiveConfig, AdaptiveModel

    return AdaptiveConfig, AdaptiveModel


def _neural() -> _Classes:
    from hyena_blt_savanna.patching.neural import NeuralConfig, NeuralModel

    return NeuralConfig, NeuralModel


_KINDS: dict[str, Callable[[], _Classes]] = {"ngram": _ngram, "adaptive": _adaptive, "neural": _neural}
"""Imported when a model of the kind is read, so that only who reads a neural one waits for torch."""


def kind_of(model: EntropyModel) -> str:
    """Name of a model's kind."""
    kind: str = model.config.to_dict()["kind"]
    return kind


def save_entropy_model(model: EntropyModel, path: Path, about: dict[str, Any] | None = None) -> None:
    """Writes a model, whole or not at all.

    Args:
        model: any entropy model.
        path: of the file.
        about: what else is to be known of it, such as what it was trained on; `read_about` gives it back.

    Raises:
        DiskFullError: the disk is full.
    """
    metadata = {
        "format_version": FORMAT_VERSION,
        "kind": kind_of(model),
        "config": json.dumps(model.config.to_dict()),
        "digest": model.digest,
        "about": json.dumps(about or {}),
    }
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in model.tensors().items()}
    write_whole(path, safetensors.numpy.save(tensors, metadata))


def read_about(path: Path) -> dict[str, Any]:
    """What `save_entropy_model` was given as `about`; empty where it was given nothing.

    Raises:
        EntropyModelError: the file is missing or damaged.
    """
    metadata, _ = _read_file(path, with_tensors=False)
    try:
        about: dict[str, Any] = json.loads(metadata.get("about", "{}"))
    except ValueError as error:
        raise EntropyModelError(f"{path}: its `about` is not JSON: {error}") from error
    return about


def learned_digests(about: Mapping[str, Any]) -> set[str]:
    """Digests of all training data that a model's `about` names: of the whole, and of each source of a mixture."""
    trained_on = about.get("trained_on") or {}
    found = [trained_on, *trained_on.get("sources", {}).values()]
    return {one["data_sha256"] for one in found if one.get("data_sha256")}


def read_digest(path: Path) -> str:
    """The digest of a stored model, without a look at its tensors.

    Raises:
        EntropyModelError: the file is missing or damaged.
    """
    metadata, _ = _read_file(path, with_tensors=False)
    return metadata.get("digest", "")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a stored model, without a look at its tensors; `kind` names the model.

    Raises:
        EntropyModelError: the file is missing or damaged.
    """
    metadata, _ = _read_file(path, with_tensors=False)
    try:
        settings: dict[str, Any] = json.loads(metadata.get("config", ""))
    except ValueError as error:
        raise EntropyModelError(f"{path}: its settings are not JSON: {error}") from error
    return settings


def _read_file(path: Path, with_tensors: bool = True) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    if not path.is_file():
        raise EntropyModelError(
            f"{path}: no such file; an entropy model is stored by tools/annotate_patches.py or "
            "tools/freeze_entropy_model.py"
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = file.keys() if with_tensors else ()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except safetensors.SafetensorError as error:
        raise EntropyModelError(f"{path}: not a whole safetensors file: {error}") from error


def load_entropy_model(path: Path) -> EntropyModel:
    """Reads a model that `save_entropy_model` wrote.

    Raises:
        EntropyModelError: the file is missing, damaged, of another version or kind, or not what its digest says.
    """
    metadata, tensors = _read_file(path)
    if metadata.get("format_version") != FORMAT_VERSION or metadata.get("kind") not in _KINDS:
        raise EntropyModelError(
            f"{path}: format_version {metadata.get('format_version')}, kind {metadata.get('kind')}; this code reads "
            f"format_version {FORMAT_VERSION} of kind {', '.join(_KINDS)}: annotate the data again"
        )
    missing = [name for name in ("config", "digest") if name not in metadata]
    if missing:
        raise EntropyModelError(f"{path}: its metadata lack {' and '.join(missing)}: annotate the data again")
    try:
        settings = json.loads(metadata["config"])
        return rebuild_entropy_model(metadata["kind"], settings, tensors, metadata["digest"])
    except ValueError as error:
        raise EntropyModelError(f"{path}: {error}") from error


def rebuild_entropy_model(
    kind: str, settings: dict[str, Any], tensors: dict[str, NDArray[Any]], digest: str
) -> EntropyModel:
    """The model that was stored in these parts.

    Args:
        kind: of the model.
        settings: plain values of its configuration.
        tensors: what its `tensors` gave.
        digest: its own.

    Raises:
        EntropyModelError: there is no such kind, or the parts are not what the digest says.
        ConfigError, ValueError: the settings or the tensors are not those of such a model.
    """
    if kind not in _KINDS:
        raise EntropyModelError(f"there is no entropy model of kind {kind!r}; known: {', '.join(_KINDS)}")
    config_class, model_class = _KINDS[kind]()
    model: EntropyModel = model_class.from_tensors(config_class.parse(settings, "its settings"), tensors)
    if model.digest != digest:
        raise EntropyModelError(f"its contents are not those of its digest {digest[:12]}")
    return model
