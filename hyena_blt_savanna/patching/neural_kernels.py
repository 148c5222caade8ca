"""What lies between the matrix products of a network, in one pass over memory each, for inference on a CPU.

Operator by operator, a featurizer of three taps, two gates and a filter of seven taps go through memory some thirty
times, which takes longer than the matrix products around them. Here a channel stays in the first-level cache from the
projection's output to the next projection's input.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from hyena_blt_savanna.model.isotropic import Isotropic
from hyena_blt_savanna.model.mixers import HyenaMixer, thirds
from hyena_blt_savanna.model.norms import RMSNorm
from hyena_blt_savanna.model.operators import HyenaMR
from hyena_blt_savanna.parallel.stream import Stream

Floats = NDArray[np.float32]

_PRODUCTS_A_THREAD = 1 << 22
"""Products of a tap and a base that make a second thread worth waking."""


def fuse(network: Isotropic, stream: Stream) -> None:
    """Puts a `FusedMixer` in the place of each Hyena mixer, and a `FusedNorm` in that of each norm.

    Args:
        network: with its weights, which must not change any more; its blocks have a finite reach. Changed in place.
        stream: the context that the network was built with.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, RMSNorm):
                setattr(module, name, FusedNorm(child))
            elif isinstance(child, HyenaMixer):
                setattr(module, name, FusedMixer(child, stream))


class FusedNorm(nn.Module):
    """Computes what a frozen RMSNorm computes, on a CPU, in fp32."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self._scale = _array(norm.scale)
        self._epsilon, self._inside = norm.config.epsilon, norm.config.epsilon_inside_root

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, M] to [B, L, M]."""
        x = x.contiguous()
        y = torch.empty_like(x)
        normalise = _normalise_halves if x.dtype == torch.bfloat16 else _normalise_floats
        normalise(_bits(x.flatten(0, 1)), self._scale, self._epsilon, self._inside, _bits(y.flatten(0, 1)))
        return y


