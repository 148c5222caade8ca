"""What kernels are tried with before they are used: inputs without random numbers, and how far results lie apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def waves(shape: tuple[int, ...], step: float, device: torch.device) -> Tensor:
    """Numbers between -1 and 1 without a pattern that a wrong order of taps or channels would leave as it is.

    A run is the same whether kernels are tried in it or not: none is drawn.

    Args:
        shape: of the result.
        step: of the argument; two tensors want two.
        device: of the result.

    Returns:
        float32, wants a gradient.
    """
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    values = torch.sin(step * count + 0.001 * count**1.5)
    return values.view(shape).to(device, torch.float32).requires_grad_()


def largest_errors(found: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> dict[str, float]:
    """How far results are from those of a reference, over the reference's largest value.

    Args:
        found: by name.
        plain: of the same names.
    """
    differences = {name: (found[name].detach() - value.detach()).abs().max() for name, value in plain.items()}
    return {name: float(difference / plain[name].detach().abs().max()) for name, difference in differences.items()}


def say_wrong(errors: Mapping[str, float], tolerance: float) -> str | None:
    """The errors above a tolerance in words; None: there are none."""
    wrong = [f"{what} by {error:.1e}" for what, error in errors.items() if not error <= tolerance]
    return f"it differs from the plain reference in {', '.join(wrong)}" if wrong else None
