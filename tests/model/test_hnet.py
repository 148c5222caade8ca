"""Laws of H-Net: causality with the boundaries found anew, padding, documents, the ratio loss, dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.flops import count_flops
from hyena_blt_savanna.model.hnet import HNet, HNetConfig
from hyena_blt_savanna.model.prediction import Prediction
from hyena_blt_savanna.model.routing import ratio_loss
from hyena_blt_savanna.nucleotides import NUM_SCORED, PADDING, SCORED

NUM_BASES = 60


def config(**changes: Any) -> HNetConfig:
    tree = {
        "kmers": {"sizes": [1, 3]},
        "encoder": {"width": 16, "blocks": ["hyena_se"]},
        "main_network": {"width": 24, "num_heads": 2, "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"]},
        "decoder": {"width": 16, "blocks": ["hyena_se"]},
        "chunk_bases": 4,
    }
    return HNetConfig.parse(tree | changes)


def build(**changes: Any) -> HNet:
    """None of the weights is zero."""
    torch.manual_seed(0)
    model = config(**changes).build()
    for weight in (model.head.weight, model.residual.weight, model.residual.bias, model.widening):
        torch.nn.init.normal_(weight, std=0.3)
    return model.double()


@pytest.fixture(scope="module")
def model() -> HNet:
    return build().eval()


@pytest.fixture
def bases() -> Tensor:
    torch.manual_seed(1)
    bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (3, NUM_BASES))]
    bases[:, 0] = 0
    return bases


def test_changing_a_base_changes_no_logit_before_it(model: HNet, bases: Tensor) -> None:
    before, starts = model(bases), model.chunk_starts(bases)
    assert before.shape == (3, NUM_BASES, NUM_SCORED)
    num_moved_here = num_moved_later = 0
    for t in range(1, NUM_BASES):
        changed = bases.clone()
        changed[:, t] = torch.where(bases[:, t] == ord("A"), ord("C"), ord("A"))
        moved = (model.chunk_starts(changed) != starts).any(0)
        difference = (model(changed) - before).abs().amax((0, 2))
        assert not moved[:t].any()
        assert difference[:t].sum() < 1e-9
        assert difference[t] > 1e-6
        num_moved_here += int(moved[t])
        num_moved_later += int(moved[t + 1 :].any())
    # A boundary at t is found from base t itself, too, and the test has seen that happen.
    assert num_moved_here > 5
    assert num_moved_later > 5


def test_a_prefix_is_scored_as_in_the_whole(model: HNet, bases: Tensor) -> None:
    whole = model(bases)
    for length in (1, 2, 17, 59):
        torch.testing.assert_close(model(bases[:, :length]), whole[:, :length])


def test_rows_do_not_meet_and_padding_changes_nothing(model: HNet, bases: Tensor) -> None:
    padded = bases.clone()
    padded[1, 20:], padded[2, 5:] = PADDING, PADDING
    logits, starts = model(padded), model.chunk_starts(padded)
    assert not starts[padded == PADDING].any()
    for row, length in enumerate((NUM_BASES, 20, 5)):
        alone = bases[row : row + 1, :length]
        torch.testing.assert_close(logits[row : row + 1, :length], model(alone))
        assert starts[row : row + 1, :length].equal(model.chunk_starts(alone))
        assert starts[row, 0]


def test_what_a_base_reads_of_its_chunk_by_hand(model: HNet, bases: Tensor) -> None:
    """The model again, one row and one chunk at a time."""
    states = model.encoder(model.embedding(bases[:1]))[0]
    query, key = states @ model.router.query.weight.T, states @ model.router.key.weight.T
    cosine = torch.cosine_similarity(query[:-1], key[1:])
    p = torch.cat([torch.ones(1), (1 - cosine) / 2])
    starts = [t for t in range(NUM_BASES) if p[t] > 0.5]
    assert model.chunk_starts(bases)[0].nonzero()[:, 0].tolist() == starts
    wide = torch.cat([states[starts], model.widening.expand(len(starts), -1)], 1)
    chunks = model.main_network(wide[None])[0, :, :16]
    rows, mean, chunk = [], torch.zeros(16), -1
    for t in range(NUM_BASES):
        if t in starts:
            chunk += 1
            weight = p[t].clamp(1e-4, 1 - 1e-4)
            mean = weight * chunks[chunk] + (1 - weight) * mean
        rows.append(mean + states[t] @ model.residual.weight.T + model.residual.bias)
    expected = model.head(model.decoder(torch.stack(rows)[None]))
    torch.testing.assert_close(model(bases[:1]), expected, rtol=1e-6, atol=1e-6)


def test_a_document_begins_a_chunk(model: HNet, bases: Tensor) -> None:
    bases[:, 31] = 0
    assert model.chunk_starts(bases)[:, [0, 31]].all()


def score(model: HNet, bases: Tensor) -> Prediction:
    prediction = model(bases, loss_weights=torch.ones(bases.shape, dtype=torch.double))
    assert isinstance(prediction, Prediction)
    return prediction


def test_the_ratio_loss_is_added_in_training_alone(bases: Tensor) -> None:
    model = build()
    bases[1, 41:] = PADDING
    prediction = score(model.train(), bases)
    is_real = bases != PADDING
    _, routing = model._route(bases)
    losses = ratio_loss(routing, is_real, 4.0)
    expected = 0.02 * (59 * losses[0] + 40 * losses[1] + 59 * losses[2])
    torch.testing.assert_close(prediction.auxiliary_nats, expected)
    # Which rows share a batch does not matter.
    alone = sum(score(model, bases[row : row + 1]).auxiliary_nats for row in range(3))
    torch.testing.assert_close(prediction.auxiliary_nats, alone)
    assert score(build(ratio_loss=0.0).train(), bases).auxiliary_nats is None
    assert score(model.eval(), bases).auxiliary_nats is None


def test_chunks_are_counted_and_the_logits_are_the_same_in_training(model: HNet, bases: Tensor) -> None:
    bases[1, 41:] = PADDING
    torch.testing.assert_close(build().train()(bases), model(bases))
    prediction = score(build().train(), bases)
    assert prediction.num_patches == model.chunk_starts(bases).sum() > 3


@pytest.mark.parametrize("kmers", [{"sizes": [1, 3]}, None])
def test_every_weight_has_a_gradient(bases: Tensor, kmers: dict[str, Any] | None) -> None:
    model = build(kmers=kmers).train()
    prediction = score(model, bases)
    (prediction.nats + prediction.auxiliary_nats).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.any(), name


def test_the_router_learns_from_the_bases_too(bases: Tensor) -> None:
    """Through the running mean's weights and the straight-through factor, without the ratio loss."""
    model = build(ratio_loss=0.0).train()
    score(model, bases).nats.backward()
    assert model.router.query.weight.grad.abs().max() > 1e-6


