"""Toy streams of bases with marks, and plain references to count them with."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from hyena_blt_savanna.nucleotides import Bytes

COMPLEMENT = str.maketrans("ACGT", "TGCA")


def as_bytes(text: str) -> Bytes:
    """Text as uint8 [L]."""
    return np.frombuffer(text.encode(), dtype=np.uint8)


def random_bases(num_bases: int, seed: int) -> Bytes:
    """Bases of equal probability, uint8 [L]."""
    return np.frombuffer(b"ACGT", np.uint8)[np.random.default_rng(seed).integers(0, 4, num_bases)]


def markov_bases(
    num_bases: int, seed: int, order: int = 3, sharpness: float = 0.5
) -> tuple[Bytes, NDArray[np.float64]]:
    """Bases of a random Markov chain, and the -log2 probability of each under the chain itself."""
    generator = np.random.default_rng(seed)
    table = generator.dirichlet([sharpness] * 4, size=4**order)
    codes, bits, context = np.empty(num_bases, np.int64), np.empty(num_bases), 0
    draws = generator.random(num_bases)
    for i in range(num_bases):
        base = min(3, int(np.searchsorted(np.cumsum(table[context]), draws[i])))
        bits[i] = -np.log2(table[context, base])
        codes[i] = base
        context = (4 * context + base) % 4**order
    return np.frombuffer(b"ACGT", np.uint8)[codes], bits


def stream_with_marks(seed: int, num_bases: int = 600) -> Bytes:
    """Documents with tags, joins, runs of unknown letters and soft masking."""
    generator = np.random.default_rng(seed)
    pieces = [b"|D__ACGT;P__ACG|"]
    while sum(map(len, pieces)) < num_bases:
        letters = bytes(random_bases(int(generator.integers(1, 60)), int(generator.integers(1 << 30))))
        pieces.append(letters.lower() if generator.random() < 0.2 else letters)
        pieces.append([b"", b"N", b"NNNRN", b"@", b"#", b"\0", b"\0|D__CCAA|"][int(generator.integers(7))])
    return np.frombuffer(b"".join(pieces) + b"\0", np.uint8)


def plain_windows(stream: Bytes, order: int) -> list[str]:
    """All windows of order + 1 bases, with python strings."""
    found = []
    for document in bytes(stream).decode().upper().split("\0"):
        outside = "".join(part if i % 2 == 0 else "|" for i, part in enumerate(document.split("|")))
        for i in range(len(outside) - order):
            window = outside[i : i + order + 1]
            if set(window) <= set("ACGT"):
                found.append(window)
    return found


def plain_counts(stream: Bytes, order: int, both_strands: bool) -> Counter[str]:
    """How often each window occurs, those of the reverse complement included if wanted."""
    counts = Counter(plain_windows(stream, order))
    if both_strands:
        counts.update(Counter(window.translate(COMPLEMENT)[::-1] for window in plain_windows(stream, order)))
    return counts


def window_number(window: str) -> int:
    """A window as a number in base 4, oldest base first."""
    return sum("ACGT".index(base) * 4**i for i, base in enumerate(reversed(window)))
