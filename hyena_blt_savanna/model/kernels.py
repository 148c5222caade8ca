"""Optional CUDA kernels: the one place that knows them, whether each can be used here, and if not, why.

Nothing is imported before a kernel is asked for, and nothing here is needed to train: each has a counterpart in torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


class KernelError(ValueError):
    """A kernel that was asked for can't be used; the message says why, and what to do."""


@dataclass(frozen=True)
class Kernel:
    """A library of kernels.

    Attributes:
        distributions: names that it is installed under, one of which is enough.
        module: that it is imported as.
        least_version: that has what is used of it.
        capability: least compute capability of a device.
        install: the command that installs it.
        what_for: in a few words.
    """

    distributions: tuple[str, ...]
    module: str
    least_version: tuple[int, ...]
    capability: tuple[int, int]
    install: str
    what_for: str


_FROM_REQUIREMENTS = "pip install --no-build-isolation --requirement requirements-gpu.txt"

KERNELS = {
    "subquadratic_ops": Kernel(
        ("subquadratic-ops-torch-cu13", "subquadratic-ops-torch-cu12"),
        "subquadratic_ops_torch",
        (0, 2),
        (8, 0),
        _FROM_REQUIREMENTS,
        "convolutions, direct up to 256 taps and in Fourier space",
    ),
    "causal_conv1d": Kernel(
        ("causal-conv1d",), "causal_conv1d", (1, 4), (7, 0), _FROM_REQUIREMENTS, "convolutions of 2 to 4 taps"
    ),
    "flashfftconv": Kernel(
        ("flashfftconv",),
        "flashfftconv",
        (0,),
        (8, 0),
        "build csrc/flashfftconv, then the root, of github.com/HazyResearch/flash-fft-conv (not maintained since 2024)",
        "long convolutions in bf16",
    ),
    "transformer_engine": Kernel(
        ("transformer-engine",),
        "transformer_engine.pytorch",
        (2, 9),
        (8, 9),
        _FROM_REQUIREMENTS,
        "matrix products in FP8",
    ),
}
"""By the names that the rest of the package uses."""


@dataclass(frozen=True)
class Probe:
    """What was found of a kernel.

    Attributes:
        name: a key of KERNELS.
        version: that is installed; None: none is.
        reason: why it can't be used; None: it can.
    """

    name: str
    version: str | None
    reason: str | None


@cache
def probe(name: str) -> Probe:
    """Looks once whether a kernel can be used in this process.

    Args:
        name: a key of KERNELS.
    """
    kernel = KERNELS[name]
    version = _installed_version(kernel)
    if version is None:
        return Probe(name, None, f"not installed; to install it: {kernel.install}")
    if _numbers(version) < kernel.least_version:
        least = ".".join(map(str, kernel.least_version))
        return Probe(name, version, f"version {version} is older than {least}: {kernel.install}")
    reason = _why_no_device(kernel)
    if reason is None:
        try:
            importlib.import_module(kernel.module)
        # A broken build ends in whatever its loader raises.
        except Exception as error:
            reason = f"importing {kernel.module} failed: {type(error).__name__}: {error}"
    return Probe(name, version, reason)


def load(name: str, attribute: str) -> Callable[..., Any]:
    """A function of a kernel library.

    Args:
        name: a key of KERNELS.
        attribute: below the library's module, such as `fft_causal_conv1d.fft_causal_conv1d`.

    Raises:
        KernelError: the library can't be used here.
    """
    reason = probe(name).reason
    if reason is not None:
        raise KernelError(f"{name} can't be used: {reason}")
    *folders, function = attribute.split(".")
    module = importlib.import_module(".".join([KERNELS[name].module, *folders]))
    found: Callable[..., Any] = getattr(module, function)
    return found


def _installed_version(kernel: Kernel) -> str | None:
    for distribution in kernel.distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3])


def _why_no_device(kernel: Kernel) -> str | None:
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    found = torch.cuda.get_device_capability()
    if found < kernel.capability:
        have, want = (".".join(map(str, pair)) for pair in (found, kernel.capability))
        return f"the device has compute capability {have}, and it needs {want}"
    return None
