"""Files of torch.save from elsewhere: read without running what is in them, and written one tensor at a time."""

from __future__ import annotations

import codecs
import io
import math
import pickle
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals, skip_data

from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.data.errors import DiskFullError
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, bytes_of, lazy_bytes

# What numpy's arrays and numbers are rebuilt by, whose module has two names.
_REBUILD_ARRAY, _REBUILD_NUMBER = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]

ALLOWED: dict[str, Any] = {
    "_io.BytesIO": io.BytesIO,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": codecs.encode,
    "numpy.core.multiarray._reconstruct": _REBUILD_ARRAY,
    "numpy._core.multiarray._reconstruct": _REBUILD_ARRAY,
    "numpy.core.multiarray.scalar": _REBUILD_NUMBER,
    "numpy._core.multiarray.scalar": _REBUILD_NUMBER,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.dtypes.{type(np.dtype(code)).__name__}": type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
}
"""What a file may name besides what torch allows by itself: containers of bytes, and numpy's random states."""
_SLACK_BYTES = 16 << 20
# What is raised by instructions that make no sense.
_BROKEN = (pickle.UnpicklingError, RuntimeError, OSError, EOFError, LookupError, ValueError, TypeError, AttributeError,
           AssertionError, zipfile.BadZipFile)  # fmt: skip


def read_torch(path: Path) -> Any:
    """What a file of torch.save holds, with a LazyTensor in the place of each tensor.

    Nothing but the structure is read; tensors are read from their places in the file, which is not mapped.

    Args:
        path: a file of torch 1.6 or later.

    Raises:
        ConversionError: it is missing, cut off or of another kind, or it names code that isn't allowed.
    """
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConversionError(f"{path} can't be opened: {error.strerror}") from error
    if not zipfile.is_zipfile(path):
        raise ConversionError(
            f"{path} is no file of torch.save (of torch 1.6 or later), or it is cut off: copy it again, or save it anew"
        )
    refused: list[str] = []
    tree: Any = None
    try:
        refused = sorted(set(get_unsafe_globals_in_checkpoint(path)) - set(ALLOWED))
        # Fake tensors know their places in the file and hold no memory.
        with FakeTensorMode(), safe_globals([(value, name) for name, value in ALLOWED.items()]):
            tree = None if refused else torch.load(path, weights_only=True, map_location="cpu")
    except _BROKEN as error:
        raise ConversionError(
            f"{path} can't be read: {(str(error) or repr(error)).splitlines()[0]}; copy it again"
        ) from error
    if refused:
        raise ConversionError(
            f"{path} holds {', '.join(refused)}: only tensors, plain values and {', '.join(sorted(ALLOWED))} are read, "
            "because such a file can run any code; save what is needed of it as plain tensors"
        )
    return _map_tree(tree, lambda leaf: _lazy(path, leaf) if isinstance(leaf, FakeTensor) else leaf)


def _lazy(path: Path, fake: FakeTensor) -> LazyTensor:
    size, stride, dtype = tuple(fake.shape), fake.stride(), fake.dtype
    offset = _offset(fake) + int(fake.storage_offset()) * dtype.itemsize
    if fake.is_contiguous():
        return lazy_bytes(path, offset, size, dtype)
    num_spanned = 1 + sum((num - 1) * step for num, step in zip(size, stride, strict=True)) if math.prod(size) else 0
    span = lazy_bytes(path, offset, (num_spanned,), dtype)
    return LazyTensor(size, dtype, lambda: span.load().as_strided(size, stride).contiguous())


def _offset(fake: Tensor) -> int:
    """Bytes of the file before a fake tensor's storage."""
    offset = fake.untyped_storage()._checkpoint_offset
    assert offset is not None
    return offset


def _map_tree(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _map_tree(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_map_tree(value, change) for value in tree]
    return change(tree)


def write_torch(path: Path, tree: dict[str, Any]) -> None:
    """Writes a file for torch.load, one tensor in memory at a time.

    torch.save lays the file out with empty places for the tensors, which are then filled. The checksums of the
    archive's records, which torch doesn't read, stay those of empty places.

    Args:
        path: in a folder that is written whole.
        tree: dictionaries of LazyTensors and plain values.

    Raises:
        DiskFullError: there is not enough space.
    """
    tensors: list[LazyTensor] = []

    def fake(leaf: Any) -> Any:
        if not isinstance(leaf, LazyTensor):
            return leaf
        tensors.append(leaf)
        return torch.empty(leaf.shape, dtype=leaf.dtype)

    with FakeTensorMode():
        laid_out = _map_tree(tree, fake)
    needed = sum(tensor.num_bytes for tensor in tensors) + _SLACK_BYTES
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise DiskFullError(f"{path} needs {needed:,} bytes and {free:,} are free: free some space")
    try:
        with skip_data(materialize_fake_tensors=True):
            torch.save(laid_out, path)
    except RuntimeError as error:
        # torch's writer of archives knows no other.
        raise OSError(str(error).splitlines()[0]) from error
    with FakeTensorMode():
        places: list[Tensor] = []
        _map_tree(torch.load(path, weights_only=True), lambda leaf: _keep_tensor(leaf, places))
    with path.open("r+b") as file:
        for place, tensor in zip(places, tensors, strict=True):
            file.seek(_offset(place))
            file.write(bytes_of(tensor))


def _keep_tensor(leaf: Any, tensors: list[Tensor]) -> None:
    if isinstance(leaf, Tensor):
        tensors.append(leaf)
