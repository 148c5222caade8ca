"""Nats of bases against a loop over them."""

from __future__ import annotations

import math

import pytest
import torch

from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, PADDING
from hyena_blt_savanna.testing.toy_training import ToyModel
from hyena_blt_savanna.training.loss import base_nats, scored_weight, weighted_nats

CLASS_OF_BYTE = ToyModel().class_of_byte
BASES = torch.tensor([[0, *b"ACGTN", END_OF_DOCUMENT, ord("G"), PADDING]])


def test_each_base_is_scored_by_the_logits_before_it():
    logits = torch.randn(1, BASES.shape[1], 5)
    nats = base_nats(logits, BASES, CLASS_OF_BYTE)
    assert nats.shape == (1, BASES.shape[1] - 1)
    columns = [0, 1, 2, 3, None, 4, 2, None]
    for position, column in enumerate(columns, start=1):
        if column is None:
            assert nats[0, position - 1] == 0
        else:
            scores = [math.exp(score) for score in logits[0, position - 1].tolist()]
            assert float(nats[0, position - 1]) == pytest.approx(-math.log(scores[column] / sum(scores)), rel=1e-5)


def test_weights_of_the_first_base_do_not_count():
    weights = torch.arange(1.0, BASES.shape[1] + 1)[None]
    logits = torch.randn(1, BASES.shape[1], 5)
    nats = base_nats(logits, BASES, CLASS_OF_BYTE)
    assert float(weighted_nats(logits, BASES, weights, CLASS_OF_BYTE)) == pytest.approx(
        sum(float(weights[0, t]) * float(nats[0, t - 1]) for t in range(1, BASES.shape[1])), rel=1e-5
    )
    assert float(scored_weight(weights)) == sum(range(2, BASES.shape[1] + 1))


def test_low_precision_logits_are_scored_in_fp32():
    logits = torch.randn(1, BASES.shape[1], 5)
    low = logits.to(torch.bfloat16)
    found = base_nats(low, BASES, CLASS_OF_BYTE)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, base_nats(low.float(), BASES, CLASS_OF_BYTE))
