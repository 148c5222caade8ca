"""Files of tensors that are read and written one tensor at a time: safetensors, whole or in shards.

STEM.safetensors                   one file, or
STEM-00001-of-0000N.safetensors    shards, and
STEM.safetensors.index.json        which shard holds which tensor
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyena_blt_savanna.data.whole_files import WholeFile, write_whole

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
SHARD_BYTES = 5_000_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's names of dtypes."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000


class TensorFileError(ValueError):
    """A file of tensors that can't be read; the message names it."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is asked for.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        load: reads it from the disk, or computes it, anew each time; on the CPU.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, change: Callable[[Tensor], Tensor]) -> LazyTensor:
        """The tensor after a change, which is made each time it is loaded.

        Args:
            change: must also work on the meta device, which tells the shape and dtype of what it gives.
        """
        after = change(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        return LazyTensor(tuple(after.shape), after.dtype, lambda: change(self.load()))


def lazy(tensor: Tensor) -> LazyTensor:
    """A tensor in memory, on any device, as one that is loaded."""
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().cpu())


def has_safetensors(folder: Path, stem: str = "model") -> bool:
    """Whether a folder holds tensors of that name, whole or in shards."""
    return (folder / (stem + SUFFIX)).exists() or (folder / (stem + INDEX_SUFFIX)).exists()


