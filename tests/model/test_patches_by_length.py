"""Maps of places against loops over bases, values and gradients, whatever the lengths are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from hyena_blt_savanna.model.patches import bases_to_grid, grid_to_bases, lay_out
from hyena_blt_savanna.model.patches_by_length import bases_to_patches, patches_to_bases, sort_by_length

LONGEST, WIDTH, PATCH_WIDTH = 5, 3, 4


@st.composite
def rows_of_lengths(draw):
    """(padded patch lengths [B, P], number of bases); a patch may be longer than there are places."""
    rows = draw(st.lists(st.lists(st.integers(1, LONGEST + 2), max_size=7), min_size=1, max_size=3))
    num_patches = max(1, *(len(row) for row in rows)) + draw(st.integers(0, 2))
    num_bases = max(1, *(sum(row) for row in rows)) + draw(st.integers(0, 9))
    return torch.tensor([row + [0] * (num_patches - len(row)) for row in rows]), num_bases


def places_of(lengths, num_bases):
    """(row, base, patch, place) of each base that has a place, by counting."""
    for row, of_row in enumerate(lengths.tolist()):
        base = 0
        for patch, length in enumerate(of_row):
            for place in range(length):
                if place < LONGEST:
                    yield row, base + place, patch, place
            base += length


def plain_bases_to_patches(x, weight, lengths):
    patches = [[x.new_zeros(len(weight)) for _ in row] for row in lengths]
    for row, base, patch, place in places_of(lengths, x.shape[1]):
        patches[row][patch] = patches[row][patch] + weight[:, place * WIDTH : (place + 1) * WIDTH] @ x[row, base]
    return torch.stack([torch.stack(row) for row in patches])


def plain_patches_to_bases(patches, weight, bias, lengths, num_bases):
    bases = [[patches.new_zeros(WIDTH) for _ in range(num_bases)] for _ in lengths]
    for row, base, patch, place in places_of(lengths, num_bases):
        of_place = slice(place * WIDTH, (place + 1) * WIDTH)
        bases[row][base] = weight[of_place] @ patches[row, patch] + bias[of_place]
    return torch.stack([torch.stack(row) for row in bases])


def random(*shape):
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


def assert_same(found, wanted, inputs):
    torch.testing.assert_close(found, wanted)
    direction = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, direction),
        # The loops touch no input where no patch has a base.
        torch.autograd.grad(wanted, inputs, direction, allow_unused=True, materialize_grads=True)
        if wanted.requires_grad
        else [torch.zeros_like(value) for value in inputs],
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@given(rows_of_lengths())
@settings(max_examples=80, deadline=None)
def test_patches_are_what_a_loop_over_bases_sums(case):
    lengths, num_bases = case
    torch.manual_seed(0)
    x, weight = random(len(lengths), num_bases, WIDTH), random(PATCH_WIDTH, LONGEST * WIDTH)
    found = bases_to_patches(x, weight, lay_out(lengths, num_bases, LONGEST))
    assert_same(found, plain_bases_to_patches(x, weight, lengths), (x, weight))


@given(rows_of_lengths())
@settings(max_examples=80, deadline=None)
def test_bases_read_what_a_loop_over_bases_reads(case):
    lengths, num_bases = case
    torch.manual_seed(0)
    patches, weight = random(*lengths.shape, PATCH_WIDTH), random(LONGEST * WIDTH, PATCH_WIDTH)
    bias = random(LONGEST * WIDTH)
    found = patches_to_bases(patches, weight, bias, lay_out(lengths, num_bases, LONGEST))
    wanted = plain_patches_to_bases(patches, weight, bias, lengths, num_bases)
    assert_same(found, wanted, (patches, weight, bias))


@given(rows_of_lengths())
@settings(max_examples=80, deadline=None)
def test_each_base_stands_in_the_row_of_its_patch_and_place(case):
    lengths, num_bases = case
    by_length = sort_by_length(lay_out(lengths, num_bases, LONGEST))
    wanted = [row * num_bases + base for row, base, _, _ in places_of(lengths, num_bases)]
    assert sorted(by_length.base.tolist()) == wanted
    assert by_length.row[by_length.base].tolist() == list(range(len(wanted)))
    assert (by_length.row == len(wanted)).sum() == lengths.shape[0] * num_bases - len(wanted)
    clamped = lengths.flatten().clamp(max=LONGEST)
    assert clamped[by_length.patch].tolist() == sorted(clamped.tolist())
    assert by_length.patch[by_length.rank].tolist() == list(range(lengths.numel()))
    # The bases of a patch lie side by side, in their order.
    rows = {(row, patch, place): row * num_bases + base for row, base, patch, place in places_of(lengths, num_bases)}
    for (row, patch, place), base in rows.items():
        if place:
            assert by_length.row[base] == by_length.row[rows[row, patch, place - 1]] + 1


def test_gradients_equal_finite_differences():
    layout = lay_out(torch.tensor([[2, 5, 1, 2], [5, 0, 0, 0]]), 11, LONGEST)
    torch.manual_seed(0)
    assert gradcheck(
        lambda x, w: bases_to_patches(x, w, layout), (random(2, 11, WIDTH), random(PATCH_WIDTH, LONGEST * WIDTH))
    )
    inputs = (random(2, 4, PATCH_WIDTH), random(LONGEST * WIDTH, PATCH_WIDTH), random(LONGEST * WIDTH))
    assert gradcheck(lambda p, w, b: patches_to_bases(p, w, b, layout), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_products_are_those_of_the_padded_grid(dtype):
    torch.manual_seed(0)
    lengths = torch.randint(1, 17, (2, 60))
    num_bases = int(lengths.sum(1).max())
    layout = lay_out(lengths, num_bases, 16)
    x, into = torch.randn(2, num_bases, 24, requires_grad=True), torch.randn(32, 16 * 24, requires_grad=True)
    out_of, bias = torch.randn(16 * 24, 32, requires_grad=True), torch.randn(16 * 24, requires_grad=True)

    def ours():
        return patches_to_bases(bases_to_patches(x, into, layout) / 20, out_of, bias, layout)

    def on_the_grid():
        patches = torch.nn.functional.linear(bases_to_grid(x, layout).flatten(2), into) / 20
        grid = torch.nn.functional.linear(patches, out_of, bias).unflatten(-1, (16, 24))
        return grid_to_bases(grid, layout)

    inputs = (x, into, out_of, bias)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, wanted = ours(), on_the_grid()
    assert found.dtype == wanted.dtype == dtype
    direction = torch.randn(found.shape).to(dtype)
    pairs = zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(wanted, inputs, direction), strict=True
    )
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    for mine, theirs in pairs:
        assert mine.dtype == torch.float32
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()
