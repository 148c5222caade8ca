"""DeepSpeed's own files of a checkpoint, cut by rank, read as whole tensors.

mp_rank_00_model_states.pt                    ZeRO 0, 1, 2: weights; ZeRO 0: the optimizer's state too
zero_pp_rank_R_mp_rank_00_model_states.pt     ZeRO 3: shapes, buffers, this rank's parts of frozen weights
zero_pp_rank_R_mp_rank_00_optim_states.pt     ZeRO 1, 2, 3: this rank's parts of trained weights and their state

DeepSpeed's converter to universal checkpoints does not serve: it refuses ZeRO 1 and 2 checkpoints that were not
written for it, and leaves out ZeRO 0, frozen weights and the number of steps.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, lazy_bytes
from hyena_blt_savanna.training.training_state import CheckpointError, TrainingState

_WHOLE_MODEL = "mp_rank_00_model_states.pt"
_OF_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_(model|optim)_states\.pt")
_WEIGHT = "fp32"


def read_zero_files(
    folder: Path, optimizer_names: Sequence[str] | None = None, tied_names: Mapping[str, str] | None = None
) -> TrainingState:
    """Finds the tensors in the files that DeepSpeed's engine wrote.

    Only call it for a folder whose manifest verifies: the files are unpickled without restriction, as DeepSpeed does.

    Args:
        folder: of these files.
        optimizer_names: of the parameters, in the order of the optimizer; asked for without ZeRO alone, where the files
            don't tell.
        tied_names: further names of parameters, and those that stand for them; DeepSpeed notes them for parameters of
            two modules, and not for a module of two names.

    Returns:
        The state; no tensor is read yet, and no file is kept open.

    Raises:
        CheckpointError: a file is missing or cut off, or the files are not of one step.
    """
    files: dict[str, dict[int, Path]] = {"model": {}, "optim": {}}
    for path in folder.glob("*_states.pt"):
        if match := _OF_RANK.fullmatch(path.name):
            files[match[2]][int(match[1])] = path
    if not files["optim"]:
        return _read_unsharded(folder / _WHOLE_MODEL, optimizer_names)
    shards = {rank: _Opened.open(path) for rank, path in sorted(files["optim"].items())}
    optimizers = {rank: shard.content["optimizer_state_dict"] for rank, shard in shards.items()}
    first = next(iter(optimizers.values()))
    counts, stage = first["partition_count"], int(first["zero_stage"])
    num_ranks = max(counts) if isinstance(counts, list) else counts
    _check_ranks(folder, "optim", list(shards), num_ranks)
    if stage == 3:
        _check_ranks(folder, "model", list(files["model"]), num_ranks)
        models = [_Opened.open(path) for _, path in sorted(files["model"].items())]
    else:
        models = [_Opened.open(folder / _WHOLE_MODEL)]
    _check_steps(folder, {model.path.name: model.content["global_steps"] for model in models}, "was written after step")
    parts = [_parts(shards[rank], optimizers[rank], stage, models[0].content) for rank in range(num_ranks)]
    for group in parts[0].steps:
        found = {shards[rank].path.name: parts[rank].steps.get(group, 0) for rank in range(num_ranks)}
        _check_steps(folder, found, "holds an optimizer of step")
    return _put_together(models, parts, tied_names or {})


@dataclass(frozen=True)
class _Opened:
    """A file of DeepSpeed's, unpickled, with the places of its tensors in place of their values."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> _Opened:
        from torch._subclasses.fake_tensor import FakeTensorMode

        try:
            # In this mode torch reads no values, and notes where in the file they are.
            with FakeTensorMode():
                return cls(path, torch.load(path, map_location="cpu", weights_only=False))
        except FileNotFoundError:
            raise CheckpointError(f"{path.parent} lacks {path.name}: copy the checkpoint again") from None
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path} can't be read: {error}; copy it again") from error

    def place(self, tensor: Tensor, start: int = 0, shape: Sequence[int] | None = None) -> LazyTensor:
        """A tensor of the file, or a run of its values.

        Args:
            tensor: of `content`.
            start: first value.
            shape: of the run; None takes all of the tensor.
        """
        assert tensor.is_contiguous(), "DeepSpeed writes contiguous tensors"
        beginning = tensor.untyped_storage()._checkpoint_offset
        assert beginning is not None, "torch has noted the place of each storage"
        offset = beginning + (int(tensor.storage_offset()) + start) * tensor.element_size()
        return lazy_bytes(self.path, offset, tensor.shape if shape is None else shape, tensor.dtype)


@dataclass(frozen=True)
class _Parts:
    """One rank's parts of the trained parameters.

    Attributes:
        tensors: by name of the state (`_WEIGHT` for the weights), then of the parameter; one-dimensional.
        steps: of each group of parameters that the optimizer has updated.
        group_of: group of each parameter of which this rank has a part.
    """

    tensors: dict[str, dict[str, LazyTensor]]
    steps: dict[int, int]
    group_of: dict[str, int]


