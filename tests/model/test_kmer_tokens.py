"""Words as tokens: the conditionals of bases against plain sums over words, and the laws of every model."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.base_nats import base_nats
from hyena_blt_savanna.model.flops import count_flops
from hyena_blt_savanna.model.kmer_tokens import KmerTokens, KmerTokensConfig, next_letters
from hyena_blt_savanna.nucleotides import NUM_SCORED, PADDING, SCORED

K = 3
NUM_BASES = 31
LENGTHS = torch.tensor([[1, *[3] * 10, 0], [1, 3, 3, 2, 1, 3, 3, 3, 3, 3, 3, 3]])


def config(**changes: Any) -> KmerTokensConfig:
    tree = {
        "word_bases": K,
        "global_model": {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_li", "attention"]},
    }
    return KmerTokensConfig.parse(tree | changes)


@pytest.fixture(scope="module")
def model() -> KmerTokens:
    torch.manual_seed(0)
    model = config().build()
    for weight in (model.head.weight, model.start, model.words.weight):
        torch.nn.init.normal_(weight)
    return model.double()


@pytest.fixture
def bases() -> Tensor:
    torch.manual_seed(1)
    bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (2, NUM_BASES))]
    bases[:, 0] = 0
    return bases


def words_that_begin_with(letters: tuple[int, ...], word_bases: int) -> list[tuple[int, ...]]:
    """All words that agree with the letters given; a letter above 3 agrees with any."""
    return [
        word
        for word in product(range(4), repeat=word_bases)
        if all(letter in (found, 4) for letter, found in zip(letters, word, strict=False))
    ]


def number(word: tuple[int, ...]) -> int:
    return sum(letter * 4 ** (len(word) - 1 - place) for place, letter in enumerate(word))


@pytest.mark.parametrize("letters", [(0, 1, 2, 3), (3, 3, 0, 0), (4, 1, 0, 0), (1, 4, 2, 0), (4, 4, 4, 4)])
def test_conditionals_equal_sums_over_words(letters: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    logits = 3 * torch.randn(1, 256, dtype=torch.double)
    weights = logits[0].exp().tolist()
    found = next_letters(logits, torch.tensor([letters]))
    for place in range(4):
        sums = [
            sum(weights[number(word)] for word in words_that_begin_with((*letters[:place], letter), 4))
            for letter in range(4)
        ]
        expected = [math.log(one / sum(sums)) for one in sums]
        assert found[0, place].tolist() == pytest.approx(expected, rel=1e-9)


def test_improbable_words_do_not_underflow() -> None:
    logits = torch.zeros(1, 64)
    logits[0, :48] = -500
    found = next_letters(logits, torch.tensor([[0, 0, 0]]))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[0, 1:], torch.full((2, 4), -math.log(4)))


def test_gradients_of_conditionals() -> None:
    logits = torch.randn(2, 64, dtype=torch.double, requires_grad=True)
    codes = torch.tensor([[0, 3, 1], [2, 4, 1]])
    assert torch.autograd.gradcheck(lambda x: next_letters(x, codes), logits)


def test_the_bases_of_a_word_cost_what_the_word_costs(model: KmerTokens, bases: Tensor) -> None:
    nats = base_nats(model(bases, LENGTHS), bases, model.class_of_byte)
    rows = model.words(model.word_rows(bases, LENGTHS))
    read = torch.cat([model.start.expand(2, 1, -1), model.global_model(rows)], 1)
    predicted = model.head(read)
    for row in range(2):
        first = 0
        for patch, length in enumerate(LENGTHS[row].tolist()):
            if length == K:
                word = tuple(b"ACGT".index(base) for base in bases[row, first : first + K].tolist())
                cross_entropy = -predicted[row, patch, : 4**K].log_softmax(-1)[number(word)]
                survived = torch.nn.functional.softplus(predicted[row, patch, 4**K :]).sum()
                # nats[t - 1] is what base t costs.
                torch.testing.assert_close(
                    nats[row, first - 1 : first + K - 1].sum(), (cross_entropy + survived).float()
                )
            first += length


def test_the_probability_of_an_end_is_its_place_s_own(model: KmerTokens, bases: Tensor) -> None:
    probabilities = model(bases, LENGTHS).softmax(-1)
    read = model.global_model(model.words(model.word_rows(bases, LENGTHS)))
    # Base 6 is the last of the word that begins at 4, patch 2, predicted from patch 1.
    torch.testing.assert_close(
        probabilities[0, 5, 4], torch.sigmoid(model.head(read[0, 1])[4**K + 2]), check_dtype=False
    )


def test_changing_a_base_changes_no_logit_before_it(model: KmerTokens, bases: Tensor) -> None:
    before = model(bases, LENGTHS)
    assert before.shape == (2, NUM_BASES, NUM_SCORED)
    for t in range(1, NUM_BASES):
        for base in b"ACN":
            changed = bases.clone()
            changed[:, t] = torch.where(bases[:, t] == base, ord("T"), base)
            difference = (model(changed, LENGTHS) - before).abs().amax((0, 2))
            assert difference[:t].sum() < 1e-9
            assert difference[t] > 1e-6


def test_moving_a_boundary_changes_no_logit_before_it_is_known(model: KmerTokens, bases: Tensor) -> None:
    one, other = torch.tensor([[1, 3, 3, 3, 3]]), torch.tensor([[1, 3, 3, 1, 2]])
    difference = (model(bases[:1], one) - model(bases[:1], other)).abs().amax((0, 2))
    # The patch that ends at 10 or at 8: that base 8 opens one is known at logits 7.
    assert difference[:7].max() < 1e-9 < difference[7]


def test_unfinished_words_and_padding(model: KmerTokens, bases: Tensor) -> None:
    whole = model(bases, LENGTHS)
    for length in (1, 2, 3, 4, 5, 6):
        lengths = torch.tensor([[1] + [3] * ((length - 1) // 3)])
        torch.testing.assert_close(model(bases[:1, :length], lengths), whole[:1, :length])
    padded = torch.nn.functional.pad(bases, (0, 20), value=PADDING)
    logits = model(padded, torch.nn.functional.pad(LENGTHS, (0, 4)))
    torch.testing.assert_close(logits[:, : NUM_BASES - 1], whole[:, :-1])
    assert torch.isfinite(logits).all()


def test_words_have_rows_of_their_own(model: KmerTokens) -> None:
    def row(word: bytes) -> int:
        bases = torch.tensor([[0, *word]])
        rows = model.word_rows(bases, torch.tensor([[1, len(word), 0]]))
        # The byte in front, and the padded patch behind.
        assert rows[0, 0] == rows[0, 2] == 0
        return int(rows[0, 1])

    words = [bytes(word) for n in (1, 2, 3) for word in product(b"ACGT", repeat=n)]
    rows = [row(word) for word in words]
    assert sorted(rows) == list(range(1, 1 + 4 + 16 + 64))
    assert row(b"ANC") == row(b"N") == row(b"@") == model.words.num_embeddings - 1 == 85
    # A document that ends is followed by another, whatever its last bases were.
    assert row(b"AC\0") == row(b"\0") == 0


def test_gradients_are_finite(bases: Tensor) -> None:
    model = config().build()
    torch.nn.init.normal_(model.head.weight)
    bases[0, 8:12] = ord("N")
    # The start vector is read where no byte stands in front.
    logits = model(bases, torch.tensor([LENGTHS[0].tolist(), [3] * 10 + [0, 0]]))
    base_nats(logits, bases, model.class_of_byte).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.any(), name


def test_bf16(model: KmerTokens, bases: Tensor) -> None:
    single = config().build()
    single.load_state_dict(model.state_dict())
    expected = single(bases, LENGTHS).log_softmax(-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = single(bases, LENGTHS)
    assert logits.dtype == torch.float32
    assert (logits.log_softmax(-1) - expected).abs().mean() < 0.1


def test_operations_by_hand() -> None:
    parts = count_flops(config(word_bases=6), 600, 100)
    assert parts["head"] == 2 * 101 * 16 * (4096 + 6)
    assert parts["mlp"] == config().global_model.flops(100)["mlp"]


def test_as_many_columns_as_bytes_are_scored(model: KmerTokens) -> None:
    assert model.class_of_byte[list(SCORED)].tolist() == list(range(len(SCORED)))


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="word_bases"):
        config(word_bases=9)
