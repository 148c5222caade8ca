"""Native checkpoints: consolidated weights with all that is needed to use them.

FOLDER/model.safetensors   weights, by the names of the torch module; large ones in shards (see `tensor_files`)
FOLDER/config.yaml         the model's configuration, `kind` included
FOLDER/patcher/            entropy model and rule; left out for a model of single bases
FOLDER/manifest.json       format, versions, checksums; written last
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hyena_blt_savanna
from hyena_blt_savanna.config import Config, ConfigError, merge
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.evaluation.sealed_folder import MANIFEST, SealError, read_seal, seal, verify, written_whole
from hyena_blt_savanna.evaluation.tensor_files import (
    SHARD_BYTES,
    LazyTensor,
    TensorFileError,
    has_safetensors,
    lazy,
    missing_and_extra,
    read_safetensors,
    write_safetensors,
)
from hyena_blt_savanna.patching.entropy_models import EntropyModelError
from hyena_blt_savanna.patching.patcher import Patcher

logger = logging.getLogger(__name__)

FORMAT = "hyena_blt_savanna native checkpoint"
FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
PATCHER = "patcher"
NATIVE = "native"
"""Folder of a training checkpoint that holds a native one."""
KINDS = {
    "hyena_blt": ("hyena_blt", "HyenaBLTConfig"),
    "isotropic": ("isotropic", "IsotropicConfig"),
    "hnet": ("hnet", "HNetConfig"),
    "kmer_tokens": ("kmer_tokens", "KmerTokensConfig"),
}
"""Modules of the model room and the configurations in them, by `kind`."""
_LISTED_NAMES = 8


class PretrainedError(ValueError):
    """A checkpoint that can't be used or written: the message names the folder and says what to change."""


@dataclass(frozen=True)
class NativeCheckpoint:
    """What a native checkpoint holds.

    Attributes:
        folder: where it was found.
        module: the torch model in evaluation mode, on the CPU.
        config: the model's.
        patcher: finds patch boundaries; None for a model of single bases.
        window_bases: longest window that the model was trained on, if known.
        trained_on: the digest of the training data, and the fold of them that was left out, if known.
        trained_in: how products were computed and how far from bf16 that was, for weights of a training in FP8.
    """

    folder: Path
    module: nn.Module
    config: Config
    patcher: Patcher | None
    window_bases: int | None
    trained_on: dict[str, Any] | None = None
    trained_in: dict[str, Any] | None = None


@dataclass(frozen=True)
class NativeParts:
    """A native checkpoint whose model is not built: the fields of NativeCheckpoint, and weights that are not read yet.

    Attributes:
        folder: where it was found.
        config: the model's.
        tensors: weights by the names of the torch module.
        patcher: finds patch boundaries; None for a model of single bases.
        window_bases: longest window that the model was trained on, if known.
        trained_on: the digest of the training data, and the fold of them that was left out, if known.
        trained_in: how products were computed and how far from bf16 that was, for weights of a training in FP8.
    """

    folder: Path
    config: Config
    tensors: dict[str, LazyTensor]
    patcher: Patcher | None
    window_bases: int | None
    trained_on: dict[str, Any] | None = None
    trained_in: dict[str, Any] | None = None


def patch_places(config: Config) -> tuple[str, int] | None:
    """How long the patches are that a model has places for.

    Args:
        config: of a model.

    Returns:
        The key that says so, and the number of bases; None for a model that reads no patch boundaries.
    """
    for key in ("max_patch_bases", "word_bases"):
        if key in type(config).model_fields:
            return key, getattr(config, key)
    return None


