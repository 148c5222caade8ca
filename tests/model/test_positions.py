"""Phases of biological periods."""

import math

import torch

from hyena_blt_savanna.model.positions import Periods, PositionConfig


def test_periods_are_sine_and_cosine_of_the_position() -> None:
    periods = Periods([3, 10.5, 147], width=4)
    periods.reset_parameters(std=1.0)
    found = periods(20, first_position=5)
    for base in range(20):
        turns = [2 * math.pi * (base + 5) / period for period in (3, 10.5, 147)]
        waves = torch.tensor([*map(math.sin, turns), *map(math.cos, turns)])
        torch.testing.assert_close(found[base], periods.weight @ waves)


def test_far_positions_keep_their_phase() -> None:
    periods = Periods([3, 10.5], width=4)
    periods.reset_parameters(std=1.0)
    # 21 bases hold whole numbers of both periods.
    torch.testing.assert_close(periods(30, first_position=21 * 10**7), periods(30), rtol=0, atol=1e-6)
    torch.testing.assert_close(periods(30, first_position=12), periods(42)[12:])


def test_the_phase_has_the_power_that_is_asked_for() -> None:
    torch.manual_seed(0)
    periods = Periods([3, 10.5, 147], width=400)
    periods.reset_parameters(std=0.5)
    assert 0.4 < periods(147 * 14).std().item() < 0.6


def test_periods_are_sorted_so_that_one_set_is_one_model() -> None:
    assert PositionConfig(periods=[147, 3]).periods == [3, 147]
