"""What docs/savanna.md says of upstream's mistakes is seen in its code; one that is mended is found here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

Probed = tuple[Path, dict[str, Any]]


@pytest.fixture
def seen(probed: Probed) -> dict[str, Any]:
    """What `hyena_blt_savanna/testing/savanna_mistakes.py` has seen."""
    found: dict[str, Any] = probed[1]["mistakes"]
    return found


def test_building_blocks_changes_the_activation(seen: dict[str, Any]) -> None:
    before, after, of_blocks = seen["activation"]
    assert (before, after) == ("gelu", "identity")
    # The first block is hyena_se; hyena_mr changes the configuration before its own MLP is built.
    assert of_blocks[0] == "gelu"
    assert all("gelu" not in name for name in of_blocks[1:])


def test_some_weights_are_left_as_the_memory_was(seen: dict[str, Any]) -> None:
    assert len(seen["unset"]) == 2
    assert all(name.endswith("conv_bias") for name in seen["unset"])


def test_filters_decay(seen: dict[str, Any]) -> None:
    assert {"filter.R", "filter.p", "filter.gamma", "mixer.conv_bias", "short_conv.short_conv_weight",
            "hyena_proj_conv.short_conv_weight"} <= set(seen["decayed"])  # fmt: skip
    assert not [name for name in seen["decayed"] if name.endswith(("filter.h", "scale", "bias"))
                and not name.endswith("conv_bias")]  # fmt: skip


def test_matrix_products_are_told_of(seen: dict[str, Any]) -> None:
    lines, products = seen["lines_of_a_forward_pass"]
    assert lines >= 2 * products > 0


def test_several_windows_need_other_layers(seen: dict[str, Any]) -> None:
    assert seen["two_windows"].startswith("RuntimeError: view size is not compatible")


def test_time_grids_stay_short(seen: dict[str, Any]) -> None:
    assert seen["time_grid"] == [8, 8]


def test_rates_begin_with_none_and_do_not_end(seen: dict[str, Any]) -> None:
    first, of_own_rate, last = seen["rates"]
    assert first == of_own_rate == 0.0
    assert last == pytest.approx(0.0955, abs=1e-4)


def test_all_of_hyena_counts_as_long(seen: dict[str, Any]) -> None:
    counted, other = seen["layer_types"]
    assert counted == (0, 0, 0, 3)
    assert other.startswith("AssertionError")


def test_losses_depend_on_the_micro_batch(seen: dict[str, Any]) -> None:
    at_once, one_by_one = seen["losses"]
    assert abs(at_once - one_by_one) > 0.01


def test_the_loss_destroys_the_logits(seen: dict[str, Any]) -> None:
    assert not seen["logits"]


def test_a_cut_tag_is_scored(seen: dict[str, Any]) -> None:
    whole, cut = seen["tags"]
    assert whole == 0
    assert cut > 0


def test_plain_rotary_positions_begin_anew_on_each_rank(seen: dict[str, Any]) -> None:
    assert seen["positions"] == {"RotaryEmbedding": True, "LinearlyScaledRotaryEmbedding": False}


def test_the_place_in_the_data_is_not_read(seen: dict[str, Any]) -> None:
    assert seen["place_in_data"].startswith("UnpicklingError: Weights only load failed")


def test_values_that_break_it(seen: dict[str, Any]) -> None:
    assert seen["save_iters"].startswith("TypeError")
    assert "fromstring" in seen["tokenizer"]
    assert seen["upper"] is tuple


def test_what_it_uses_and_has_not(seen: dict[str, Any]) -> None:
    missing = dict(seen["missing"])
    assert missing.pop("vandermonde is imported")
    missing.pop("helpers")  # There for CPython 3.12 on x86-64.
    assert not any(missing.values())