def save_pretrained(
    folder: Path,
    weights: Mapping[str, Tensor | LazyTensor],
    model_config: Config,
    patcher: Patcher | None,
    window_bases: int | None = None,
    trained_on: Mapping[str, Any] | None = None,
    trained_in: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a native checkpoint, whole or not at all, with one tensor more in memory than there were.

    Args:
        folder: where; a folder of that name is replaced.
        weights: consolidated state dictionary of the torch model, of any floating-point dtype, on any device or still
            on the disk.
        model_config: the model's configuration; its `kind` tells which model to build.
        patcher: cuts sequences as the training data were cut; None for a model of single bases.
        window_bases: longest window of the training; evaluation takes it by default.
        trained_on: `data_sha256` of the training data and the fold `left_out` of them, or None.
        trained_in: of a training in FP8: `precision`, `recipe`, `backend`, `version`, `bf16_blocks` and the last `gap`.
        shard_bytes: more weights than this are written as shards of at most so many bytes.

    Raises:
        PretrainedError: it can't be written, or the patcher cuts longer patches than the model has places for;
            nothing of it is left.
    """
    _check_patches_fit(folder, model_config, patcher)
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": model_config.to_dict()["kind"],
        "window_bases": window_bases,
        "trained_on": trained_on,
        "versions": _versions(),
    }
    if trained_in is not None:
        about["trained_in"] = trained_in
    try:
        with written_whole(folder) as partial:
            tensors = {name: lazy(value) if isinstance(value, Tensor) else value for name, value in weights.items()}
            write_safetensors(partial, tensors, shard_bytes=shard_bytes)
            model_config.save(partial / CONFIG)
            if patcher is not None:
                patcher.save(partial / PATCHER)
            seal(partial, about)
    except (OSError, DataError) as error:
        raise PretrainedError(
            f"{folder}: the checkpoint could not be written: {error}; nothing of it is left"
        ) from error


def read_native(path: Path) -> NativeCheckpoint:
    """Builds the model of a checkpoint.

    Args:
        path: a native folder, a training checkpoint that holds one, or the folder of a run.

    Raises:
        PretrainedError: there is no checkpoint, it is broken, or it is of another format or model.
    """
    parts = read_parts(path)
    # Drawing the weights that are about to be replaced must not move the caller's generator.
    with torch.random.fork_rng(devices=[]):
        module: nn.Module = parts.config.build()  # type: ignore[attr-defined]
    _load_weights(module, parts)
    if parts.trained_in is not None:
        logger.warning("%s: %s", parts.folder, numerics_in_words(parts.trained_in))
    return NativeCheckpoint(
        folder=parts.folder,
        module=module.eval().requires_grad_(False),
        config=parts.config,
        patcher=parts.patcher,
        window_bases=parts.window_bases,
        trained_on=parts.trained_on,
        trained_in=parts.trained_in,
    )


def read_parts(path: Path) -> NativeParts:
    """Reads all of a checkpoint but its weights, which are read when they are asked for.

    Args:
        path: a native folder, a training checkpoint that holds one, or the folder of a run.

    Raises:
        PretrainedError: there is no checkpoint, it is broken, or it is of another format.
    """
    folder = find_native(path)
    try:
        about = read_seal(folder)
        _check_format(folder, about)
        verify(folder)
        config = _parse_config(folder)
        tensors = read_safetensors(folder)
    except (SealError, ConfigError, TensorFileError) as error:
        raise PretrainedError(str(error)) from error
    patcher = _load_patcher(folder)
    _check_patches_fit(folder, config, patcher)
    known = {key: about.get(key) for key in ("window_bases", "trained_on", "trained_in")}
    return NativeParts(folder, config, tensors, patcher, **known)


def numerics_in_words(trained_in: Mapping[str, Any]) -> str:
    """What a user of weights from a training in FP8 must know of them.

    Args:
        trained_in: of a checkpoint.
    """
    gap = trained_in.get("gap")
    known = (
        "FP8 and bf16 were not compared"
        if gap is None
        else f"at step {gap['step']}, on {gap['num_bases']:,.0f} bases, FP8 and bf16 were "
        f"{gap['difference_bits']:.4f} bits per base apart"
    )
    return (
        f"trained in FP8 ({trained_in['recipe']} scaling by {trained_in['backend']} {trained_in['version']}), and "
        f"computed in the dtype of its weights or bf16 elsewhere; {known}"
    )


def find_native(path: Path) -> Path:
    """The native checkpoint that a path stands for.

    Args:
        path: a native folder; a training checkpoint (`native/` is taken); or a run folder or its `checkpoints/`
            (the newest checkpoint whose native part verifies is taken).

    Raises:
        PretrainedError: there is none.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise PretrainedError(f"{path} {what}: give the folder of a checkpoint or of a run")
    if has_safetensors(path):
        return path
    if (path / NATIVE).is_dir():
        return path / NATIVE
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    broken = []
    for native in _newest_first(folder):
        try:
            verify(native)
        except SealError as error:
            logger.warning("%s; the checkpoint before it is tried", error)
            broken.append(str(error))
            continue
        return native
    found = "; ".join(broken) or f"neither {WEIGHTS}, {NATIVE}/ nor checkpoints/step_*/{NATIVE}/ is there"
    raise PretrainedError(f"{path} holds no whole checkpoint: {found}")


def _newest_first(folder: Path) -> Iterator[Path]:
    steps = {}
    for path in folder.glob("step_*"):
        digits = path.name.removeprefix("step_")
        if digits.isdigit() and (path / NATIVE).is_dir():
            steps[int(digits)] = path / NATIVE
    for step in sorted(steps, reverse=True):
        yield steps[step]


def _check_format(folder: Path, about: Mapping[str, Any]) -> None:
    if about.get("format") != FORMAT:
        raise PretrainedError(
            f"{folder / MANIFEST} says format {about.get('format')!r} and not {FORMAT!r}: convert the checkpoint first"
        )
    if about.get("format_version") != FORMAT_VERSION:
        raise PretrainedError(
            f"{folder / MANIFEST} has format_version {about.get('format_version')}, and this program reads "
            f"{FORMAT_VERSION}: use the version of the program that wrote it"
        )


def _parse_config(folder: Path) -> Config:
    tree = merge([folder / CONFIG])
    kind = tree.get("kind")
    if kind not in KINDS:
        raise PretrainedError(f"{folder / CONFIG}: there is no model of kind {kind!r}; known: {', '.join(KINDS)}")
    module, name = KINDS[kind]
    config: type[Config] = getattr(importlib.import_module(f"hyena_blt_savanna.model.{module}"), name)
    return config.parse(tree, str(folder / CONFIG))


def _load_weights(module: nn.Module, parts: NativeParts) -> None:
    wanted = module.state_dict()
    problems = missing_and_extra(set(wanted), set(parts.tensors)) + [
        f"{name} has shape {list(parts.tensors[name].shape)} instead of {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & parts.tensors.keys())
        if parts.tensors[name].shape != wanted[name].shape
    ]
    if problems:
        left_out = len(problems) - _LISTED_NAMES
        lines = problems[:_LISTED_NAMES] + ([f"and {left_out} more"] if left_out > 0 else [])
        raise PretrainedError(
            f"{parts.folder / WEIGHTS} holds the weights of another model than {CONFIG} beside it describes:\n"
            + "\n".join(f"  {line}" for line in lines)
        )
    for name, tensor in wanted.items():
        tensor.copy_(parts.tensors[name].load())


def _load_patcher(folder: Path) -> Patcher | None:
    if not (folder / PATCHER).is_dir():
        return None
    try:
        return Patcher.load(folder / PATCHER)
    except (ConfigError, EntropyModelError) as error:
        raise PretrainedError(str(error)) from error


def _check_patches_fit(folder: Path, config: Config, patcher: Patcher | None) -> None:
    places = patch_places(config)
    if patcher is not None and places is not None and patcher.rule.max_patch_bases > places[1]:
        raise PretrainedError(
            f"{folder}: the patcher cuts patches of up to {patcher.rule.max_patch_bases} bases, and the model has "
            f"places for {places[1]}: give the rule a max_patch_bases of at most {places[1]}"
        )


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "safetensors", "numpy")}
    return {"hyena_blt_savanna": hyena_blt_savanna.__version__, **packages}
