"""The files of Savanna's tensor-parallel ranks, found, checked and put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena_blt_savanna.conversion.names import Place
from hyena_blt_savanna.conversion.torch_files import read_torch
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor
from hyena_blt_savanna.model.stack import StackConfig

RANK_FILE = "mp_rank_{:02d}_model_states.pt"
_RANK_PATTERN = re.compile(r"mp_rank_(\d+)_model_states\.pt")


def find_folder(path: Path) -> Path:
    """The folder with the files of the ranks.

    Args:
        path: that folder, or the one above it.

    Raises:
        ConversionError: there is none, several with nothing that says which, or one of another layout.
    """
    if path.is_file() and _RANK_PATTERN.fullmatch(path.name):
        return path.parent
    if not path.is_dir():
        raise ConversionError(f"{path}: no such folder; give the folder of {RANK_FILE.format(0)}")
    if any(_RANK_PATTERN.fullmatch(file.name) for file in path.iterdir()):
        return path
    if (path / "latest").is_file():
        name = (path / "latest").read_text(errors="replace").strip()
        if not name or Path(name).name != name or not (path / name).is_dir():
            raise ConversionError(f"{path / 'latest'} names {name or 'nothing'}, which is not there: give a folder")
        return find_folder(path / name)
    steps = sorted(folder for folder in path.glob("global_step*") if folder.is_dir())
    if len(steps) == 1:
        return find_folder(steps[0])
    if steps:
        names = ", ".join(folder.name for folder in steps)
        raise ConversionError(f"{path} has several checkpoints ({names}) and no file 'latest': give one of the folders")
    if any(path.glob("layer_*-model_*")) or any(path.glob("zero_pp_rank_*_model_states.pt")):
        raise ConversionError(
            f"{path} is of pipeline stages or ZeRO 3: only {RANK_FILE.format(0)}, ... are read; Savanna's "
            "tools/40b/zero3 make them"
        )
    raise ConversionError(f"{path} has no {RANK_FILE.format(0)}: it is no checkpoint of Savanna's")


def read_ranks(folder: Path) -> list[dict[str, Any]]:
    """What the files of all ranks hold; tensors are not read yet.

    Raises:
        ConversionError: a file is missing or broken, or they are of different steps.
    """
    ranks = sorted(
        int(match[1]) for file in folder.iterdir() if (match := _RANK_PATTERN.fullmatch(file.name)) is not None
    )
    states = [read_torch(folder / RANK_FILE.format(rank)) for rank in ranks]
    for rank, state in zip(ranks, states, strict=True):
        if not isinstance(state, dict) or not isinstance(state.get("module"), dict):
            raise ConversionError(
                f"{folder / RANK_FILE.format(rank)} has no entry 'module': it is no file of Savanna's"
            )
    sizes = [state.get("mp_world_size") or saved_args(state).get("model_parallel_size") for state in states]
    wanted = max([size for size in sizes if isinstance(size, int)] + [ranks[-1] + 1])
    missing = [RANK_FILE.format(rank) for rank in range(wanted) if rank not in ranks]
    if missing:
        raise ConversionError(f"{folder} lacks {', '.join(missing)} of {wanted} ranks: copy it again")
    steps = {rank: _step(state) for rank, state in zip(ranks, states, strict=True)}
    if len(set(steps.values())) > 1:
        listed = ", ".join(f"{RANK_FILE.format(rank)}: {step}" for rank, step in steps.items())
        raise ConversionError(f"{folder} mixes files of different global steps ({listed}): copy it again")
    return states


def saved_args(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What Savanna saves of its configuration beside the weights; empty if there is nothing.

    Args:
        state: of a rank.
    """
    args = state.get("args")
    return args if isinstance(args, Mapping) else {}


def _step(state: Mapping[str, Any]) -> Any:
    return next((state[key] for key in ("iteration", "global_steps") if state.get(key) is not None), None)


def merge_ranks(
    folder: Path, modules: Sequence[Mapping[str, LazyTensor]], places: Sequence[Place], stack: StackConfig
) -> dict[str, LazyTensor]:
    """Puts together what tensor parallelism has cut.

    Args:
        folder: for messages.
        modules: weights of each rank, by Savanna's names.
        places: where weights lie; what is in none is on the first rank alone, or on one rank.
        stack: of the blocks.

    Raises:
        ConversionError: the ranks don't hold the same weights; where a weight should be the same on all ranks and is
            not, when it is loaded.
    """
    by_name = {place.savanna: place for place in places}
    merged = {}
    for name in {name: None for module in modules for name in module}:
        parts = [module[name] for module in modules if name in module]
        if len(parts) < len(modules) or len({(part.shape, part.dtype) for part in parts}) > 1:
            raise ConversionError(
                f"{folder}: {name} is not on all ranks, or has several shapes or dtypes: copy it again"
            )
        place, tensor = by_name.get(name), parts[0]
        if len(parts) == 1 or place is None or not tensor.shape:
            merged[name] = tensor
        elif place.shard_dim is None:
            merged[name] = _replicated(folder, name, parts)
        else:
            in_thirds = place.thirds and not stack.hyena.interleaved_projection
            merged[name] = _joined(parts, _cut_dimension(place, tensor.shape, stack), in_thirds)
    return merged


def _cut_dimension(place: Place, shape: Sequence[int], stack: StackConfig) -> int:
    assert place.shard_dim is not None
    # Savanna cuts a head of its own by either (output_layer_parallelism).
    by_rows = place.ours == "head.weight" and len(shape) == 2 and shape[1] != stack.width
    dim = 1 if by_rows else place.shard_dim
    # A tensor of another number of dimensions is reported as it is.
    return min(dim, len(shape) - 1)


def _replicated(folder: Path, name: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    def load() -> Tensor:
        first = parts[0].load()
        for rank, part in enumerate(parts):
            if not torch.equal(part.load(), first):
                raise ConversionError(f"{folder}: {name} of rank {rank} is not that of rank 0, and should be: {name}")
        return first

    return LazyTensor(parts[0].shape, parts[0].dtype, load)


def _joined(parts: Sequence[LazyTensor], dim: int, in_thirds: bool) -> LazyTensor:
    shape = list(parts[0].shape)
    size = shape[dim]
    shape[dim] = size * len(parts)

    def load() -> Tensor:
        # Part after part, so that there is one besides the whole.
        whole = torch.empty(shape, dtype=parts[0].dtype)
        for rank, part in enumerate(parts):
            if in_thirds:
                third = size // 3
                whole.unflatten(0, (3, -1))[:, rank * third : (rank + 1) * third] = part.load().unflatten(0, (3, third))
            else:
                whole.narrow(dim, rank * size, size).copy_(part.load())
        return whole

    return LazyTensor(tuple(shape), parts[0].dtype, load)
