"""Models of a run against those of a checkpoint."""

from __future__ import annotations

from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.training.model_config import differing_keys, differing_models, with_activation_checkpointing

MODEL = HyenaBLTConfig(
    local_width=8, max_patch_bases=8, global_model={"width": 16, "num_heads": 2, "blocks": ["hyena_se", "attention"]}
)


def test_differing_keys():
    saved = {"a": 1, "b": {"c": [1, 2], "d": 3}, "gone": 0}
    given = {"a": 1, "b": {"c": [1, 3], "d": 3}, "new": 1}
    assert [line.partition(":")[0] for line in differing_keys(saved, given, "m")] == ["m.b.c", "m.gone", "m.new"]
    assert differing_keys(saved, saved, "m") == []


def test_activation_checkpointing_is_no_part_of_a_model():
    assert differing_models(with_activation_checkpointing(MODEL).to_dict(), MODEL.to_dict()) == []


def test_a_checkpoint_of_before_a_key_has_its_default():
    saved = MODEL.to_dict()
    del saved["encoder"]["activation_checkpointing"], saved["global_model"]["attention"]["rotary"]
    assert differing_models(saved, MODEL.to_dict()) == []
    other = MODEL.to_dict()
    other["global_model"]["attention"]["rotary"]["base"] = 7.0
    assert [line.partition(":")[0] for line in differing_models(saved, other)] == [
        "model.global_model.attention.rotary.base"
    ]


def test_a_key_that_this_version_does_not_know_is_named():
    saved = {**MODEL.to_dict(), "gone": 1}
    assert differing_models(saved, MODEL.to_dict()) == ["model.gone: 1 in the checkpoint, None in the run"]
