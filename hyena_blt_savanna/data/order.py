"""The order of windows: keyed permutations, pure functions in constant memory.

Neither the number of ranks and workers nor a restart changes the order, because nothing is stored: sample i of
an epoch is computed from i and a key.
"""

from __future__ import annotations

import hashlib
from typing import overload

import numpy as np
from numpy.typing import NDArray

_NUM_ROUNDS = 8
_MASK = (1 << 64) - 1
# SplitMix64's finaliser: every input bit moves every output bit.
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def order_key(*parts: int | str) -> bytes:
    """A key that depends on all its parts, the same on every machine and in every process.

    Args:
        parts: for example seed, stage, epoch and what the key is for.

    Returns:
        64 bytes.
    """
    # The lengths keep ("ab", "c") apart from ("a", "bc"); repr keeps 1 apart from "1".
    text = "".join(f"{len(repr(part))}:{part!r}" for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=64).digest()


def keyed_integer(size: int, key: bytes) -> int:
    """A number in [0, size) that is drawn by the key.

    Args:
        size: at least 1.
        key: from `order_key`.
    """
    return int.from_bytes(key, "little") % size


@overload
def keyed_permutation(index: int, size: int, key: bytes) -> int: ...
@overload
def keyed_permutation(index: NDArray[np.int64], size: int, key: bytes) -> NDArray[np.int64]: ...
def keyed_permutation(index: int | NDArray[np.int64], size: int, key: bytes) -> int | NDArray[np.int64]:
    """Where a keyed permutation of [0, size) takes an index.

    A Feistel network permutes the numbers of an even number of bits, at least as many as `size` needs; a result
    outside [0, size) is permuted again until it lies inside, fewer than four times on average.

    Args:
        index: in [0, size), a number or int64 [N].
        size: at least 1, at most 2^62.
        key: from `order_key`.

    Returns:
        In [0, size), as the index: a number or int64 [N].

    Source: J. Black and P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking).
    """
    assert 1 <= size <= 1 << 62
    half_bits = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    round_keys = [int.from_bytes(key[8 * i : 8 * i + 8], "little") for i in range(_NUM_ROUNDS)]
    if isinstance(index, np.ndarray):
        return _permute_array(index, size, half_bits, round_keys)
    assert 0 <= index < size
    while True:
        index = _feistel(index, half_bits, round_keys)
        if index < size:
            return index


def _feistel(value: int, half_bits: int, round_keys: list[int]) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix((right + round_key) & _MASK) & mask)
    return left << half_bits | right


def _mix(value: int) -> int:
    value = (value ^ value >> 30) * _MULTIPLIERS[0] & _MASK
    value = (value ^ value >> 27) * _MULTIPLIERS[1] & _MASK
    return value ^ value >> 31


def _permute_array(index: NDArray[np.int64], size: int, half_bits: int, round_keys: list[int]) -> NDArray[np.int64]:
    values = index.astype(np.uint64)
    outside = np.arange(len(values))
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    first, second = (np.uint64(multiplier) for multiplier in _MULTIPLIERS)
    while len(outside):
        left, right = values[outside] >> shift, values[outside] & mask
        for round_key in round_keys:
            mixed = right + np.uint64(round_key)
            mixed = (mixed ^ mixed >> np.uint64(30)) * first
            mixed = (mixed ^ mixed >> np.uint64(27)) * second
            mixed ^= mixed >> np.uint64(31)
            left, right = right, left ^ (mixed & mask)
        values[outside] = left << shift | right
        outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64)
