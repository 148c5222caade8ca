"""Attention within a window against the plain product under a band mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model import attention as attention_module
from hyena_blt_savanna.model.attention import Attention, AttentionConfig, windowed_attention
from hyena_blt_savanna.model.stack import StackConfig


def plain(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """All scores at once; queries are the last positions of the keys."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
    for i in range(num_queries):
        at = num_keys - num_queries + i
        for j in range(num_keys):
            if not at - window < j <= at:
                scores[:, :, i, j] = -torch.inf
    return scores.softmax(-1) @ value


@pytest.mark.parametrize("largest_block", [4, 128])
@pytest.mark.parametrize(("window", "length"), [(1, 9), (2, 1), (5, 5), (5, 31), (8, 40), (7, 64), (40, 30), (3, 50)])
def test_equals_the_masked_product(
    window: int, length: int, largest_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_module, "LARGEST_BLOCK", largest_block)
    for num_left in {0, 1, window - 1} - ({1} if window < 2 else set()):
        shape = (2, 3, length + num_left, 4)
        query, key, value = (torch.randn(shape, dtype=torch.double, requires_grad=True) for _ in range(3))
        ours = windowed_attention(query[:, :, num_left:], key, value, window)
        theirs = plain(query[:, :, num_left:], key, value, window)
        torch.testing.assert_close(ours, theirs)
        weight = torch.randn_like(ours)
        inputs = (query, key, value)
        for one, other in zip(
            torch.autograd.grad(ours, inputs, weight), torch.autograd.grad(theirs, inputs, weight), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_a_window_as_long_as_the_sequence_is_none() -> None:
    full = Attention(8, 2, AttentionConfig())
    for window in (20, 100):
        windowed = Attention(8, 2, AttentionConfig(window=window))
        windowed.load_state_dict(full.state_dict())
        x = torch.randn(2, 20, 8)
        torch.testing.assert_close(windowed(x), full(x))


def test_a_window_ends_where_it_should() -> None:
    attention = Attention(8, 2, AttentionConfig(window=6)).double()
    x = torch.randn(1, 300, 8, dtype=torch.double)
    changed = x.clone()
    changed[:, 140] += 1
    difference = (attention(changed) - attention(x)).abs().amax(dim=(0, 2))
    moved = difference.nonzero().flatten().tolist()
    assert moved == [140, 141, 142, 143, 144, 145]


def test_memory_is_linear_in_length() -> None:
    attention = Attention(8, 2, AttentionConfig(window=32))

    def saved_bytes(length: int) -> int:
        storages: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            kept = attention(torch.randn(1, length, 8, requires_grad=True))
        assert kept.requires_grad
        return sum(storages.values())

    assert saved_bytes(4096) < 2.1 * saved_bytes(2048)
    assert saved_bytes(4096) < 4 * 28 * 8 * 4096


def test_pairs_are_counted() -> None:
    def pairs(window: int | None, length: int) -> float:
        config = StackConfig.parse(
            {"width": 8, "num_heads": 2, "blocks": ["attention"], "attention": {"window": window}}
        )
        return config.flops(length)["attention"] / (4 * 8)

    # The causal count is L^2 / 2, half a pair a position less than the pairs there are; in a window likewise.
    for window in (3, 10, 100):
        there_are = sum(min(i + 1, window) for i in range(100))
        assert pairs(window, 100) == there_are - window / 2
    assert pairs(None, 100) == pairs(100, 100) == pairs(1000, 100) == 5000


def test_a_window_is_at_least_one() -> None:
    with pytest.raises(ConfigError, match="window"):
        AttentionConfig.parse({"window": 0})
