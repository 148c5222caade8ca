"""The grid of patches against a reference that walks base by base."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from hyena_blt_savanna.model.patches import bases_to_grid, close_unfinished, grid_to_bases, lay_out

LONGEST = 5


@st.composite
def rows_of_lengths(draw):
    """(padded patch lengths [B, P], number of bases): rows of different sums, with unfinished rests."""
    rows = draw(st.lists(st.lists(st.integers(1, LONGEST), max_size=7), min_size=1, max_size=3))
    num_patches = max(1, *(len(row) for row in rows)) + draw(st.integers(0, 2))
    num_bases = max(1, *(sum(row) for row in rows)) + draw(st.integers(0, 4))
    padded = torch.tensor([row + [0] * (num_patches - len(row)) for row in rows])
    return padded, num_bases


def walk(lengths, num_bases):
    """(patch, place) of each base by counting; the rest behind the last patch is one more patch."""
    found = [(patch, place) for patch, length in enumerate(lengths) for place in range(length)]
    finished = sum(1 for length in lengths if length)
    return found + [(finished, place) for place in range(num_bases - len(found))]


@given(rows_of_lengths())
@settings(max_examples=150, deadline=None)
def test_each_base_has_the_patch_and_place_that_counting_gives(case):
    lengths, num_bases = case
    layout = lay_out(lengths, num_bases, LONGEST)
    for row in range(len(lengths)):
        expected = walk(lengths[row].tolist(), num_bases)
        assert list(zip(layout.patch[row].tolist(), layout.place[row].tolist(), strict=True)) == expected


@given(rows_of_lengths())
@settings(max_examples=100, deadline=None)
def test_the_grid_holds_every_base_of_a_finished_patch_and_nothing_else(case):
    lengths, num_bases = case
    x = torch.arange(1.0, lengths.shape[0] * num_bases + 1).view(len(lengths), num_bases, 1)
    grid = bases_to_grid(x, lay_out(lengths, num_bases, LONGEST))
    expected = torch.zeros(*lengths.shape, LONGEST, 1)
    for row in range(len(lengths)):
        for base, (patch, place) in enumerate(walk(lengths[row].tolist(), int(lengths[row].sum()))):
            expected[row, patch, place] = x[row, base]
    assert torch.equal(grid, expected)


@given(rows_of_lengths())
@settings(max_examples=30, deadline=None)
def test_closing_the_unfinished_patch_makes_rows_sum_to_the_bases(case):
    lengths, num_bases = case
    closed = close_unfinished(lengths, num_bases)
    for row, before in zip(closed.tolist(), lengths.tolist(), strict=True):
        finished = [length for length in before if length]
        rest = num_bases - sum(finished)
        assert [length for length in row if length] == finished + ([rest] if rest else [])


def test_going_on_the_grid_and_off_again_are_transposes():
    lengths = torch.tensor([[1, 3, 5, 2, 0, 0], [5, 5, 1, 1, 1, 2]])
    finished = lay_out(lengths, 17, LONGEST)
    closed = lay_out(close_unfinished(lengths, 17), 17, 6)
    x = torch.randn(2, 17, 2, dtype=torch.double, requires_grad=True)
    grid = torch.randn(2, 7, 6, 2, dtype=torch.double, requires_grad=True)
    assert gradcheck(lambda x: bases_to_grid(x, finished), x)
    assert gradcheck(lambda grid: grid_to_bases(grid, closed), grid)
    there = bases_to_grid(x, closed)
    back = grid_to_bases(grid, closed)
    torch.testing.assert_close((there * grid).sum(), (x * back).sum())


def test_a_base_without_a_place_reads_zero():
    lengths = torch.tensor([[2, 7]])
    layout = lay_out(lengths, 9, LONGEST)
    taken_off = grid_to_bases(torch.ones(1, 2, LONGEST, 1), layout)
    assert taken_off.flatten().tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0]
