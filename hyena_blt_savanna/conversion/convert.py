"""Conversion of checkpoints from one format to another: whole or not at all, one tensor at a time, and checked."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hyena_blt_savanna
from hyena_blt_savanna.conversion import into_hybrid
from hyena_blt_savanna.conversion.agreement import compare, fixed_bases, logits_of
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights
from hyena_blt_savanna.conversion.window import with_window
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.evaluation.native_checkpoint import PretrainedError, find_native
from hyena_blt_savanna.evaluation.sealed_folder import (
    MANIFEST,
    describe_file,
    list_files,
    read_seal,
    seal,
    write_seal,
    written_whole,
)
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.nucleotides import SCORED

logger = logging.getLogger(__name__)

AUTO = "auto"
INTO = ("hyena_blt",)


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Attributes:
        module: of the package, with `read` and `write`; imported when it is used.
        reads: whether it can be a source.
        writes: whether it can be a target.
        takes_settings: whether `read` takes YAML files and `key=value` besides the path.
    """

    module: str
    reads: bool = True
    writes: bool = True
    takes_settings: bool = False

    def function(self, name: str) -> Callable[..., Any]:
        """`read`, `write` or another function of the module."""
        found: Callable[..., Any] = getattr(
            importlib.import_module(f"hyena_blt_savanna.conversion.{self.module}"), name
        )
        return found


FORMATS = {
    "native": Format("native"),
    "deepspeed": Format("deepspeed_folder", writes=False),
    "savanna": Format("savanna", takes_settings=True),
    "vortex": Format("vortex", takes_settings=True),
    "transformers": Format("transformers_export", reads=False),
}
_UNIVERSAL = Format("universal")
"""DeepSpeed to DeepSpeed: with the optimizer's state, a way of its own."""


@dataclass(frozen=True)
class Conversion:
    """What is converted into what.

    Attributes:
        source: file or folder.
        target: folder to write.
        source_format: of FORMATS, or `auto`.
        target_format: of FORMATS.
        settings: YAML files and `key=value` in the source format's own keys.
        into: `hyena_blt`: the blocks become the global model of a hybrid.
        hybrid: YAML files and `key=value` of the hybrid.
        window_bases: the window to convert to.
        check: compare the logits of source and target.
    """

    source: Path
    target: Path
    source_format: str
    target_format: str
    settings: tuple[str, ...] = ()
    into: str | None = None
    hybrid: tuple[str, ...] = ()
    window_bases: int | None = None
    check: bool = True


def convert(asked: Conversion) -> dict[str, Any]:
    """Converts a checkpoint, whole or not at all.

    Args:
        asked: what into what.

    Returns:
        What was done, ready for JSON; `notes` says what was lost or derived, `check` how far the logits are apart.

    Raises:
        ConversionError: it can't be converted, or the target's logits are others; nothing of the target is left.
        PretrainedError: a native checkpoint can't be read or written.
    """
    if asked.target.is_symlink():
        # Written beside what the link points to, which may be on another disk, and not in the link's place.
        asked = dataclasses.replace(asked, target=asked.target.resolve())
    source_format = detect_format(asked.source) if asked.source_format == AUTO else asked.source_format
    _check_asked(asked, source_format)
    if (source_format, asked.target_format) == ("deepspeed", "deepspeed"):
        return _convert_universal(asked)
    settings = (asked.settings,) if FORMATS[source_format].takes_settings else ()
    weights: ModelWeights = FORMATS[source_format].function("read")(asked.source, *settings)
    if asked.window_bases is not None:
        weights = with_window(weights, asked.window_bases)
    written = weights if asked.into is None else into_hybrid.into_hyena_blt(weights, asked.hybrid)
    try:
        with written_whole(asked.target) as partial:
            result = _write(asked, source_format, written, partial)
            if asked.check:
                result["check"] = _check(asked, weights, partial)
                logger.info("logits differ by at most %(largest_difference).3g of %(largest_logit).3g", result["check"])
            _seal(partial, {key: value for key, value in result.items() if key not in ("source", "target")})
        return result
    except (OSError, DataError) as error:
        raise ConversionError(
            f"{asked.target}: the checkpoint could not be written: {error}; nothing of it is left"
        ) from error


def _check_asked(asked: Conversion, source_format: str) -> None:
    for name, role, able in (
        (source_format, "--from", lambda format: format.reads),
        (asked.target_format, "--to", lambda format: format.writes or source_format == "deepspeed"),
    ):
        known = [key for key, format in FORMATS.items() if able(format)]
        if name not in known:
            hint = ""
            if (name, role) == ("deepspeed", "--to"):
                hint = "; to train on with DeepSpeed, convert to native and give the run start_from"
            raise ConversionError(f"{role} {name}: there is no such format; choose from {', '.join(known)}{hint}")
    if asked.settings and not FORMATS[source_format].takes_settings:
        raise ConversionError(f"{' '.join(asked.settings)}: {source_format} holds its configuration; leave this out")
    if asked.into is not None and asked.into not in INTO:
        raise ConversionError(f"--into {asked.into}: choose from {', '.join(INTO)}")
    if asked.hybrid and asked.into is None:
        raise ConversionError("--config describes the model of --into: give --into hyena_blt too, or leave it out")
    if asked.into is not None and asked.target_format != "native":
        raise ConversionError("--into hyena_blt writes a native checkpoint to train on: give --to native")
    if asked.target.exists() and (not asked.target.is_dir() or any(asked.target.iterdir())):
        raise ConversionError(f"{asked.target} is there already: give another target, or remove it first")
    if asked.source.resolve() in asked.target.resolve().parents:
        raise ConversionError(f"{asked.target} lies in the source: give a target beside it")


