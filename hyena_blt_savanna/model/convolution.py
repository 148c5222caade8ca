"""Causal depthwise convolutions: one function, and what computes it.

Everywhere in this package a filter's index is its lag: y[t] = sum over k of taps[k] x[t - k], so tap 0
weighs the current position. (`torch.nn.functional.conv1d` has the last tap there.) Tensors are [D, B, L],
channels outermost: filters apply along the contiguous dimension, the channels that share a filter are
neighbours, a projection from [B, L, M] is one matrix product without a copy, and cutting the channels over
ranks is too.

All backends but flashfftconv compute in fp32 at least; all give back the dtype of x, and gradients of x and of the
taps. `fastest_backend` chooses among them; bench/operators.py measures whether it chooses well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from hyena_blt_savanna.model.back_to_back import prefer_back_to_back
from hyena_blt_savanna.model.cuda_convolution import (
    causal_conv1d_convolution,
    fits_flash,
    flash_convolution,
    subquadratic_direct_convolution,
    subquadratic_fourier_convolution,
)
from hyena_blt_savanna.model.direct_convolution import blocked_convolution, shifted_convolution, torch_convolution
from hyena_blt_savanna.model.fourier_convolution import fourier_convolution, overlap_add_convolution
from hyena_blt_savanna.model.kernel_tests import largest_errors, say_wrong, waves
from hyena_blt_savanna.model.kernels import KERNELS, KernelError, probe
from hyena_blt_savanna.model.precision import no_autocast

logger = logging.getLogger(__name__)

LONGEST_SHIFTED = 7
"""Up to so many taps, one product a tap beats products of matrices on a CPU (bench/operators.py)."""
LONGEST_BLOCKED = 64
"""Up to so many taps, products of matrices beat Fourier space on a CPU, where sequences are long."""
LEAST_BLOCKED_RATIO = 32
"""They do from so many times the filter's length on: below, summing up the gradient of the taps costs too much."""
LEAST_CHUNKED_RATIO = 8
"""From so many times the filter's length on, chunks of the sequence beat all of it in Fourier space on a CPU."""
LEAST_CHUNKED = 2048
"""They do from so many positions on: shorter sequences are hardly longer than one chunk."""

BackendName = Literal[
    "shifted",
    "blocked",
    "overlap_add",
    "fourier",
    "conv1d",
    "subquadratic_direct",
    "subquadratic_fourier",
    "causal_conv1d",
    "flashfftconv",
]
BackendChoice = Literal["auto", "back_to_back"] | BackendName
Rule = Callable[[Tensor, Tensor], BackendName]

_TOLERANCE = 1e-4
_BF16_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Backend:
    """What computes a convolution.

    Attributes:
        convolve: of x [D, B, L] and taps [G, K], K at most L.
        kernel: the library that it needs, a key of KERNELS; None: torch alone.
        fits: whether it takes such x and taps.
        tolerance: largest difference from the plain reference, over the largest value.
        self_test_taps: of the filter that it is tried with.
    """

    convolve: Callable[[Tensor, Tensor], Tensor]
    kernel: str | None = None
    fits: Callable[[Tensor, Tensor], bool] = lambda x, taps: True
    tolerance: float = _TOLERANCE
    self_test_taps: int = 20


BACKENDS: dict[BackendName, Backend] = {
    "shifted": Backend(shifted_convolution),
    "blocked": Backend(blocked_convolution),
    "overlap_add": Backend(overlap_add_convolution),
    "fourier": Backend(fourier_convolution),
    "conv1d": Backend(torch_convolution),
    "subquadratic_direct": Backend(
        subquadratic_direct_convolution, "subquadratic_ops", lambda x, taps: 2 <= taps.shape[1] <= 256
    ),
    "subquadratic_fourier": Backend(subquadratic_fourier_convolution, "subquadratic_ops", self_test_taps=128),
    "causal_conv1d": Backend(
        causal_conv1d_convolution, "causal_conv1d", lambda x, taps: 2 <= taps.shape[1] <= 4, self_test_taps=4
    ),
    "flashfftconv": Backend(flash_convolution, "flashfftconv", fits_flash, _BF16_TOLERANCE, self_test_taps=128),
}

_CUDA_KERNELS: tuple[BackendName, ...] = ("causal_conv1d", "subquadratic_direct", "subquadratic_fourier")
"""Where several fit, the first one is taken. flashfftconv is not among them: it computes in bf16."""

assert get_args(BackendName) == tuple(BACKENDS)


def causal_convolution(x: Tensor, taps: Tensor, left: Tensor | None = None) -> Tensor:
    """Convolves each channel with its group's filter, by the backend that `prefer_backend` or the rule says.

    Args:
        x: [D, B, L].
        taps: [G, K], index = lag; group g serves the D / G consecutive channels from g D / G on.
        left: [D, B, K - 1], the positions before x; None: zeros.

    Returns:
        [D, B, L], dtype of x.
    """
    num_left = 0
    if left is not None:
        num_left = left.shape[-1]
        x = torch.cat([left, x], dim=-1)
    taps = taps[:, : x.shape[-1]]
    return BACKENDS[_rule(x, taps)].convolve(x, taps)[..., num_left:]


