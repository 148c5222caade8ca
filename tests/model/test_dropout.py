"""Draws by position against the generator in plain Python, and slices against the whole."""

import pytest
import torch

from hyena_blt_savanna.model.dropout import LONGEST_ROW, draw_seed, dropout_shares

MASK = 2**64 - 1


def split_mix(seed: int, index: int) -> int:
    """The number of a SplitMix64 generator after `index` others."""
    mixed = (seed + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return mixed ^ (mixed >> 31)


def signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def test_the_generator_is_the_published_one():
    assert split_mix(0, 0) == 0xE220A8397B1DCDAF


def test_draws_are_numbers_of_the_generator():
    positions = torch.tensor([[0, 1, 1_048_576], [7, 8, LONGEST_ROW - 1]])
    shares = dropout_shares(12345, 0.4, positions, 3)
    assert shares.shape == (2, 3, 3)
    for row in range(2):
        for place, position in enumerate(positions[row].tolist()):
            for column in range(3):
                number = signed(split_mix(12345, (row * LONGEST_ROW + position) * 3 + column))
                kept = number >= int(0.4 * 2**64) - 2**63
                assert float(shares[row, place, column]) == pytest.approx(kept / 0.6)


def test_slices_draw_what_the_whole_draws():
    positions = torch.arange(300).expand(2, 300)
    whole = dropout_shares(9, 0.5, positions, 4)
    assert torch.equal(dropout_shares(9, 0.5, positions[:, 100:180], 4), whole[:, 100:180])
    # Rows, seeds and columns have draws of their own.
    others = [whole[1], dropout_shares(10, 0.5, positions, 4)[0], whole[0].flip(1), whole[0].roll(1, 0)]
    for other in others:
        assert 0.4 < float((whole[0] == other).float().mean()) < 0.6


@pytest.mark.parametrize("dropout", [0.02, 0.5, 0.97])
def test_shares_keep_the_mean(dropout: float):
    shares = dropout_shares(draw_seed(), dropout, torch.arange(200_000)[None], 2)
    assert float((shares == 0).float().mean()) == pytest.approx(dropout, abs=0.005)
    assert shares.unique().tolist() == [0.0, pytest.approx(1 / (1 - dropout))]


def test_seeds_follow_from_torchs_generator():
    torch.manual_seed(4)
    first, second = draw_seed(), draw_seed()
    torch.manual_seed(4)
    assert (draw_seed(), draw_seed()) == (first, second)
    assert first != second
