"""The loss and the weights of bases against Savanna's (tests/golden/stripedhyena2/loss_masks)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from hyena_blt_savanna.data.weights import loss_weights
from hyena_blt_savanna.nucleotides import UPPER, VOCABULARY_SIZE
from hyena_blt_savanna.training.loss import scored_weight, weighted_nats

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "stripedhyena2" / "loss_masks.safetensors")
REPEAT_WEIGHT = 0.1
TOLERANCE = 1e-5

# Where our weights differ from Savanna's on purpose: letters by row and position, and why.
UNKNOWN_LETTERS = {(0, 4): "n", (0, 9): "N", (1, 16): "N", (1, 17): "N", (1, 18): "N", (1, 19): "N"}
"""Savanna scores N. For us it is no base: a model that learns where assemblies have gaps learns nothing of biology, and
the heads of our own models have no column for it."""
CUT_TAG = {(1, 1): "l", (1, 2): "i", (1, 3): "|"}
"""Of a tag that the window cuts, Savanna scores what is left where that has none of `_`, `;` and space, as in `oli|`;
our windows know how many bytes of a tag they begin with."""
LONE_MARK = {(1, 88): "|"}
"""Savanna scores a mark between two stretches that it takes for bases; for us a mark is never a base."""
TAGS_INSIDE = {
    **{(1, 35): "A", (1, 37): "c", (1, 39): "a", (1, 41): "a"},  # |d__Archaea;p__X|
    **{(1, 53): "A", (1, 54): "C", (1, 55): "G", (1, 57): "T"},  # ACG;T_part of tag|
    **{(1, 60): "a", (1, 62): "t", (1, 67): "t", (1, 68): "a", (1, 69): "g"},
}
"""We score what spells a base between marks in the midst of a document: only a mark right behind an end of document
opens a tag, because a window that begins inside a document can't tell an opening mark from a closing one. Savanna
leaves out every stretch, from a mark or border to the next, that holds one of `_`, `;` and space."""


def upstreams_weights() -> Tensor:
    """Mask times case weight, [B, L] with the byte that is no target in front."""
    case = torch.where(GOLDEN["labels_lower_mask"], REPEAT_WEIGHT, 1.0)
    return torch.nn.functional.pad(GOLDEN["loss_mask_after_tags"] * case, (1, 0))


def test_the_loss_is_upstreams() -> None:
    rows = GOLDEN["rows"]
    bases = torch.from_numpy(UPPER[rows.numpy()]).long()
    assert torch.equal(bases[:, 1:], GOLDEN["labels_upper"])
    logits = GOLDEN["logits"].clone().requires_grad_()
    # The last position scores nothing.
    padded = torch.nn.functional.pad(logits, (0, 0, 0, 1))
    weights = upstreams_weights()
    loss = weighted_nats(padded, bases, weights, torch.arange(VOCABULARY_SIZE)) / scored_weight(weights)
    loss.backward()
    assert logits.grad is not None
    found = {
        "loss": loss[None],
        "grad_logits_at_label": logits.grad.gather(-1, GOLDEN["labels_upper"][..., None])[..., 0],
        "grad_logits_abs_sum": logits.grad.abs().sum(-1),
    }
    for name, ours in found.items():
        theirs = GOLDEN[f"{name}.reweighted_normalized"]
        assert ours.shape == theirs.shape
        assert float((ours - theirs).detach().abs().max() / theirs.abs().max()) <= TOLERANCE, name


def test_the_weights_differ_where_they_should() -> None:
    rows = GOLDEN["rows"].numpy().astype(np.uint8)
    # The second row begins inside a tag, of which `oli|` is left.
    ours = np.stack([loss_weights(row, REPEAT_WEIGHT, left) for row, left in zip(rows, (0, 4), strict=True)])
    ours[:, 0] = 0  # In front of the first target.
    theirs = upstreams_weights().numpy()
    differ = {(int(row), int(at)): chr(rows[row, at]) for row, at in np.argwhere(ours != theirs)}
    only_theirs = UNKNOWN_LETTERS | CUT_TAG | LONE_MARK
    assert differ == only_theirs | TAGS_INSIDE
    assert all(ours[place] == 0 < theirs[place] for place in only_theirs)
    assert all(ours[place] > 0 == theirs[place] for place in TAGS_INSIDE)
