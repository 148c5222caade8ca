"""How many bytes of tensors are alive, by what they are for: of a pass that is computed, or of one that is rehearsed.

Every tensor that an operation makes passes by here, forward and backward. The bytes of its storage count from then on
until the last tensor on it is gone, views counted once. In a rehearsal floating-point tensors are fake: they have
shapes and storages without memory behind them, so that a pass of any model over any window takes seconds on any
machine. Integers are real even then, because what they say decides about shapes.

What an operation takes while it runs, inside of a library (the buffers of matrix products and transforms), is not seen.

Source: the idea is that of torch's `torch.distributed._tools.mem_tracker`, which must be told of modules and optimizer.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

_ATEN = torch.ops.aten
_NUMBERS = (_ATEN._local_scalar_dense,)


@dataclass(eq=False)
class _Storage:
    purpose: str
    num_bytes: int


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made while it is entered.

    Args:
        rehearsal: whether floating-point tensors are fake. A number that is asked of one is then 1.
        apart: purposes of which `peak_without` keeps nothing.

    Attributes:
        live: bytes now, by purpose.
        peak: bytes by purpose when their sum was largest.
        peak_without: bytes by purpose when the sum without the purposes `apart` was largest, and without these.
    """

    def __init__(self, rehearsal: bool, apart: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak: dict[str, int] = {}
        self.peak_without: dict[str, int] = {}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True) if rehearsal else None
        self._apart = apart
        self._purpose = "activations"
        self._storages: weakref.WeakKeyDictionary[Any, _Storage] = weakref.WeakKeyDictionary()
        self._total, self._highest, self._highest_without = 0, 0, 0

    def begin(self, purpose: str) -> None:
        """What the tensors that are made from now on are for."""
        self._purpose = purpose

    @contextmanager
    def making(self, purpose: str) -> Iterator[None]:
        """What the tensors that are made within are for."""
        before, self._purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._purpose = before

    def turn_into(self, tensor: Tensor, purpose: str) -> None:
        """Counts a tensor that is alive as another purpose from now on."""
        storage = self._storages.get(tensor.untyped_storage())
        if storage is None:
            return
        self.live[storage.purpose] -= storage.num_bytes
        storage.purpose = purpose
        self.live[purpose] += storage.num_bytes

    def forget_peaks(self) -> None:
        """Looks for the largest sums anew, from what is alive now."""
        self._highest, self._highest_without = 0, 0
        self._look()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = self._compute(func, types, args, kwargs)
        for value in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(value, Tensor):
                self._count(value)
        return out

    def _compute(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self._fake is None:
            return func(*args, **kwargs)
        if FakeTensor in types:
            return 1 if func.overloadpacket in _NUMBERS else func(*args, **kwargs)
        makes_from_nothing = not any(isinstance(value, Tensor) for value in tree_iter((args, kwargs)))
        if makes_from_nothing and _is_floating(func, args, kwargs):
            with self._fake:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _count(self, tensor: Tensor) -> None:
        # DeepSpeed keeps shapes as tensors without memory.
        if tensor.device.type == "meta":
            return
        key = tensor.untyped_storage()
        if key in self._storages:
            return
        storage = self._storages[key] = _Storage(self._purpose, key.nbytes())
        self.live[storage.purpose] += storage.num_bytes
        self._total += storage.num_bytes
        weakref.finalize(key, self._drop, storage)
        self._look()

    def _drop(self, storage: _Storage) -> None:
        self.live[storage.purpose] -= storage.num_bytes
        self._total -= storage.num_bytes

    def _look(self) -> None:
        if self._total > self._highest:
            self._highest, self.peak = self._total, dict(self.live)
        without = self._total - sum(self.live[purpose] for purpose in self._apart)
        if without > self._highest_without:
            self._highest_without = without
            self.peak_without = {name: count for name, count in self.live.items() if name not in self._apart}


def _is_floating(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operation that is given no tensor makes floating-point numbers."""
    dtype = kwargs.get("dtype")
    if dtype is not None:
        return bool(dtype.is_floating_point or dtype.is_complex)
    return func.overloadpacket is not _ATEN.arange or any(isinstance(value, float) for value in args)
