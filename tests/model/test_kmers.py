"""K-mer rows against a dictionary of words."""

import pytest
import torch

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.kmers import KmerConfig, KmerEmbedding, KmerTables

SEQUENCE = b"\0ACGTTGCANACGTACC|ACGGGTTTAACCA"


def to_tensor(sequence: bytes) -> torch.Tensor:
    return torch.tensor(list(sequence))[None]


def row_of(word: bytes) -> int:
    """The base-4 number of a word, or the row that all other words share."""
    if len(word) == 0 or not set(word) <= set(b"ACGT"):
        return -1
    return sum(b"ACGT".index(base) * 4**place for place, base in enumerate(reversed(word)))


@pytest.mark.parametrize("sizes", [(2,), (1, 3), (2, 3, 4, 5, 6, 7, 8)])
def test_rows_are_base_four_numbers_of_the_words_that_end_at_a_base(sizes):
    embedding = KmerEmbedding(KmerConfig(sizes=sizes), width=3)
    found = embedding.kmers.indices(to_tensor(SEQUENCE))[0]
    first_row = 0
    for column, k in enumerate(sizes):
        for base in range(len(SEQUENCE)):
            word = SEQUENCE[base - k + 1 : base + 1] if base >= k - 1 else b""
            row = row_of(word)
            assert found[base, column] == first_row + (4**k if row < 0 else row)
        first_row += 4**k + 1


def test_the_vector_of_a_base_is_the_sum_of_its_rows():
    torch.manual_seed(0)
    embedding = KmerEmbedding(KmerConfig(sizes=(2, 5)), width=4)
    bases = to_tensor(SEQUENCE)
    expected = embedding.bases.weight[bases] + embedding.kmers.weight[embedding.kmers.indices(bases)].sum(2)
    torch.testing.assert_close(embedding(bases), expected)


def test_no_two_words_share_a_row():
    embedding = KmerEmbedding(KmerConfig(sizes=(4,)), width=1)
    words = torch.cartesian_prod(*[torch.tensor(list(b"ACGT"))] * 4)
    assert embedding.kmers.indices(words)[:, -1, 0].unique().numel() == 4**4


@pytest.mark.parametrize("sizes", [[0], [13], [3, 3]])
def test_sizes_that_make_no_table_are_refused(sizes):
    with pytest.raises(ConfigError, match="k-mer sizes must be different numbers from 1 to 12"):
        KmerConfig.parse({"sizes": sizes})


def test_dropout_leaves_out_whole_vectors_in_training_only_and_keeps_the_mean():
    torch.manual_seed(0)
    tables = KmerTables(KmerConfig(sizes=(1, 2, 3), dropout=0.25), width=2)
    bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (1, 4000))]
    with torch.no_grad():
        # A table speaks with one number: the sum says which tables were kept.
        for first, end, value in ((0, 5, 1.0), (5, 22, 10.0), (22, 87, 100.0)):
            tables.weight[first:end] = value
    kept = tables.train()(bases)[0] * 0.75
    assert (kept[:, 0] == kept[:, 1]).all()
    digits = torch.stack([kept[2:, 0] / unit % 10 for unit in (1, 10, 100)]).floor()
    assert set(digits.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(digits.mean(1), torch.full((3,), 0.75), rtol=0, atol=0.03)
    assert len(digits.unique(dim=1).T) == 8
    assert (tables.eval()(bases)[0, 2:] == 111).all()


def test_dropped_vectors_get_no_gradient():
    torch.manual_seed(0)
    tables = KmerTables(KmerConfig(sizes=(1,), dropout=0.5), width=1)
    bases = torch.full((1, 1000), ord("C"))
    found = tables(bases)
    found.sum().backward()
    assert tables.weight.grad is not None
    torch.testing.assert_close(tables.weight.grad[1, 0] * tables.weight[1, 0], found.sum())
    assert 2 * 400 < float(tables.weight.grad[1, 0]) < 2 * 600
