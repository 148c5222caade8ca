"""Which held-out windows are scored: those that share no long stretch with the training data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.data.duplicates import shared_stretches
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.indexed import IndexedReader
from hyena_blt_savanna.data.manifest import read_manifest
from hyena_blt_savanna.data.weights import weight_table
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.quality.config import HeldOutConfig, digest_of
from hyena_blt_savanna.training.validation import spread

logger = logging.getLogger(__name__)

_LEAST_KNOWN_SHARE = 0.5


class HeldOut(NamedTuple):
    """Windows that are scored, by their numbers in their stream, and how they were found.

    Attributes:
        validation: for curves and rates.
        test: for the table.
        about: of each split, windows there are, windows with a duplicate, windows of unknown letters, and windows
            taken.
    """

    validation: list[int]
    test: list[int]
    about: dict[str, dict[str, int]]


def find_held_out(data: Path, window_bases: int, config: HeldOutConfig) -> HeldOut:
    """Chooses windows, and remembers them beside the data.

    Args:
        data: folder of the dataset.
        window_bases: of a window.
        config: how many, and which are left out.

    Raises:
        DataError: no window is left.
    """
    digests = {split: read_manifest(data / split).data_sha256 for split in ("train", "validation", "test")}
    key = digest_of([digests, window_bases, config.to_dict()])
    path = data / f"held_out.{key}.json"
    if path.is_file():
        return HeldOut(**json.loads(path.read_text()))
    train = IndexedReader(data / "train").stream
    chosen: dict[str, list[int]] = {}
    about = {}
    for split, wanted_bases in (("validation", config.validation_bases), ("test", config.test_bases)):
        stream = IndexedReader(data / split).stream
        shared = shared_stretches(train, stream, config.duplicate_bases)
        chosen[split], about[split] = choose_windows(stream, shared, window_bases, wanted_bases)
        logger.info("%s: %s", data / split, ", ".join(f"{name} {number:,}" for name, number in about[split].items()))
        if not chosen[split]:
            raise DataError(
                f"{data / split}: no window of {window_bases:,} bases is left without a stretch of "
                f"{config.duplicate_bases} bases of the training data: take shorter windows or more data"
            )
    write_whole(path, json.dumps({**chosen, "about": about}).encode())
    return HeldOut(**chosen, about=about)


def choose_windows(
    stream: NDArray[np.uint8], shared: NDArray[np.bool_], window_bases: int, wanted_bases: int
) -> tuple[list[int], dict[str, int]]:
    """Whole windows, evenly spread over those without a shared base and with at least half of the letters known.

    Args:
        stream: uint8 [L].
        shared: bool [L], whether a base lies in a stretch that the training data have too.
        window_bases: of a window.
        wanted_bases: about so many.

    Returns:
        Indices of windows, and how many windows were left out.
    """
    num_windows = len(stream) // window_bases
    whole = slice(0, num_windows * window_bases)
    has_shared = shared[whole].reshape(num_windows, window_bases).any(axis=1)
    is_known = weight_table(1.0)[stream[whole]] > 0
    is_unknown = is_known.reshape(num_windows, window_bases).mean(axis=1) < _LEAST_KNOWN_SHARE
    good = np.flatnonzero(~has_shared & ~is_unknown)
    chosen = [int(good[place]) for place in spread(len(good), max(1, wanted_bases // window_bases))]
    return chosen, {
        "windows": num_windows,
        "with a duplicate": int(has_shared.sum()),
        "unknown": int(is_unknown.sum()),
        "taken": len(chosen),
    }
