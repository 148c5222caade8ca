"""What lies between matrix products, in one pass over memory each, for training on a CPU.

Operation by operator, a filter of three taps over a long window goes through memory a dozen times, forward and
backward, which takes longer than the matrix products around it. Here a stretch of a channel stays in the first-level
cache from the first operation to the last. bfloat16 is given as its bits; what is computed in between is float32.

See `model.fused` for what each pass computes; `use` puts them in.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray
from torch import Tensor

from hyena_blt_savanna.model import fused

Floats = NDArray[np.float32]
Numbers = NDArray[np.float32 | np.uint16]
"""float32, or the bits of bfloat16."""

STRETCH = 4096
"""Positions that are looked at together: 16 kB of fp32."""
VALUES_A_THREAD = 1 << 20
"""Values of a tensor that make a second thread worth waking."""
_FAST = {"contract", "reassoc"}


def use() -> None:
    """Has the modules of this package run these kernels on CPUs."""
    fused.put_in("cpu", CPUKernels())


class CPUKernels:
    """Passes over tensors on a CPU, by as many threads as torch uses."""

    def convolve(self, x: Tensor, taps: Tensor) -> Tensor:
        """See `fused.Kernels`."""
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        _in_threads(_convolve, len(x), x.numel(), _array(x), _array(taps), len(x) // len(taps), _array(y))
        return y

    def convolve_backward(self, x: Tensor, taps: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        """See `fused.Kernels`."""
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dtaps = torch.zeros(len(x), taps.shape[1], dtype=torch.float64)
        given = _array(x), _array(taps), len(x) // len(taps), _array(dy.to(x.dtype)), _array(dx), dtaps.numpy()
        _in_threads(_convolve_backward, len(x), x.numel(), *given)
        return dx, dtaps.view(len(taps), -1, taps.shape[1]).sum(1).to(taps.dtype)

    def gate(self, x1: Tensor, q: Tensor, skip: Tensor, p: Tensor) -> Tensor:
        """See `fused.Kernels`."""
        y = torch.empty_like(x1, memory_format=torch.contiguous_format)
        given = [_array(each) for each in (x1, q, p, skip, y)]
        _in_threads(_gate, len(x1), x1.numel(), *given)
        return y

    def gate_backward(
        self, x1: Tensor, q: Tensor, skip: Tensor, p: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See `fused.Kernels`."""
        dx1, dq, dp = (torch.empty_like(x1, memory_format=torch.contiguous_format) for _ in range(3))
        dskip = torch.zeros(len(x1), dtype=torch.float64)
        given = [_array(each) for each in (x1, q, p, skip, dy.to(x1.dtype), dx1, dq, dp)]
        _in_threads(_gate_backward, len(x1), x1.numel(), *given, dskip.numpy())
        return dx1, dq, dskip.to(skip.dtype), dp

    def normalise(
        self, x: Tensor, scale: Tensor, epsilon: float, inside: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """See `fused.Kernels`."""
        y = torch.empty(x.shape, dtype=dtype)
        root = torch.empty(*x.shape[:-1], 1)
        rows = _rows(x)
        given = rows, _array(scale), epsilon, inside, _rows(y), root.view(-1).numpy()
        _in_threads(_normalise, len(rows), x.numel(), *given)
        return y, root

    def normalise_backward(
        self, x: Tensor, scale: Tensor, root: Tensor, epsilon: float, inside: bool, dy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `fused.Kernels`."""
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows = _rows(x)
        parts: dict[int, NDArray[np.float64]] = {}

        def run(*given: Any) -> None:
            # Each thread has sums of its own, which are added in the order of their rows: a run is the same each time.
            *others, start, stop = given
            parts[start] = np.zeros(x.shape[-1])
            _normalise_backward(*others, parts[start], start, stop)

        given = rows, _array(scale), root.contiguous().view(-1).numpy(), epsilon, inside, _rows(dy), _rows(dx)
        _in_threads(run, len(rows), x.numel(), *given)
        return dx, torch.from_numpy(np.sum([parts[start] for start in sorted(parts)], 0)).to(scale.dtype)


def _array(x: Tensor) -> Any:
    """Numbers as numpy knows them: bfloat16 as its bits."""
    x = x.detach().contiguous()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _rows(x: Tensor) -> Any:
    return _array(x.reshape(-1, x.shape[-1]))


def _in_threads(kernel: Callable[..., None], num_items: int, num_values: int, *given: Any) -> None:
    """Runs a kernel on items [0, N), cut into as many stretches as there are threads; its last arguments say which."""
    num_threads = min(torch.get_num_threads(), 1 + num_values // VALUES_A_THREAD, num_items)
    if num_threads == 1:
        kernel(*given, 0, num_items)
        return
    edges = [num_items * part // num_threads for part in range(num_threads + 1)]
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(lambda start, stop: kernel(*given, start, stop), edges, edges[1:]))


def _load(x: Numbers, wide: Floats) -> None:
    """Copies numbers to fp32; replaced when it is compiled."""
    raise NotImplementedError


@overload(_load)
def _compiled_load(x: Any, wide: Any) -> Callable[..., None]:
    if x.dtype == types.uint16:

        def load(x: Any, wide: Any) -> None:
            bits = wide.view(np.uint32)
            for i in range(len(x)):
                bits[i] = np.uint32(x[i]) << np.uint32(16)

        return load

    # An assignment to a slice is not made of vector instructions.
    def copy(x: Any, wide: Any) -> None:
        for i in range(len(x)):
            wide[i] = x[i]

    return copy


def _store(wide: Floats, x: Numbers) -> None:
    """Copies from fp32, to the nearest number, halves to the even one; replaced when it is compiled."""
    raise NotImplementedError


@overload(_store)
def _compiled_store(wide: Any, x: Any) -> Callable[..., None]:
    if x.dtype == types.uint16:

        def store(wide: Any, x: Any) -> None:
            bits = wide.view(np.uint32)
            for i in range(len(x)):
                rounding = np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))
                x[i] = np.uint16((bits[i] + rounding) >> np.uint32(16))

        return store

    def copy(wide: Any, x: Any) -> None:
        for i in range(len(x)):
            x[i] = wide[i]

    return copy


@njit(cache=True, nogil=True, fastmath=_FAST)
def _dot(x: Floats, y: Floats) -> np.float32:
    total = np.float32(0.0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_product(weight: np.float32, x: Floats, y: Floats) -> None:
    for i in range(len(y)):
        y[i] += weight * x[i]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _convolve(x: Numbers, taps: Floats, of_group: int, y: Numbers, start: int, stop: int) -> None:
    """Channels [start, stop) of x and y [D, B, L], taps [G, K]."""
    length, num_taps = x.shape[2], taps.shape[1]
    before = num_taps - 1
    wide, out = np.empty(before + STRETCH, np.float32), np.empty(STRETCH, np.float32)
    for channel in range(start, stop):
        own = taps[channel // of_group]
        for row in range(x.shape[1]):
            wide[:before] = 0
            for first in range(0, length, STRETCH):
                num = min(STRETCH, length - first)
                _load(x[channel, row, first : first + num], wide[before : before + num])
                for t in range(num):
                    out[t] = 0
                k = 0
                # Three taps at a time: what is summed is read and written once for them.
                while k + 3 <= num_taps:
                    a, b, c = own[k], own[k + 1], own[k + 2]
                    x0 = wide[before - k : before - k + num]
                    x1 = wide[before - k - 1 : before - k - 1 + num]
                    x2 = wide[before - k - 2 : before - k - 2 + num]
                    for t in range(num):
                        out[t] += a * x0[t] + b * x1[t] + c * x2[t]
                    k += 3
                while k < num_taps:
                    _add_product(own[k], wide[before - k : before - k + num], out[:num])
                    k += 1
                _store(out[:num], y[channel, row, first : first + num])
                for back in range(before):
                    wide[back] = wide[num + back]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _convolve_backward(
    x: Numbers,
    taps: Floats,
    of_group: int,
    dy: Numbers,
    dx: Numbers,
    dtaps: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    """Channels [start, stop); dtaps [D, K] is added to."""
    length, num_taps = x.shape[2], taps.shape[1]
    before = num_taps - 1
    wide, out = np.empty(before + STRETCH, np.float32), np.empty(STRETCH, np.float32)
    ahead = np.empty(STRETCH + before, np.float32)
    for channel in range(start, stop):
        own = taps[channel // of_group]
        for row in range(x.shape[1]):
            wide[:before] = 0
            for first in range(0, length, STRETCH):
                num = min(STRETCH, length - first)
                there = min(num + before, length - first)
                _load(x[channel, row, first : first + num], wide[before : before + num])
                _load(dy[channel, row, first : first + there], ahead[:there])
                ahead[there : num + before] = 0
                for t in range(num):
                    out[t] = 0
                for k in range(num_taps):
                    _add_product(own[k], ahead[k : k + num], out[:num])
                    dtaps[channel, k] += _dot(wide[before - k : before - k + num], ahead[:num])
                _store(out[:num], dx[channel, row, first : first + num])
                for back in range(before):
                    wide[back] = wide[num + back]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _gate(x1: Numbers, q: Numbers, p: Numbers, skip: Floats, y: Numbers, start: int, stop: int) -> None:
    """Channels [start, stop) of tensors [D, B, L], skip [D]."""
    a, b, c = (np.empty(STRETCH, np.float32), np.empty(STRETCH, np.float32), np.empty(STRETCH, np.float32))
    for channel in range(start, stop):
        weight = skip[channel]
        for row in range(x1.shape[1]):
            for first in range(0, x1.shape[2], STRETCH):
                end = min(first + STRETCH, x1.shape[2])
                _load(x1[channel, row, first:end], a)
                _load(q[channel, row, first:end], b)
                _load(p[channel, row, first:end], c)
                for t in range(end - first):
                    a[t] *= b[t] + weight * c[t]
                _store(a, y[channel, row, first:end])


@njit(cache=True, nogil=True, fastmath=_FAST)
def _gate_backward(
    x1: Numbers,
    q: Numbers,
    p: Numbers,
    skip: Floats,
    dy: Numbers,
    dx1: Numbers,
    dq: Numbers,
    dp: Numbers,
    dskip: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    """Channels [start, stop); dskip [D] is added to."""
    a, b, c = (np.empty(STRETCH, np.float32), np.empty(STRETCH, np.float32), np.empty(STRETCH, np.float32))
    d = np.empty(STRETCH, np.float32)
    for channel in range(start, stop):
        weight = skip[channel]
        for row in range(x1.shape[1]):
            for first in range(0, x1.shape[2], STRETCH):
                end = min(first + STRETCH, x1.shape[2])
                num = end - first
                _load(x1[channel, row, first:end], a)
                _load(q[channel, row, first:end], b)
                _load(p[channel, row, first:end], c)
                _load(dy[channel, row, first:end], d)
                for t in range(num):
                    b[t] = d[t] * (b[t] + weight * c[t])
                    d[t] *= a[t]
                dskip[channel] += _dot(d[:num], c[:num])
                _store(b, dx1[channel, row, first:end])
                _store(d, dq[channel, row, first:end])
                for t in range(num):
                    d[t] *= weight
                _store(d, dp[channel, row, first:end])


@njit(cache=True, nogil=True, fastmath=_FAST)
def _normalise(
    x: Numbers, scale: Floats, epsilon: float, inside: bool, y: Numbers, root: Floats, start: int, stop: int
) -> None:
    """Rows [start, stop) of x and y [N, M], root [N]."""
    width = x.shape[1]
    wide = np.empty(width, np.float32)
    for row in range(start, stop):
        _load(x[row], wide)
        root[row] = np.sqrt(_dot(wide, wide) / np.float32(width))
        inverse = _inverse(root[row], epsilon, inside)
        for i in range(width):
            wide[i] = wide[i] * inverse * scale[i]
        _store(wide, y[row])


@njit(cache=True, nogil=True)
def _inverse(root: float, epsilon: float, inside: bool) -> np.float32:
    return np.float32(1 / np.sqrt(root * root + epsilon) if inside else 1 / (root + epsilon))


@njit(cache=True, nogil=True, fastmath=_FAST)
def _normalise_backward(
    x: Numbers,
    scale: Floats,
    root: Floats,
    epsilon: float,
    inside: bool,
    dy: Numbers,
    dx: Numbers,
    dscale: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    """Rows [start, stop); dscale [M] is added to."""
    width = x.shape[1]
    wide, given, sums = np.empty(width, np.float32), np.empty(width, np.float32), np.zeros(width, np.float32)
    for row in range(start, stop):
        _load(x[row], wide)
        _load(dy[row], given)
        inverse = _inverse(root[row], epsilon, inside)
        for i in range(width):
            sums[i] += given[i] * wide[i] * inverse
            given[i] *= scale[i]
        along = _dot(given, wide)
        # d(inverse)/dx = -slope x / width, as in `norms`.
        slope = inverse * inverse * inverse if inside else inverse * inverse / max(root[row], 1e-8 * epsilon)
        back = np.float32(slope * along / width)
        for i in range(width):
            given[i] = given[i] * inverse - wide[i] * back
        _store(given, dx[row])
        # In fp32 over a stretch only.
        if (row - start) % STRETCH == STRETCH - 1:
            for i in range(width):
                dscale[i] += sums[i]
                sums[i] = 0
    for i in range(width):
        dscale[i] += sums[i]
