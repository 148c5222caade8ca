"""What vectors of patches keep of their bases, as far as a linear map can tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import BASES

RIDGE = 1e-4
"""Penalty of the weights, in units of the vectors' mean variance: only keeps the solution stable."""


@dataclass(frozen=True)
class Probe:
    """How many bases a linear map finds in vectors of patches that it has not been fitted on.

    Attributes:
        share_of_bases_right: among the bases of all patches.
        share_of_patches_exact: patches whose bases are all found.
        by_place: share of bases right at each place of a patch; None where no patch is as long.
    """

    share_of_bases_right: float
    share_of_patches_exact: float
    by_place: tuple[float | None, ...]


def probe(
    vectors: NDArray[np.float32], codes: NDArray[np.uint8], lengths: NDArray[np.int64], is_test: NDArray[np.bool_]
) -> Probe:
    """Fits a linear map from vectors to the base at each place on one part of the patches, and tests it on the other.

    One ridge regression on the four bases' indicators for each place, in closed form; the greatest of the four wins.

    Args:
        vectors: float32 [N, M].
        codes: uint8 [N, J], the bases of each patch as 0 to 3; not looked at behind a patch's last base.
        lengths: int64 [N], in bases, at least 1.
        is_test: bool [N], which patches are tested on; both parts hold some.
    """
    assert is_test.any()
    assert not is_test.all()
    found = np.zeros_like(codes)
    for place in range(codes.shape[1]):
        reached = lengths > place
        if (reached & is_test).any() and (reached & ~is_test).any():
            given = reached & ~is_test
            found[is_test, place] = _predict(vectors[given], codes[given, place], vectors[is_test])
    return judge(found[is_test], codes[is_test], lengths[is_test])


def guess(codes: NDArray[np.uint8], lengths: NDArray[np.int64], is_test: NDArray[np.bool_]) -> Probe:
    """What is found without any vector: the commonest base of the place. Arguments as in `probe`."""
    commonest = [
        np.bincount(codes[~is_test & (lengths > place), place], minlength=len(BASES)).argmax()
        for place in range(codes.shape[1])
    ]
    found = np.broadcast_to(np.asarray(commonest, dtype=codes.dtype), codes.shape)
    return judge(found[is_test], codes[is_test], lengths[is_test])


def judge(found: NDArray[np.uint8], codes: NDArray[np.uint8], lengths: NDArray[np.int64]) -> Probe:
    """Compares bases [N, J] with those that were found; what stands behind a patch's last base does not count."""
    there = np.arange(codes.shape[1]) < lengths[:, None]
    right = (found == codes) & there
    num_right, num_there = right.sum(0), there.sum(0)
    return Probe(
        share_of_bases_right=float(num_right.sum() / num_there.sum()),
        share_of_patches_exact=float((right | ~there).all(1).mean()),
        by_place=tuple(float(share / num) if num else None for share, num in zip(num_right, num_there, strict=True)),
    )


def _predict(given: NDArray[np.float32], codes: NDArray[np.uint8], asked: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The base, as 0 to 3, of each row of `asked`."""
    x, wanted = (
        torch.from_numpy(given).double(),
        torch.nn.functional.one_hot(torch.from_numpy(codes).long(), len(BASES)),
    )
    mean, shares = x.mean(0), wanted.double().mean(0)
    centred = x - mean
    gram = centred.T @ centred
    # At least a little, so that vectors that are all alike are no error.
    penalty = RIDGE * gram.diagonal().mean().clamp(min=1e-12)
    gram.diagonal().add_(penalty)
    weights = torch.linalg.solve(gram, centred.T @ (wanted - shares))
    scores = (torch.from_numpy(asked).double() - mean) @ weights + shares
    return scores.argmax(1).numpy().astype(np.uint8)