def test_bf16(bases: Tensor) -> None:
    model = build().float().eval()
    expected, starts = model(bases).detach(), model.chunk_starts(bases)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(bases)
        routing = model._route(bases)[1]
    assert routing.probabilities.dtype == torch.float32
    assert torch.isfinite(logits).all()
    # Rounding moves a boundary that is in doubt; up to the first that moved, the logits agree.
    agrees = (routing.starts == starts).long().cumprod(1).bool()
    assert agrees.sum() > NUM_BASES
    assert (logits.float() - expected)[agrees].abs().median() < 0.05


def test_operations_by_hand() -> None:
    parts = count_flops(config(), 1000, 125)
    assert parts["router"] == 2 * 2 * 999 * 16 * 16
    assert parts["residual"] == 2 * 1000 * 16 * 16
    # 1 + 1 / 32 + 1 / 32^2 + ... times the chunks.
    assert parts["running_mean"] == pytest.approx(125 * 2 * 32 * 16 * 32 / 31)
    assert parts["head"] == 2 * 1000 * 16 * 5
    assert parts["attention"] == 4 * 125**2 / 2 * 24
    assert parts["encoder"] == sum(config().encoder.flops(1000).values())
    # Without a number of chunks, as many as the ratio loss wants.
    assert count_flops(config(), 1000) == count_flops(config(), 1000, 250)


def test_as_many_columns_as_bytes_are_scored(model: HNet) -> None:
    assert model.class_of_byte[list(SCORED)].tolist() == list(range(len(SCORED)))
    assert (model.class_of_byte >= 0).sum() == len(SCORED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": {"width": 24, "blocks": ["hyena_se"]}}, "decoder.width is 24 and encoder.width 16"),
        ({"main_network": {"width": 8, "blocks": ["hyena_se"]}}, "main_network.width is 8 and encoder.width 16"),
        ({"chunk_bases": 1}, "chunk_bases"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_equal_widths_need_no_widening(bases: Tensor) -> None:
    model = config(main_network={"width": 16, "blocks": ["hyena_se"]}).build()
    # Nor a weight of no numbers, which ZeRO 3 refuses.
    assert all(weight.numel() for weight in model.parameters())
    assert model.eval()(bases).shape == (3, NUM_BASES, NUM_SCORED)
