"""Kernels that take the place of chains of operations, where somebody has put some in.

The modules of this room name no kernel: they ask here, and without an answer they do operation by operation what a
kernel would do in one pass. So they run wherever torch runs, and are the reference that kernels are compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter


class Kernels(Protocol):
    """Passes forward and backward over tensors of one device, fp32 or bfloat16; all compute in fp32."""

    def convolve(self, x: Tensor, taps: Tensor) -> Tensor:
        """A causal convolution of x [D, B, L] with few taps [G, K], fp32: [D, B, L], dtype of x."""

    def convolve_backward(self, x: Tensor, taps: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of x and taps."""

    def gate(self, x1: Tensor, q: Tensor, skip: Tensor, p: Tensor) -> Tensor:
        """x1 (q + skip p) of [D, B, L] of one dtype and skip [D], fp32."""

    def gate_backward(
        self, x1: Tensor, q: Tensor, skip: Tensor, p: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of x1, q, skip and p."""

    def normalise(
        self, x: Tensor, scale: Tensor, epsilon: float, inside: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """What `RMSNorm` makes of x [..., M] with scale [M], fp32, in that dtype; roots [..., 1], fp32."""

    def normalise_backward(
        self, x: Tensor, scale: Tensor, root: Tensor, epsilon: float, inside: bool, dy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of x and scale."""


_DTYPES = (torch.float32, torch.bfloat16)
_kernels: dict[str, Kernels] = {}


def put_in(device_type: str, kernels: Kernels) -> None:
    """Uses kernels from now on, in this process.

    Args:
        device_type: cpu, cuda.
        kernels: for tensors there.
    """
    _kernels[device_type] = kernels


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The kernels that these tensors can be given to; None: there are none."""
    found = _kernels.get(tensors[0].device.type)
    return found if found is not None and all(map(_has_numbers, tensors)) else None


def _has_numbers(tensor: Tensor) -> bool:
    """Not so a tensor that only pretends to have them, as those of a rehearsal."""
    return type(tensor) in (Tensor, Parameter) and tensor.dtype in _DTYPES and tensor.numel() > 0


@contextmanager
def without_kernels() -> Iterator[None]:
    """No kernels are used within but those that are put in there; afterwards they are what they were."""
    kept = dict(_kernels)
    _kernels.clear()
    try:
        yield
    finally:
        _kernels.clear()
        _kernels.update(kept)
