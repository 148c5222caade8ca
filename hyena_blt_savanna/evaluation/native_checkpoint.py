"""Native checkpoints: consolidated weights with all that is needed to use them.

FOLDER/model.safetensors   weights, by the names of the torch module
FOLDER/config.yaml         the model's configuration, `kind` included
FOLDER/patcher/            entropy model and rule; left out for a model of single bases
FOLDER/manifest.json       format, versions, checksums; written last
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import hyena_blt_savanna
from hyena_blt_savanna.config import Config, ConfigError, merge
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.evaluation.sealed_folder import MANIFEST, SealError, read_seal, seal, verify, written_whole
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
    """

    folder: Path
    module: nn.Module
    config: Config
    patcher: Patcher | None
    window_bases: int | None
    trained_on: dict[str, Any] | None = None


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
    weights: Mapping[str, Tensor],
    model_config: Config,
    patcher: Patcher | None,
    window_bases: int | None = None,
    trained_on: Mapping[str, Any] | None = None,
) -> None:
    """Writes a native checkpoint, whole or not at all.

    Args:
        folder: where; a folder of that name is replaced.
        weights: consolidated state dictionary of the torch model, of any floating-point dtype, on any device.
        model_config: the model's configuration; its `kind` tells which model to build.
        patcher: cuts sequences as the training data were cut; None for a model of single bases.
        window_bases: longest window of the training; evaluation takes it by default.
        trained_on: `data_sha256` of the training data and the fold `left_out` of them, or None.

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
    try:
        with written_whole(folder) as partial:
            save_file(_separate(weights), partial / WEIGHTS, metadata={"format": "pt"})
            model_config.save(partial / CONFIG)
            # safetensors makes a file that nobody else may read: a checkpoint is as open as its folder's other files.
            (partial / WEIGHTS).chmod((partial / CONFIG).stat().st_mode)
            if patcher is not None:
                patcher.save(partial / PATCHER)
            seal(partial, about)
    except (OSError, SafetensorError, DataError) as error:
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
    folder = find_native(path)
    try:
        about = read_seal(folder)
        _check_format(folder, about)
        verify(folder)
        config = _parse_config(folder)
    except (SealError, ConfigError) as error:
        raise PretrainedError(str(error)) from error
    # Drawing the weights that are about to be replaced must not move the caller's generator.
    with torch.random.fork_rng(devices=[]):
        module: nn.Module = config.build()  # type: ignore[attr-defined]
    _load_weights(module, folder / WEIGHTS)
    patcher = _load_patcher(folder)
    _check_patches_fit(folder, config, patcher)
    return NativeCheckpoint(
        folder=folder,
        module=module.eval().requires_grad_(False),
        config=config,
        patcher=patcher,
        window_bases=about.get("window_bases"),
        trained_on=about.get("trained_on"),
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
    if (path / WEIGHTS).exists():
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


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PretrainedError(f"{path} can't be read: {error}") from error
    wanted = module.state_dict()
    problems = _missing_and_extra(set(wanted), set(weights)) + [
        f"{name} has shape {list(weights[name].shape)} instead of {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    if problems:
        left_out = len(problems) - _LISTED_NAMES
        lines = problems[:_LISTED_NAMES] + ([f"and {left_out} more"] if left_out > 0 else [])
        raise PretrainedError(
            f"{path} holds the weights of another model than {CONFIG} beside it describes:\n"
            + "\n".join(f"  {line}" for line in lines)
        )
    module.load_state_dict(weights)


def _missing_and_extra(wanted: set[str], given: set[str]) -> list[str]:
    missing, extra = sorted(wanted - given), sorted(given - wanted)
    lines = []
    for name in missing:
        nearest = difflib.get_close_matches(name, extra, n=1)
        lines.append(f"{name} is missing" + (f"; nearest that is there: {nearest[0]}" if nearest else ""))
    for name in extra:
        nearest = difflib.get_close_matches(name, missing, n=1)
        lines.append(f"{name} is no weight of this model" + (f"; nearest: {nearest[0]}" if nearest else ""))
    return lines


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


def _separate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, none of which shares memory with another, as safetensors wants them."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in seen or plain.untyped_storage().nbytes() != plain.nbytes:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate


def _versions() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("torch", "safetensors", "numpy")}
    return {"hyena_blt_savanna": hyena_blt_savanna.__version__, **packages}