def read_safetensors(folder: Path, stem: str = "model") -> dict[str, LazyTensor]:
    """The tensors of STEM.safetensors, or of the shards that STEM.safetensors.index.json lists.

    Args:
        folder: where the files are.
        stem: their name.

    Returns:
        Tensors by name; nothing is read yet but the headers, and no file is kept open.

    Raises:
        TensorFileError: a file is missing, cut off or no safetensors file, or the index doesn't fit the shards.
    """
    whole, index = folder / (stem + SUFFIX), folder / (stem + INDEX_SUFFIX)
    if whole.exists() or not index.exists():
        return read_file(whole)
    try:
        shard_of = dict(json.loads(index.read_bytes())["weight_map"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, OSError) as error:
        raise TensorFileError(f"{index} can't be read ({error!r}): copy it again") from error
    tensors: dict[str, LazyTensor] = {}
    for shard in sorted(set(shard_of.values())):
        held = read_file(folder / shard)
        listed = {name for name, file in shard_of.items() if file == shard}
        problems = missing_and_extra(listed, set(held))
        if problems:
            raise TensorFileError(f"{folder / shard} is not the shard that {index.name} lists: {'; '.join(problems)}")
        tensors |= held
    return {name: tensors[name] for name in shard_of}


def read_file(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file.

    Raises:
        TensorFileError: it is missing, cut off or no safetensors file.
    """
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if not 2 <= header_bytes <= min(num_bytes - _LENGTH_BYTES, _LONGEST_HEADER_BYTES):
                raise TensorFileError(f"{path} can't be read: it is no safetensors file, or cut off in its header")
            header = json.loads(file.read(header_bytes))
        entries = {name: _Entry.parse(entry) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise TensorFileError(f"{path} can't be read: {error!r}; copy it again") from error
    data = _LENGTH_BYTES + header_bytes
    needed = data + max((entry.stop for entry in entries.values()), default=0)
    if num_bytes < needed:
        raise TensorFileError(f"{path} can't be read: it has {num_bytes:,} bytes instead of {needed:,}; copy it again")
    wrong = [name for name, entry in entries.items() if entry.stop - entry.start != entry.num_bytes]
    if wrong:
        raise TensorFileError(f"{path} can't be read: places and shapes disagree for {', '.join(wrong)}; copy it again")
    return {name: lazy_bytes(path, data + entry.start, entry.shape, entry.dtype) for name, entry in entries.items()}


@dataclass(frozen=True)
class _Entry:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    stop: int

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> _Entry:
        start, stop = entry["data_offsets"]
        return cls(tuple(entry["shape"]), DTYPES[entry["dtype"]], start, stop)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def lazy_bytes(path: Path, offset: int, shape: Sequence[int], dtype: torch.dtype) -> LazyTensor:
    """A contiguous tensor at a place of a file.

    It is read, not mapped: pages of a mapped file count as memory of the process for as long as it is mapped.

    Args:
        path: the file; opened each time the tensor is loaded.
        offset: bytes before the tensor's.
        shape: of the tensor.
        dtype: of the tensor.
    """
    num_bytes = math.prod(shape) * dtype.itemsize

    def load() -> Tensor:
        flat = torch.empty(num_bytes, dtype=torch.uint8)
        try:
            with path.open("rb") as file:
                file.seek(offset)
                num_read = file.readinto(flat.numpy().data) if num_bytes else 0
        except OSError as error:
            raise TensorFileError(f"{path} can't be read: {error}") from error
        if num_read != num_bytes:
            raise TensorFileError(f"{path} is cut off: {num_bytes - num_read:,} bytes are missing; copy it again")
        return flat.view(dtype).reshape(tuple(shape))

    return LazyTensor(tuple(shape), dtype, load)


def write_safetensors(
    folder: Path, tensors: Mapping[str, LazyTensor], stem: str = "model", shard_bytes: int = SHARD_BYTES
) -> list[str]:
    """Writes tensors as STEM.safetensors, or as shards and their index, one tensor in memory at a time.

    Args:
        folder: exists.
        tensors: by name.
        stem: name of the files.
        shard_bytes: more than this is cut into shards of at most so many bytes; a larger tensor has one of its own.

    Returns:
        The names of the files.

    Raises:
        DiskFullError: the disk is full.
    """
    shards = _share_out(tensors, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / (stem + SUFFIX), shards[0])
        return [stem + SUFFIX]
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}{SUFFIX}" for number in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard)
    index = {
        "metadata": {"total_size": sum(tensor.num_bytes for tensor in tensors.values())},
        "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
    }
    write_whole(folder / (stem + INDEX_SUFFIX), (json.dumps(index, indent=2) + "\n").encode())
    return [*names, stem + INDEX_SUFFIX]


def _share_out(tensors: Mapping[str, LazyTensor], shard_bytes: int) -> list[dict[str, LazyTensor]]:
    shards: list[dict[str, LazyTensor]] = [{}]
    num_bytes = 0
    for name, tensor in tensors.items():
        if shards[-1] and num_bytes + tensor.num_bytes > shard_bytes:
            shards.append({})
            num_bytes = 0
        shards[-1][name] = tensor
        num_bytes += tensor.num_bytes
    return shards


def _write_file(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    # The order and the padding are those of the safetensors package: widest dtypes first, so that each is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in order:
        tensor = tensors[name]
        stop = start + tensor.num_bytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    with WholeFile(path) as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for name in order:
            file.write(bytes_of(tensors[name]))


def bytes_of(tensor: LazyTensor) -> memoryview:
    """Loads a tensor and gives its values in C order."""
    loaded = tensor.load()
    assert (tuple(loaded.shape), loaded.dtype) == (tensor.shape, tensor.dtype), "a tensor is not what it was said to be"
    return loaded.contiguous().reshape(-1).view(torch.uint8).numpy().data


def missing_and_extra(wanted: set[str], given: set[str]) -> list[str]:
    """What names lack and have too many, a line each, with the nearest name of the other kind.

    Args:
        wanted: names that must be there.
        given: names that are.
    """
    missing, extra = sorted(wanted - given), sorted(given - wanted)
    lines = []
    for name in missing:
        nearest = difflib.get_close_matches(name, extra, n=1)
        lines.append(f"{name} is missing" + (f"; nearest that is there: {nearest[0]}" if nearest else ""))
    for name in extra:
        nearest = difflib.get_close_matches(name, missing, n=1)
        lines.append(f"{name} is no weight of this model" + (f"; nearest: {nearest[0]}" if nearest else ""))
    return lines
