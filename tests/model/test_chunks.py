"""Maps that go over a sequence in chunks against the same maps on the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.model.chunks import in_chunks

NUM_TAPS, LENGTH = 4, 23


def causal_map(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Not linear, each position from the last four; three channels to five."""
    filtered = functional.conv1d(functional.pad(x.transpose(1, 2), (NUM_TAPS - 1, 0)), weight).transpose(1, 2)
    return torch.tanh(filtered) + bias


def inputs(dtype: torch.dtype = torch.double) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, LENGTH, 3), (5, 3, NUM_TAPS), (5,))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


# Shorter than the map reads back, as long, no divisor, all, more than all.
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 10, LENGTH, 100])
@pytest.mark.parametrize("frozen", [(), (0,), (1, 2)])
def test_chunks_equal_the_whole(chunk: int, frozen: tuple[int, ...]) -> None:
    x, *weights = given = inputs()
    for index in frozen:
        given[index].requires_grad_(False)
    trained = [each for each in given if each.requires_grad]
    whole = causal_map(x, *weights)
    found = in_chunks(causal_map, x, tuple(weights), NUM_TAPS - 1, chunk)
    torch.testing.assert_close(found, whole)
    direction = torch.randn_like(whole)
    torch.testing.assert_close(
        torch.autograd.grad(found, trained, direction), torch.autograd.grad(whole, trained, direction)
    )


def test_nothing_is_kept_but_the_inputs() -> None:
    x, *weights = inputs()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        in_chunks(causal_map, x, tuple(weights), NUM_TAPS - 1, 5)
    assert [each.data_ptr() for each in kept] == [each.data_ptr() for each in (x, *weights)]


def test_the_second_pass_is_under_the_autocast_of_the_first() -> None:
    x, *weights = inputs(torch.float)
    dtypes = []

    def note(*given: Tensor) -> Tensor:
        made = causal_map(*given)
        dtypes.append((given[0] @ given[0].mT).dtype)
        return made

    with torch.autocast("cpu", torch.bfloat16):
        y = in_chunks(note, x, tuple(weights), NUM_TAPS - 1, 12)
    y.sum().backward()
    assert dtypes == [torch.bfloat16] * 4
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