class FusedMixer(nn.Module):
    """Computes what a frozen HyenaMixer computes, on a CPU, in fp32 between the projections."""

    def __init__(self, mixer: HyenaMixer, stream: Stream) -> None:
        super().__init__()
        self.in_projection, self.out_projection = mixer.in_projection, mixer.out_projection
        self._stream = stream
        width = mixer.in_projection.weight.shape[1]
        taps = mixer.operator.filters(1 << 30)
        self._taps = _array(taps.repeat_interleave(width // len(taps), 0))
        self._featurizer_taps = _array(thirds(mixer.featurizer.taps, mixer.featurizer.interleaved))
        skip = mixer.operator.skip if isinstance(mixer.operator, HyenaMR) else torch.zeros(width)
        self._skip = _array(skip)

    def forward(self, u: Tensor) -> Tensor:
        """[B, L, M] to [B, L, M]."""
        return self.out_projection(self._mix(self.in_projection(u)))

    def _mix(self, z: Tensor) -> Tensor:
        """[3 M, B, L] to [M, B, L]."""
        batch, length = z.shape[1:]
        width, num_taps = self._taps.shape
        left_z = self._halo(z, self._featurizer_taps.shape[1] - 1)
        # What the filter reads of the bases before: p = x2 v is not known to the stream until it has been computed.
        before = self._stream.kept() if num_taps > 1 else None
        left_p = np.zeros((width, batch, num_taps - 1), np.float32) if before is None else before.numpy()
        kept_p = np.empty((width, batch, num_taps - 1), np.float32)
        y = z.new_empty(width, batch, length)
        kernel = _mix_halves if z.dtype == torch.bfloat16 else _mix_floats
        arrays = (_bits(z), left_z, left_p, self._featurizer_taps, self._taps, self._skip, _bits(y), kept_p)

        def mix(start: int, stop: int) -> None:
            kernel(*arrays, start, stop)

        num_threads = min(torch.get_num_threads(), 1 + num_taps * width * batch * length // _PRODUCTS_A_THREAD)
        if num_threads == 1:
            mix(0, width)
        else:
            edges = [width * part // num_threads for part in range(num_threads + 1)]
            with ThreadPoolExecutor(num_threads) as pool:
                list(pool.map(mix, edges, edges[1:]))
        if num_taps > 1:
            self._stream.keep(torch.from_numpy(kept_p))
        return y

    def _halo(self, z: Tensor, length: int) -> Floats:
        left = self._stream.halo(z, length, sequence_dim=2) if length else None
        if left is None:
            return np.zeros((*z.shape[:2], length), np.float32)
        return _array(left)


def _array(x: Tensor) -> Floats:
    floats: Floats = x.detach().float().contiguous().numpy()
    return floats


def _bits(x: Tensor) -> NDArray[np.float32 | np.uint16]:
    """Numbers as numpy knows them: bfloat16 as its bits."""
    x = x.contiguous() if x.dtype != torch.bfloat16 else x.contiguous().view(torch.uint16)
    return x.numpy()


@njit(cache=True, nogil=True, fastmath={"contract", "reassoc"})
def _normalise_row(x: Floats, scale: Floats, epsilon: float, inside: bool, y: Floats) -> None:
    squares = np.float32(0.0)
    for channel in range(len(x)):
        squares += x[channel] * x[channel]
    mean = squares / np.float32(len(x))
    inverse = np.float32(1.0 / np.sqrt(mean + epsilon) if inside else 1.0 / (np.sqrt(mean) + epsilon))
    for channel in range(len(x)):
        y[channel] = x[channel] * inverse * scale[channel]


@njit(cache=True, nogil=True)
def _normalise_floats(x: Floats, scale: Floats, epsilon: float, inside: bool, y: Floats) -> None:
    """Rows of x and y [N, M]."""
    for row in range(len(x)):
        _normalise_row(x[row], scale, epsilon, inside, y[row])


@njit(cache=True, nogil=True)
def _normalise_halves(
    x: NDArray[np.uint16], scale: Floats, epsilon: float, inside: bool, y: NDArray[np.uint16]
) -> None:
    """The same in bfloat16, given as its bits."""
    bits, out = np.empty(x.shape[1], np.uint32), np.empty(x.shape[1], np.float32)
    for row in range(len(x)):
        _widen(x[row], bits)
        _normalise_row(bits.view(np.float32), scale, epsilon, inside, out)
        _narrow(out.view(np.uint32), y[row])


@njit(cache=True, nogil=True)
def _widen(halves: NDArray[np.uint16], bits: NDArray[np.uint32]) -> None:
    """The bits of bfloat16 as those of fp32."""
    for i in range(len(halves)):
        bits[i] = np.uint32(halves[i]) << np.uint32(16)


@njit(cache=True, nogil=True)
def _narrow(bits: NDArray[np.uint32], halves: NDArray[np.uint16]) -> None:
    """The bits of fp32 as those of the nearest bfloat16, halves to the even one."""
    for i in range(len(bits)):
        rounding = np.uint32(0x7FFF) + ((bits[i] >> np.uint32(16)) & np.uint32(1))
        halves[i] = np.uint16((bits[i] + rounding) >> np.uint32(16))


@njit(cache=True, nogil=True)
def _copy(x: Floats, y: Floats) -> None:
    # An assignment to a slice is not made of vector instructions.
    for i in range(len(x)):
        y[i] = x[i]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _convolve(x: Floats, taps: Floats, y: Floats) -> None:
    """y[t] = sum over k of taps[k] x[t + K - 1 - k], for y [L] and x [K - 1 + L]."""
    length, num_taps = len(y), len(taps)
    last = num_taps - 1
    for t in range(length):
        y[t] = np.float32(0.0)
    k = 0
    # Four taps at a time: y is read and written once for them.
    while k + 4 <= num_taps:
        a, b, c, d = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
        x0, x1 = x[last - k : last - k + length], x[last - k - 1 : last - k - 1 + length]
        x2, x3 = x[last - k - 2 : last - k - 2 + length], x[last - k - 3 : last - k - 3 + length]
        for t in range(length):
            y[t] += a * x0[t] + b * x1[t] + c * x2[t] + d * x3[t]
        k += 4
    while k < num_taps:
        a = taps[k]
        x0 = x[last - k : last - k + length]
        for t in range(length):
            y[t] += a * x0[t]
        k += 1


@njit(cache=True, nogil=True, fastmath={"contract"})
def _mix_channel(
    rows: Floats, featurizer_taps: Floats, taps: Floats, skip: float, features: Floats, p: Floats, y: Floats
) -> None:
    """y = x1 (taps * p + skip p), p = x2 v.

    rows [3, f - 1 + L]; features [3, L], overwritten; p [K - 1 + L], whose first K - 1 are given.
    """
    length = len(y)
    for part in range(3):
        _convolve(rows[part], featurizer_taps[part], features[part])
    first = len(taps) - 1
    x1, x2, v = features[0], features[1], features[2]
    now = p[first:]
    for t in range(length):
        now[t] = x2[t] * v[t]
    _convolve(p, taps, y)
    for t in range(length):
        y[t] = x1[t] * (y[t] + skip * now[t])


@njit(cache=True, nogil=True)
def _mix_floats(
    z: Floats,
    left_z: Floats,
    left_p: Floats,
    featurizer_taps: Floats,
    taps: Floats,
    skip: Floats,
    y: Floats,
    kept_p: Floats,
    start: int,
    stop: int,
) -> None:
    """Channels [start, stop). z [3 M, B, L]; left_z [3 M, B, f - 1]; left_p, kept_p [M, B, K - 1]; y [M, B, L]."""
    width, num_taps = taps.shape
    length, before = z.shape[2], left_z.shape[2]
    rows, features = np.empty((3, before + length), np.float32), np.empty((3, length), np.float32)
    p = np.empty(num_taps - 1 + length, np.float32)
    own_taps = np.empty((3, featurizer_taps.shape[1]), np.float32)
    for channel in range(start, stop):
        for part in range(3):
            own_taps[part] = featurizer_taps[part * width + channel]
        for row in range(z.shape[1]):
            for part in range(3):
                rows[part, :before] = left_z[part * width + channel, row]
                _copy(z[part * width + channel, row], rows[part, before:])
            p[: num_taps - 1] = left_p[channel, row]
            _mix_channel(rows, own_taps, taps[channel], skip[channel], features, p, y[channel, row])
            kept_p[channel, row] = p[length:]


@njit(cache=True, nogil=True)
def _mix_halves(
    z: NDArray[np.uint16],
    left_z: Floats,
    left_p: Floats,
    featurizer_taps: Floats,
    taps: Floats,
    skip: Floats,
    y: NDArray[np.uint16],
    kept_p: Floats,
    start: int,
    stop: int,
) -> None:
    """The same for z and y in bfloat16, given as their bits."""
    width, num_taps = taps.shape
    length, before = z.shape[2], left_z.shape[2]
    rows, features = np.empty((3, before + length), np.float32), np.empty((3, length), np.float32)
    mixed = np.empty(length, np.float32)
    bits = mixed.view(np.uint32)
    p = np.empty(num_taps - 1 + length, np.float32)
    own_taps = np.empty((3, featurizer_taps.shape[1]), np.float32)
    for channel in range(start, stop):
        for part in range(3):
            own_taps[part] = featurizer_taps[part * width + channel]
        for row in range(z.shape[1]):
            for part in range(3):
                rows[part, :before] = left_z[part * width + channel, row]
                _widen(z[part * width + channel, row], rows[part, before:].view(np.uint32))
            p[: num_taps - 1] = left_p[channel, row]
            _mix_channel(rows, own_taps, taps[channel], skip[channel], features, p, mixed)
            kept_p[channel, row] = p[length:]
            _narrow(bits, y[channel, row])
