"""Linear probes: what they must find, what they can't, and the closed form."""

import numpy as np
import pytest

from hyena_blt_savanna.evaluation.linear_probe import RIDGE, Probe, guess, judge, probe

NUM, LONGEST = 600, 5


def toy_patches(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 4, (NUM, LONGEST), dtype=np.uint8)
    lengths = generator.integers(1, LONGEST, NUM)
    lengths[:3] = LONGEST
    is_test = np.arange(NUM) % 2 == 1
    return codes, lengths, is_test


def one_hot(codes: np.ndarray) -> np.ndarray:
    return np.eye(4)[codes].reshape(len(codes), -1)


def test_vectors_that_hold_the_bases_give_all_of_them_back():
    codes, lengths, is_test = toy_patches()
    mixed = one_hot(codes) @ np.random.default_rng(1).normal(size=(4 * LONGEST, 32)) + 7.0
    found = probe(mixed.astype(np.float32), codes, lengths, is_test)
    # The last place is seen in two patches only, too few to learn from, and tested in one.
    assert found.by_place[:-1] == (1.0,) * (LONGEST - 1)
    assert found.share_of_patches_exact >= 1 - 1 / is_test.sum()


def test_vectors_without_bases_give_no_more_than_guessing():
    codes, lengths, is_test = toy_patches()
    noise = np.random.default_rng(2).normal(size=(NUM, 8)).astype(np.float32)
    assert probe(noise, codes, lengths, is_test).share_of_bases_right == pytest.approx(0.25, abs=0.06)
    constant = np.ones((NUM, 8), np.float32)
    assert probe(constant, codes, lengths, is_test) == guess(codes, lengths, is_test)


def test_weights_are_those_of_ridge_regression():
    codes, lengths, is_test = toy_patches()
    noisy = one_hot(codes) + np.random.default_rng(3).normal(size=(NUM, 4 * LONGEST))
    vectors = noisy.astype(np.float32)
    found = np.zeros_like(codes)
    for place in range(LONGEST):
        given = (lengths > place) & ~is_test
        x, y = vectors[given].astype(np.float64), np.eye(4)[codes[given, place]]
        centred = x - x.mean(0)
        penalty = RIDGE * np.square(centred).sum() / x.shape[1]
        # Ridge regression is least squares with rows that ask the weights to be zero.
        rows = np.concatenate([centred, penalty**0.5 * np.eye(x.shape[1])])
        weights = np.linalg.lstsq(rows, np.concatenate([y - y.mean(0), np.zeros((x.shape[1], 4))]), rcond=None)[0]
        found[:, place] = ((vectors - x.mean(0)) @ weights + y.mean(0)).argmax(1)
    wanted = judge(found[is_test], codes[is_test], lengths[is_test])
    assert probe(vectors, codes, lengths, is_test) == wanted
    assert 0.4 < wanted.share_of_bases_right < 0.95


def test_bases_behind_the_end_of_a_patch_do_not_count():
    codes = np.array([[0, 1, 2], [3, 3, 3]], np.uint8)
    found = np.array([[0, 0, 2], [3, 0, 0]], np.uint8)
    assert judge(found, codes, np.array([2, 1])) == Probe(2 / 3, 1 / 2, (1.0, 0.0, None))
    assert judge(found, codes, np.array([3, 1])) == Probe(3 / 4, 1 / 2, (1.0, 0.0, 1.0))
