"""Reading base by base with a hybrid gives the logits of one parallel pass, whatever the local modules are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.model.hybrid_decoding import HybridDecoder
from hyena_blt_savanna.model.hyena_blt import HyenaBLT, HyenaBLTConfig

LONGEST = 8
MODELS: dict[str, dict[str, Any]] = {
    "convolutions": {
        "encoder": {"blocks": ["gated_convolution"], "num_taps": 3, "hidden_width": 16},
        "decoder": {"blocks": ["gated_convolution"] * 2, "num_taps": 4, "hidden_width": 16},
    },
    "no blocks": {
        "kmers": {"sizes": []},
        "positions": {"place": True, "patch_length": False},
        "encoder": {"blocks": []},
        "decoder": {"blocks": []},
    },
    "one tap": {
        "kmers": {"sizes": [1, 7]},
        "encoder": {"blocks": ["gated_convolution"], "num_taps": 1},
        "decoder": {"blocks": ["hyena_se"], "hyena": {"se_taps": 1, "featurizer_taps": 1}},
    },
    "attention": {
        "positions": {"place": True, "periods": [3, 10.5]},
        "encoder": {
            "blocks": ["attention"],
            "num_heads": 2,
            "attention": {"window": 6},
            "to_patches": {"kind": "cross_attention", "num_queries": 2, "num_heads": 2},
        },
        "decoder": {
            "blocks": ["gated_convolution", "attention"],
            "num_heads": 2,
            "attention": {"window": 20},
            "from_patches": {"kind": "cross_attention", "num_vectors": 2, "num_heads": 2},
        },
    },
    "hyena": {
        "positions": {"place": True, "periods": [147]},
        "encoder": {"blocks": ["hyena_se"], "to_patches": {"kind": "summary"}},
        "decoder": {"blocks": ["hyena_mr"], "hyena": {"mr_taps": 9}, "from_patches": {"kind": "broadcast"}},
    },
}


def build(name: str) -> HyenaBLT:
    tree = {
        "local_width": 12,
        "max_patch_bases": LONGEST,
        "kmers": {"sizes": [2, 3, 4]},
        "global_model": {"width": 16, "num_heads": 2, "blocks": ["hyena_mr", "hyena_li", "attention"]},
    }
    torch.manual_seed(3)
    model = HyenaBLTConfig.parse(tree | MODELS[name]).build().eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.2 * torch.randn_like(weight))
    return model.double()


def whole_pass(model: HyenaBLT, bases: Tensor, lengths: Tensor) -> Tensor:
    finished = lengths[lengths.cumsum(0) <= len(bases)]
    logits: Tensor = model(bases[None], finished[None])[0]
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_rows_equal_the_parallel_pass(name: str) -> None:
    """Prompts of three lengths, boundaries of each row's own, rows that are repeated and left out."""
    model = build(name)
    bases = torch.tensor(list(b"ACGTN"))[torch.randint(0, 5, (3, 300))]
    bases[:, 0] = 0
    lengths = torch.randint(1, LONGEST + 1, (3, 300))
    lengths[:, 0] = 1
    ends = [set(of_row.cumsum(0).tolist()) for of_row in lengths]
    read = [60, 1, 9]
    decoders = [HybridDecoder(model) for _ in read]
    logits = []
    for row, decoder in enumerate(decoders):
        finished = lengths[row][lengths[row].cumsum(0) <= read[row]]
        logits.append(decoder.prefill(bases[row : row + 1, : read[row]], finished[None]))
    decoder, *others = decoders
    decoder.join(others)
    order = [2, 0, 1, 0]
    decoder.select(torch.tensor(order))
    places = {place: [of_place] for place, of_place in enumerate(torch.cat(logits)[order])}
    stop = 40
    going, waiting = list(places), []
    rounds = 0
    while len(places[0]) < stop:
        at = None if len(going) == len(order) else torch.tensor(going)
        newest = [read[order[place]] + len(places[place]) - 1 for place in going]
        decoder.read(torch.stack([bases[order[place], t] for place, t in zip(going, newest, strict=True)]), at)
        ended = [place for place, t in zip(going, newest, strict=True) if t + 1 in ends[order[place]]]
        waiting += ended
        going = [place for place in going if place not in ended]
        if not going:
            rounds += 1
            if rounds == 3:
                order.pop()
                decoder.select(torch.tensor([0, 1, 2]))
            going, waiting = list(range(len(order))), []
            decoder.end_patches()
        at = None if len(going) == len(order) else torch.tensor(going)
        for place, of_place in zip(going, decoder.logits(at), strict=True):
            places[place].append(of_place)
    assert rounds > 3
    for place, row in enumerate([2, 0, 1]):
        found = torch.stack(places[place])
        whole = whole_pass(model, bases[row, : read[row] + len(found) - 1], lengths[row])[read[row] - 1 :]
        # Rotary angles are fp32 whatever the weights are.
        torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.stack(places[3]), torch.stack(places[1][: len(places[3])]))


@pytest.mark.parametrize("name", MODELS)
def test_a_long_prompt_is_not_kept(name: str) -> None:
    model = build(name)
    held = []
    for num_patches in (20, 200):
        decoder = HybridDecoder(model)
        decoder.prefill(torch.full((1, 3 * num_patches + 2), ord("C")), torch.full((1, num_patches), 3))
        growing = decoder._global_model.num_bytes
        held.append(decoder.num_bytes - growing)
    assert held[0] == held[1] < 60_000
