import numpy as np
import pytest

from hyena_blt_savanna.evaluation.sampling import Sampler, SamplingError

LOGITS = np.array([2.0, 9.0, 1.0, 3.0, 0.5], dtype=np.float32)
COLUMNS = [0, 2, 3, 4]


def plain_probabilities(temperature: float, top_k: int | None, top_p: float | None) -> np.ndarray:
    weights = {column: np.exp(float(LOGITS[column]) / temperature) for column in COLUMNS}
    total = sum(weights.values())
    kept, so_far = [], 0.0
    for column in sorted(weights, key=weights.__getitem__, reverse=True):
        if (top_k is not None and len(kept) == top_k) or (top_p is not None and so_far >= top_p):
            break
        kept.append(column)
        so_far += weights[column] / total
    chosen = np.array([weights[column] if column in kept else 0.0 for column in COLUMNS])
    return chosen / chosen.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 2, 10])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.8, 1.0])
def test_probabilities_equal_a_plain_loop(temperature: float, top_k: int | None, top_p: float | None) -> None:
    got = Sampler(COLUMNS, temperature, top_k, top_p).probabilities(LOGITS[None])[0]
    np.testing.assert_allclose(got, plain_probabilities(temperature, top_k, top_p), rtol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(COLUMNS, seed=3)
    drawn = np.bincount([int(sampler.draw(LOGITS[None])[0]) for _ in range(4000)], minlength=5)[COLUMNS] / 4000
    np.testing.assert_allclose(drawn, plain_probabilities(1.0, None, None), atol=0.03)


def test_a_row_draws_the_same_whatever_is_drawn_beside_it() -> None:
    flat = np.zeros((3, 5), dtype=np.float32)
    together, alone = (Sampler(COLUMNS, seed=7, samples=samples) for samples in ((0, 5, 5), (5,)))
    first = [together.draw(flat, [0, 1, 2]) for _ in range(30)]
    of_row = [draws[1] for draws in first] + [int(together.draw(flat[:1], [1])[0]) for _ in range(20)]
    assert of_row == [alone.draw(flat[:1])[0] for _ in range(50)]
    assert [draws[2] for draws in first] == of_row[:30] != [draws[0] for draws in first]
    assert of_row != [Sampler(COLUMNS, seed=8, samples=[5]).draw(flat[:1])[0] for _ in range(50)]


def test_temperature_zero_takes_the_largest() -> None:
    sampler = Sampler(COLUMNS, temperature=0)
    assert sampler.draw(np.stack([LOGITS, np.zeros(5, dtype=np.float32)]), [0, 0]).tolist() == [3, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_senseless_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        Sampler(COLUMNS, **settings)
