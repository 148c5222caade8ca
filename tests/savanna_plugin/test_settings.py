from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.savanna_plugin import versions
from hyena_blt_savanna.savanna_plugin.checkout import SavannaError
from hyena_blt_savanna.savanna_plugin.settings import Settings, read_settings
from hyena_blt_savanna.savanna_plugin.versions import Machine, check_versions
from hyena_blt_savanna.testing.savanna_runs import configuration


def settings(tmp_path: Path, config: dict[str, Any]) -> Settings:
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(config))
    return read_settings([path])


def test_both_describe_the_model(tmp_path: Path) -> None:
    found = settings(tmp_path, configuration(tmp_path, blocks=["hyena_se", "hyena_li", "attention"]))
    assert found.model.global_model.blocks == ["hyena_se", "hyena_li", "attention"]
    assert (found.model.local_width, found.model.global_model.width) == (16, 32)
    # hyena_mr's decay spans the positions of the global model, which are patches.
    assert found.model.global_model.hyena.mr_decay_length == 8192
    mixed = settings(tmp_path, configuration(tmp_path))
    assert mixed.model.global_model.hyena.mr_decay_length == 64
    assert (mixed.window_bases, mixed.repeat_weight) == (128, 0.5)
    assert settings(tmp_path, configuration(tmp_path, to_upper=None)).repeat_weight == 1.0
    assert "hyena_blt" not in mixed.keys


def test_the_last_one_of_a_key_wins(tmp_path: Path) -> None:
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(configuration(tmp_path)))
    assert read_settings([path, "train-iters=7", "hidden_size=64"]).get("train_iters") == 7
    changed = read_settings([path, "hyena-blt.model.local_width=24"])
    assert (changed.model.local_width, changed.model.max_patch_bases, changed.block.window_patches) == (24, 8, 64)


def test_savannas_blocks_get_savannas_names(tmp_path: Path) -> None:
    config = configuration(tmp_path, blocks=["hyena_se", "hyena_li", "attention"], blt_global_blocks="savanna")
    assert settings(tmp_path, config).get("operator_config") == [[["hyena_se", "hyena", "flash_v2"], 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to_upper": "upper"}, "to_upper is 'upper', and can be left out or 'normalized_weighted' only"),
        ({"pipe_parallel_size": 2}, "the model isn't cut into stages"),
        ({"hidden_dropout": 0.1}, "hidden_dropout is 0.1, and can be 0 only: the model has no dropout"),
        ({"train_data_paths": []}, "train-data-paths must list the datasets"),
        (
            {"context_parallel_size": 3},
            "context_parallel_size = 3 does not divide hyena.li_groups = 32 of the hyena_li blocks",
        ),
        ({"valid_data_weights": [1, 2]}, "valid-data-weights has 2 weights, and valid-data-paths 1"),
        ({"model_parallel_size": 2}, "our own blocks aren't cut"),
        (
            {"blt_global_blocks": "savanna", "context_parallel_size": 3},
            "window_patches is 64, and Savanna cuts it into 2 x context_parallel_size pieces: make it a multiple of 6",
        ),
        (
            {"blt_global_blocks": "savanna", "context_parallel_size": 2, "blocks": ["hyena_se", "flash_te"]},
            "numbers the positions of each context rank from 0",
        ),
        ({"blt_global_blocks": "savanna", "use_fp8_norm": True}, "use_fp8_norm needs TransformerEngine and CUDA"),
        ({"blt_global_blocks": "savanna", "fast_conv_proj": True}, "need causal_conv1d and CUDA"),
        ({"blt_global_blocks": "savanna", "sequence_parallel": True}, "the local modules need all of a window's bases"),
    ],
)
def test_what_can_not_be_trained_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SavannaError) as error:
        settings(tmp_path, configuration(tmp_path, **changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyena-blt": None}, "there is no block hyena-blt"),
        ({"blt_model": {"global_model": {"width": 3}}}, "hyena-blt.model.global_model: Savanna's own keys"),
        ({"blt_model": {"local_widht": 3}}, "local_width"),
        ({"blt_global_blocks": "theirs"}, "global_blocks"),
        ({"hidden_size": None}, "these keys are needed, as whole numbers: hidden_size"),
        ({"norm": "layernorm"}, "norm is 'layernorm'"),
    ],
)
def test_mistakes_in_the_model_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError) as error:
        settings(tmp_path, configuration(tmp_path, **changes))
    assert message in str(error.value)


GOOD = Machine(
    versions={"torch": "2.6.0", "transformer_engine": "1.13", "flash_attn": "2.7.0", "causal_conv1d": "1.5"},
    capability=(9, 0),
    has_pkg_resources=True,
    saves_asynchronously=True,
)


def without(*names: str, **changes: Any) -> Machine:
    kept = {name: version for name, version in GOOD.versions.items() if name not in names}
    return Machine(**{**vars(GOOD), "versions": kept, **changes})


SAVANNA = {"blt_global_blocks": "savanna"}
ATTENTION = {**SAVANNA, "blocks": ["hyena_se", "flash_v2"], "precision": "bfloat16"}


@pytest.mark.parametrize(
    ("changes", "machine", "message"),
    [
        ({"async_save": True}, without(saves_asynchronously=False), "no async_save"),
        ({"use_fp8_norm": True}, without("transformer_engine"), "TransformerEngine is not installed"),
        ({"use_fp8_norm": True}, without(has_pkg_resources=False), "install setuptools<81"),
        ({"use_fp8_norm": True}, without(capability=(8, 0)), "no fp8 matrix products"),
        (ATTENTION, without("flash_attn"), "flash_attn is not installed"),
        (ATTENTION, without(capability=(7, 5)), "compute capability 8.0"),
        ({**ATTENTION, "precision": "fp32"}, GOOD, "takes fp16 and bfloat16 only"),
        (
            {**ATTENTION, "blocks": ["flash_te"]},
            without("transformer_engine"),
            "flash_te, and TransformerEngine is not",
        ),
        ({"fast_conv_proj": True, "blt_global_blocks": "savanna"}, without("causal_conv1d"), "causal_conv1d is not"),
    ],
)
def test_known_bad_combinations_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], machine: Machine, message: str
) -> None:
    monkeypatch.setattr(versions, "missing_packages", lambda: [])
    # What this machine lacks is no part of the question.
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    found = settings(tmp_path, configuration(tmp_path, **changes))
    with pytest.raises(SavannaError) as error:
        check_versions(found, is_first=True, machine=machine)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 2
    if machine is not GOOD:
        check_versions(found, is_first=False, machine=GOOD)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "missing_packages", lambda: ["boto3"])
    with pytest.raises(SavannaError, match="boto3 is not installed: see requirements-savanna"):
        check_versions(settings(tmp_path, configuration(tmp_path)), is_first=False, machine=GOOD)


def test_what_is_installed_here_is_told() -> None:
    here = Machine.here()
    assert here.versions["deepspeed"].startswith("0.")
    # DeepSpeed's own; a fork has it.
    assert not here.saves_asynchronously