def _parts(shard: _Opened, optimizer: Mapping[str, Any], stage: int, model: Mapping[str, Any]) -> _Parts:
    if stage == 3:
        states = optimizer["optimizer_state_dict"]["state"]
        flat_groups = optimizer["fp32_flat_groups"]
        places = _places_by_shape(flat_groups, model["param_shapes"], optimizer["partition_count"])
    else:
        states = optimizer["base_optimizer_state"]["state"]
        flat_groups = optimizer["single_partition_of_fp32_groups"]
        places = (
            (name, group, address.start, address.numel)
            for group, addresses in enumerate(optimizer["param_slice_mappings"])
            for name, address in addresses.items()
        )
    parts = _Parts({_WEIGHT: {}}, {}, {})
    for group, state in states.items():
        if "step" in state:
            parts.steps[group] = int(shard.place(state["step"]).load())
    for name, group, start, num_values in places:
        parts.group_of[name] = group
        flat = {_WEIGHT: flat_groups[group]} | dict(states.get(group, {}))
        for key, values in flat.items():
            if key != "step":
                parts.tensors.setdefault(key, {})[name] = shard.place(values, start, [num_values])
    return parts


def _places_by_shape(
    flat_groups: Sequence[Tensor], shapes: Sequence[Mapping[str, Any]], num_ranks: int
) -> Iterator[tuple[str, int, int, int]]:
    """Where ZeRO 3 has its parts: in the order of the parameters, one after the other, all of the same size."""
    for group, (values, members) in enumerate(zip(flat_groups, shapes, strict=True)):
        start = 0
        for name, shape in members.items():
            num_values = -(-math.prod(shape) // num_ranks)
            yield name, group, start, num_values
            start += num_values
        assert start == values.numel(), "ZeRO 3 keeps nothing else in a group"


def _put_together(models: Sequence[_Opened], parts: Sequence[_Parts], tied: Mapping[str, str]) -> TrainingState:
    model = models[0].content
    shapes = {name: tuple(shape) for group in model["param_shapes"] for name, shape in group.items()}
    tensors = {
        key: {
            name: _joined([part.tensors[key][name] for part in parts if name in part.tensors.get(key, {})], shape)
            for name, shape in shapes.items()
        }
        for key in parts[0].tensors
    }
    trained = tensors.pop(_WEIGHT)
    frozen = {
        name: _joined([_flat(each, each.content["frozen_param_fragments"][name]) for each in models], shape)
        for name, shape in (model["frozen_param_shapes"] or {}).items()
    }
    group_of = {name: group for part in parts for name, group in part.group_of.items()}
    same = {**(model["shared_params"] or {}), **tied}
    weights = {
        name: trained.get(same.get(name, name)) or frozen.get(same.get(name, name)) or models[0].place(value)
        for name, value in model["module"].items()
    }
    return TrainingState(
        weights=weights,
        optimizer=tensors,
        optimizer_steps={name: parts[0].steps[group] for name, group in group_of.items() if group in parts[0].steps},
        num_steps=model["global_steps"],
        num_samples=model["global_samples"],
    )


def _flat(opened: _Opened, tensor: Tensor) -> LazyTensor:
    return opened.place(tensor, 0, [tensor.numel()])


def _joined(parts: Sequence[LazyTensor], shape: Sequence[int]) -> LazyTensor:
    """Parts one after the other; what is left over at the end fills up the last ranks' parts."""
    num_values = math.prod(shape)
    assert sum(math.prod(part.shape) for part in parts) >= num_values, "all ranks' parts are there"

    def load() -> Tensor:
        return torch.cat([part.load() for part in parts])[:num_values].reshape(tuple(shape))

    return LazyTensor(tuple(shape), parts[0].dtype, load)


def _read_unsharded(path: Path, optimizer_names: Sequence[str] | None) -> TrainingState:
    """What is written without ZeRO: one file, in which the optimizer counts its parameters."""
    opened = _Opened.open(path)
    model = opened.content
    if model["optimizer"] is None:
        raise CheckpointError(f"{path.parent} lacks zero_pp_rank_*_optim_states.pt: copy the checkpoint again")
    if optimizer_names is None:
        raise CheckpointError(
            f"{path.parent.parent} does not tell the order of its optimizer's parameters: it was written by an earlier "
            "version; go on with zero_stage 0 to the next checkpoint, which will"
        )
    optimizer: dict[str, dict[str, LazyTensor]] = {}
    steps = {}
    for index, state in model["optimizer"]["state"].items():
        name = optimizer_names[index]
        for key, value in state.items():
            if key == "step":
                steps[name] = int(opened.place(value).load())
            else:
                optimizer.setdefault(key, {})[name] = opened.place(value)
    return TrainingState(
        weights={name: opened.place(value) for name, value in model["module"].items()},
        optimizer=optimizer,
        optimizer_steps=steps,
        num_steps=model["global_steps"],
        num_samples=model["global_samples"],
    )


def _check_ranks(folder: Path, what: str, found: Sequence[int], num_ranks: int) -> None:
    missing = sorted(set(range(num_ranks)) - set(found))
    if missing:
        names = ", ".join(f"zero_pp_rank_{rank}_mp_rank_00_{what}_states.pt" for rank in missing)
        raise CheckpointError(f"{folder} was written by {num_ranks} ranks and lacks {names}: copy the checkpoint again")
    extra = sorted(set(found) - set(range(num_ranks)))
    if extra:
        raise CheckpointError(
            f"{folder} was written by {num_ranks} ranks and has {what} files of rank {', '.join(map(str, extra))}: "
            "files of several checkpoints are mixed; copy it again into an empty folder"
        )


def _check_steps(folder: Path, found: Mapping[str, int], what: str) -> None:
    if len(set(found.values())) > 1:
        raise CheckpointError(
            f"{folder}: files of several checkpoints are mixed; copy it again into an empty folder:\n"
            + "\n".join(f"  {name} {what} {step}" for name, step in found.items())
        )
