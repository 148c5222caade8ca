"""Nats by chunks of bases against those of all logits at once: values, gradients, and what is in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hyena_blt_savanna.model.base_nats import weighted_nats
from hyena_blt_savanna.model.head import Head, Targets
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.scored_classes import class_of_byte
from hyena_blt_savanna.nucleotides import NUM_SCORED, PADDING

NUM_ROWS, NUM_BASES, WIDTH = 3, 50, 8


def make(dtype: torch.dtype = torch.double) -> tuple[Head, Tensor, Targets]:
    """Letters that are never scored, padding with a weight, the first base's weight, which counts for nothing."""
    torch.manual_seed(0)
    head = Head(WIDTH, NUM_SCORED).to(dtype)
    states = torch.randn(NUM_ROWS, NUM_BASES, WIDTH, dtype=dtype, requires_grad=True)
    bases = torch.tensor(list(b"ACGTN\0"))[torch.randint(0, 6, (NUM_ROWS, NUM_BASES))]
    bases[1, 40:] = PADDING
    return head, states, Targets(bases, torch.rand(NUM_ROWS, NUM_BASES, dtype=dtype), class_of_byte())


def in_chunks(targets: Targets, chunk_bases: int | None) -> Targets:
    return Targets(targets.bases, targets.loss_weights, targets.class_of_byte, chunk_bases)


def gradients(head: Head, states: Tensor, nats: Tensor, factor: float) -> list[Tensor | None]:
    states.grad = head.weight.grad = None
    (factor * nats).backward()
    return [states.grad, head.weight.grad]


# Within a row, across rows, the last chunk shorter, one chunk, more than there is.
@pytest.mark.parametrize("chunk_bases", [None, 1, 7, 50, 64, NUM_ROWS * NUM_BASES, 1000])
def test_chunks_equal_the_whole(chunk_bases: int | None) -> None:
    head, states, targets = make()
    wanted = weighted_nats(head(states), targets.bases, targets.loss_weights, targets.class_of_byte)
    wanted_gradients = gradients(head, states, wanted, 0.3)
    found = head(states, targets=in_chunks(targets, chunk_bases))
    torch.testing.assert_close(found, wanted)
    for gradient, of_whole in zip(gradients(head, states, found, 0.3), wanted_gradients, strict=True):
        torch.testing.assert_close(gradient, of_whole)
    with torch.no_grad():
        alone = head(states, targets=in_chunks(targets, chunk_bases))
    assert not alone.requires_grad
    torch.testing.assert_close(alone, wanted.detach())


@pytest.mark.parametrize("frozen", ["states", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    head, states, targets = make()
    of_states, of_weight = gradients(head, states, head(states, targets=in_chunks(targets, 7)), 1.0)
    (states if frozen == "states" else head.weight).requires_grad_(False)
    found = gradients(head, states, head(states, targets=in_chunks(targets, 7)), 1.0)
    for gradient, wanted, is_frozen in zip(
        found, (of_states, of_weight), (frozen == "states", frozen == "weight"), strict=True
    ):
        assert gradient is None if is_frozen else torch.equal(gradient, wanted)


def test_under_autocast_products_are_in_its_precision_and_sums_are_not() -> None:
    head, states, targets = make(torch.float)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = weighted_nats(head(states), targets.bases, targets.loss_weights, targets.class_of_byte)
        found = head(states, targets=in_chunks(targets, 7))
    assert found.dtype == torch.float32
    # Logits are the same bfloat16 numbers, and what is made of them is fp32.
    torch.testing.assert_close(found, wanted)
    wanted_gradients = gradients(head, states, wanted, 1.0)
    for gradient, of_whole in zip(gradients(head, states, found, 1.0), wanted_gradients, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - of_whole).abs().max() / of_whole.abs().max()) < 2**-7


class _Sizes(TorchDispatchMode):
    """Keeps the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return made


@pytest.mark.parametrize("head", ["tied", "untied", "scored"])
def test_logits_of_a_window_never_exist(head: str) -> None:
    config = IsotropicConfig(stack={"width": 4, "blocks": ["hyena_se"]}, head=head, round_vocabulary_to=600)
    torch.manual_seed(0)
    model = config.build()
    bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (1, 1024))]
    weights = torch.rand(1, 1024)
    found = {}
    for chunk_bases in (None, 16):
        model.zero_grad()
        with _Sizes() as sizes:
            nats, *_ = model(bases, loss_weights=weights, loss_chunk_bases=chunk_bases)
            nats.backward()
        found[chunk_bases] = nats.detach(), {key: value.grad for key, value in model.named_parameters()}, sizes.largest
    whole = weighted_nats(model(bases), bases, weights, model.class_of_byte)
    for nats, _, _ in found.values():
        torch.testing.assert_close(nats, whole.detach())
    for key, gradient in found[None][1].items():
        error = (found[16][1][key] - gradient).abs().max() / gradient.abs().max()
        assert float(error) < 1e-5, key
    if head != "scored":
        assert found[None][2] >= 1024 * 512
    assert found[16][2] <= 1024 * 4 * 4