def detect_format(path: Path) -> str:
    """The format of a file or folder, by the files that are in it.

    Args:
        path: a checkpoint, or a folder of checkpoints.

    Raises:
        ConversionError: it is none that is known.
    """
    if not path.exists():
        raise ConversionError(f"{path}: no such file or folder")
    try:
        find_native(path)
        return "native"
    except PretrainedError:
        pass
    if path.is_file():
        names = [path.name]
    else:
        names = [file.relative_to(path).as_posix() for file in [*path.glob("*"), *path.glob("*/*")] if file.is_file()]
    if any(re.search(r"(^|/)mp_rank_\d+_model_states\.pt$", name) for name in names):
        return "deepspeed" if _is_of_our_training(path) else "savanna"
    if any(re.search(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt$", name) for name in names):
        return "deepspeed"
    if any(name.endswith(".pt") and "/" not in name for name in names):
        return "vortex"
    raise ConversionError(f"{path} is of no known format: give --from {', '.join(FORMATS)}")


def _is_of_our_training(path: Path) -> bool:
    """Savanna's files are DeepSpeed's too; a training here leaves a manifest, and so does a conversion."""
    return (path / MANIFEST).is_file() and "conversion" not in read_seal(path)


def _write(asked: Conversion, source_format: str, weights: ModelWeights, partial: Path) -> dict[str, Any]:
    lost = FORMATS[asked.target_format].function("write")(weights, partial)
    if asked.into is not None:
        assert isinstance(weights.config, HyenaBLTConfig)
        into_hybrid.write_training_files(weights.config, partial, asked.target)
    return {
        "from": source_format,
        "to": asked.target_format,
        "source": str(asked.source),
        "target": str(asked.target),
        "kind": weights.config.to_dict()["kind"],
        "num_tensors": len(weights.tensors),
        "num_bytes": sum(tensor.num_bytes for tensor in weights.tensors.values()),
        "window_bases": weights.window_bases,
        "notes": [*weights.notes, *lost],
        "check": None,
    }


def _check(asked: Conversion, weights: ModelWeights, partial: Path) -> dict[str, Any]:
    source = logits_of(weights)
    target_format = FORMATS[asked.target_format]
    if not target_format.reads:
        return compare(source, _exported_logits(target_format.function("load")(partial), source))
    read_back: ModelWeights = target_format.function("read")(partial)
    if asked.into is not None:
        read_back = into_hybrid.with_global_model_of(weights, read_back)
    target = logits_of(read_back)
    try:
        return compare(source, target)
    except ConversionError as error:
        _explain_by_norms(asked, weights, read_back, source, target, error)
        raise


def _explain_by_norms(
    asked: Conversion, weights: ModelWeights, read_back: ModelWeights, source: Tensor, target: Tensor, error: Exception
) -> None:
    """Says so if logits differ only because the target has epsilon in another place of the norms."""
    config, config_there = weights.config, read_back.config
    if not (isinstance(config, IsotropicConfig) and isinstance(config_there, IsotropicConfig)):
        return
    if config.stack.norm == config_there.stack.norm:
        return
    stack = config.stack.model_copy(update={"norm": config_there.stack.norm})
    like_target = dataclasses.replace(weights, config=config.model_copy(update={"stack": stack}))
    compare(logits_of(like_target), target)
    change, largest = float((source - target).abs().max()), float(source.abs().max())
    raise ConversionError(
        f"{asked.target_format} adds epsilon outside the root of its norms, and this model adds it inside "
        f"(norm.epsilon_inside_root): this alone changes its logits by up to {change:.3g}, where the largest is "
        f"{largest:.3g}, and nothing was written; all else agrees, and --no-check writes it all the same"
    ) from error


def _exported_logits(model: Any, like: Tensor) -> Tensor:
    """What a model of transformers gives for the fixed sequence; of its columns, those that ours has."""
    bases = torch.from_numpy(fixed_bases().astype(np.int64))[None]
    with torch.inference_mode():
        logits: Tensor = model(input_ids=bases).logits.float()
    return logits if logits.shape == like.shape else logits[..., list(SCORED)]


def _seal(partial: Path, conversion: dict[str, Any]) -> None:
    """Says in the target's manifest where it comes from."""
    names = ("torch", "safetensors", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    if not (partial / MANIFEST).exists():
        about = {"versions": {"hyena_blt_savanna": hyena_blt_savanna.__version__, **versions}, "conversion": conversion}
        seal(partial, about)
        return
    about = read_seal(partial)
    files = about.pop("files")
    # Files that came after the format's own manifest.
    files |= {name: describe_file(partial / name) for name in list_files(partial) if name not in files}
    write_seal(partial, {**about, "conversion": conversion}, files)


def _convert_universal(asked: Conversion) -> dict[str, Any]:
    if asked.into is not None or asked.window_bases is not None:
        raise ConversionError(
            "from deepspeed to deepspeed the optimizer's state goes along, and nothing else can change: convert to "
            "native for --into or --window-bases"
        )
    done = _UNIVERSAL.function("convert")(asked.source, asked.target)
    return {
        "from": "deepspeed",
        "to": "deepspeed",
        "source": str(asked.source),
        "target": str(asked.target),
        "notes": list(done) if isinstance(done, (list, tuple)) else [],
        "check": None,
    }


def to_json(result: dict[str, Any]) -> str:
    """What `convert` returned, as text."""
    return json.dumps(result, indent=2)
