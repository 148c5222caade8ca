"""A short or medium Hyena mixer from the featurizer to the gate behind the convolution, in one CUDA kernel.

The kernel is subquadratic-ops' `b2b_causal_conv1d`. It is used where `training.convolution` asks for it, by mixers
whose positions are all on one rank, and after it has passed a test in the process; nobody has measured yet whether it
is faster than the two convolutions and the gates that it stands for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hyena_blt_savanna.model.cuda_convolution import subquadratic_back_to_back
from hyena_blt_savanna.model.direct_convolution import shifted_convolution
from hyena_blt_savanna.model.kernel_tests import largest_errors, say_wrong, waves
from hyena_blt_savanna.model.kernels import KernelError, probe
from hyena_blt_savanna.model.precision import no_autocast

KERNEL = "subquadratic_ops"
MOST_FEATURIZER_TAPS, MOST_TAPS = 32, 256
_TOLERANCE = 1e-4
_TRIED = ((3, 7, False), (4, 128, True))
"""Taps of the featurizer, of the filter, and whether there is a skip."""

_device_type: str | None = None


def prefer_back_to_back(device: torch.device | None) -> None:
    """Says where mixers use the kernel from here on, in this process.

    Args:
        device: None: nowhere.

    Raises:
        KernelError: it doesn't work there.
    """
    global _device_type
    reason = None if device is None else why_no_back_to_back(device)
    if reason is not None:
        raise KernelError(f"training.convolution: back_to_back can't be used: {reason}. Choose auto")
    _device_type = None if device is None else device.type


def takes_back_to_back(z: Tensor, num_featurizer_taps: int, num_taps: int) -> bool:
    """Whether a mixer on one rank gives its projections to the kernel.

    Args:
        z: [3 D, B, L].
        num_featurizer_taps: F.
        num_taps: K.
    """
    fits = 2 <= num_featurizer_taps <= MOST_FEATURIZER_TAPS and 2 <= min(num_taps, z.shape[-1]) <= MOST_TAPS
    return z.device.type == _device_type and z.dtype != torch.float64 and fits


def why_no_back_to_back(device: torch.device) -> str | None:
    """Why the kernel can't be used on a device; None: it can, and gives what the plain reference gives there."""
    reason = probe(KERNEL).reason
    if reason is None and device.type != "cuda":
        reason = f"it is a CUDA kernel, and the device is {device.type}"
    if reason is not None:
        return f"{KERNEL}: {reason}"
    try:
        return say_wrong(back_to_back_errors(device), _TOLERANCE)
    # Whatever a foreign kernel raises.
    except Exception as error:
        return f"it failed its test: {type(error).__name__}: {error}"


def back_to_back_errors(device: torch.device) -> dict[str, float]:
    """How far the kernel's output and gradients are from the plain reference, over the reference's largest value."""
    errors: dict[str, float] = {}
    width, groups, batch, length = 16, 8, 2, 200
    for num_short, num_taps, has_skip in _TRIED:
        with torch.enable_grad(), no_autocast(torch.empty(0, device=device)):
            z = waves((3 * width, batch, length), 1.3, device)
            short, taps = waves((3 * width, num_short), 0.7, device), waves((groups, num_taps), 0.9, device)
            skip = waves((width,), 0.5, device) if has_skip else None
            leaves = (z, short, taps) if skip is None else (z, short, taps, skip)
            direction = waves((width, batch, length), 2.1, device).detach() + z[:width].detach()
            found = subquadratic_back_to_back(z, short, taps, skip)
            plain = plain_back_to_back(
                z.double(), short.double(), taps.double(), None if skip is None else skip.double()
            )
            ours = (found, *torch.autograd.grad(found, leaves, direction))
            theirs = (plain, *torch.autograd.grad(plain, leaves, direction.double()))
        names = ("y", "dz", "dfeaturizer", "dtaps", "dskip")[: len(ours)]
        of_this = largest_errors(dict(zip(names, ours, strict=True)), dict(zip(names, theirs, strict=True)))
        errors |= {name: max(error, errors.get(name, 0.0)) for name, error in of_this.items()}
    return errors


def plain_back_to_back(z: Tensor, featurizer_taps: Tensor, taps: Tensor, skip: Tensor | None) -> Tensor:
    """What the kernel computes, operation by operation.

    Args:
        z: [3 D, B, L]: all of x1, then of x2, then of v, before the featurizer.
        featurizer_taps: [3 D, F], index = lag.
        taps: [G, K], index = lag.
        skip: [D]; None: there is none.

    Returns:
        x1 (taps * (x2 v) + skip x2 v), [D, B, L].
    """
    x1, x2, v = shifted_convolution(z, featurizer_taps).chunk(3)
    p = x2 * v
    q = shifted_convolution(p, taps)
    return x1 * (q if skip is None else q + skip[:, None, None] * p)