def fastest_backend(x: Tensor, taps: Tensor) -> BackendName:
    """The backend that a convolution is computed by unless another one is asked for.

    On a CPU as docs/results/operators has measured. On a GPU the first kernel that is made for such a filter and that
    has passed its test in this process; without any, torch as on a CPU, which is not measured there.

    Args:
        x: [D, B, L].
        taps: [G, K], K at most L.
    """
    num_taps, length = taps.shape[1], x.shape[-1]
    if x.is_cuda and x.dtype != torch.float64:
        for name in _CUDA_KERNELS:
            if BACKENDS[name].fits(x, taps) and _why_unfit_for_auto(name) is None:
                return name
    if num_taps <= LONGEST_SHIFTED:
        return "shifted"
    if num_taps <= LONGEST_BLOCKED and length >= LEAST_BLOCKED_RATIO * num_taps:
        return "blocked"
    return "overlap_add" if length >= max(LEAST_CHUNKED, LEAST_CHUNKED_RATIO * num_taps) else "fourier"


_rule: Rule = fastest_backend


def prefer_backend(choice: BackendChoice, device: torch.device | None = None) -> None:
    """Says what computes convolutions from here on, in this process.

    Args:
        choice: a backend, wherever it takes the shapes, and the rule elsewhere; auto: the rule everywhere;
            back_to_back: whole mixers in one kernel where it takes them (model/back_to_back.py), elsewhere the rule.
        device: that it will be used on; None: a CPU.

    Raises:
        KernelError: it doesn't work here.
    """
    global _rule
    prefer_back_to_back((device or torch.device("cpu")) if choice == "back_to_back" else None)
    if choice == "auto" or choice == "back_to_back":
        _rule = fastest_backend
        return
    reason = why_unusable(choice, device or torch.device("cpu"))
    if reason is not None:
        working = [name for name in BACKENDS if BACKENDS[name].kernel is None]
        raise KernelError(
            f"the convolution backend {choice} can't be used: {reason}. Choose auto, which takes what there is, or one "
            f"of {', '.join(working)}"
        )
    backend = BACKENDS[choice]
    _rule = lambda x, taps: choice if backend.fits(x, taps) else fastest_backend(x, taps)  # noqa: E731


def follows_the_rule() -> bool:
    """Whether no backend was asked for: an operator may compute its convolution in a way of its own."""
    return _rule is fastest_backend


@contextmanager
def choosing_backends(rule: Rule) -> Iterator[None]:
    """Another rule for as long as the context lasts.

    Args:
        rule: gives a backend for x [D, B, L] and taps [G, K].
    """
    global _rule
    before = _rule
    _rule = rule
    try:
        yield
    finally:
        _rule = before


def why_unusable(name: BackendName, device: torch.device) -> str | None:
    """Why a backend can't be used on a device; None: it can, and gives what the plain reference gives there.

    Args:
        name: of the backend.
        device: where.
    """
    backend = BACKENDS[name]
    if backend.kernel is not None:
        reason = probe(backend.kernel).reason
        if reason is None and device.type != "cuda":
            reason = f"it is a CUDA kernel, and the device is {device.type}"
        if reason is not None:
            return f"{backend.kernel}: {reason}"
    try:
        errors = backend_errors(name, device)
    # Whatever a foreign kernel raises, convolutions go on without it.
    except Exception as error:
        return f"it failed its test: {type(error).__name__}: {error}"
    return say_wrong(errors, backend.tolerance)


def backend_errors(name: BackendName, device: torch.device) -> dict[str, float]:
    """How far a backend is from the plain reference, over the reference's largest value.

    Args:
        name: of the backend.
        device: where.

    Returns:
        Of the output, the gradient of x and that of the taps.
    """
    backend = BACKENDS[name]
    channels, groups, batch, length, num_taps = 32, 16, 2, 256, backend.self_test_taps
    with torch.enable_grad(), no_autocast(torch.empty(0, device=device)):
        x = waves((channels, batch, length), 1.3, device)
        taps = waves((groups, num_taps), 0.7, device)
        # Partly x itself, so that no gradient is a sum that comes out as next to nothing.
        direction = waves((channels, batch, length), 2.1, device).detach() + x.detach()
        found = backend.convolve(x, taps)
        plain = shifted_convolution(x.double(), taps.double())
        ours = (found, *torch.autograd.grad(found, (x, taps), direction))
        theirs = (plain, *torch.autograd.grad(plain, (x, taps), direction.double()))
    names = ("y", "dx", "dtaps")
    return largest_errors(dict(zip(names, ours, strict=True)), dict(zip(names, theirs, strict=True)))


@cache
def _why_unfit_for_auto(name: BackendName) -> str | None:
    """`why_unusable` on the CUDA device, looked at once; a library that is installed and fails is told of."""
    reason = why_unusable(name, torch.device("cuda"))
    kernel = BACKENDS[name].kernel
    assert kernel in KERNELS
    if reason is not None and probe(kernel).version is not None:
        logger.warning("convolutions do without %s: %s", name, reason)
    return reason
