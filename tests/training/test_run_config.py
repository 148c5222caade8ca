"""The configuration of a run: what is refused, and what is told to DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.training.engine import deepspeed_config
from hyena_blt_savanna.training.run_config import OWNED_DEEPSPEED_KEYS, RunConfig


def load(toy_config: Path, *overrides: str) -> RunConfig:
    return RunConfig.load([toy_config, "run=runs/toy", *overrides])


def test_a_saved_configuration_reads_back(toy_config, tmp_path):
    config = load(toy_config, "training.optimizer.lr=3e-4", "deepspeed.zero_optimization.stage=2")
    config.save(tmp_path / "config.yaml")
    assert RunConfig.load([tmp_path / "config.yaml"]) == config
    assert config.training.optimizer.lr == 3e-4


def test_the_kind_of_model_chooses_the_architecture(toy_config, tmp_path):
    path = tmp_path / "isotropic.yaml"
    tree = yaml.safe_load(toy_config.read_text())
    tree["model"] = {"kind": "isotropic", "stack": {"width": 16, "blocks": ["hyena_se"]}}
    path.write_text(yaml.safe_dump(tree))
    assert type(load(path).model).__name__ == "IsotropicConfig"
    assert type(load(toy_config).model).__name__ == "HyenaBLTConfig"
    with pytest.raises(ConfigError, match=r"model: .*transformer"):
        load(path, "model.kind=transformer")


@pytest.mark.parametrize("key", sorted(OWNED_DEEPSPEED_KEYS))
def test_keys_of_deepspeed_that_are_ours(toy_config, key):
    with pytest.raises(ConfigError) as caught:
        load(toy_config, f"deepspeed.{key}=1")
    assert f"{key} (use {OWNED_DEEPSPEED_KEYS[key]})" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("deepspeed.zero_optimization.stage=4", "stage of 0, 1, 2 or 3"),
        ("deepspeed.zero_optimization={stage: 2, round_robin_gradients: true}", "of round_robin_gradients: leave it"),
        (
            "deepspeed.zero_optimization={stage: 2, offload_param: {device: cpu}}",
            "offload_param does nothing at stage 2: set zero_optimization.stage to at least 3, or leave offload_param",
        ),
        (
            "deepspeed.zero_optimization.offload_optimizer.device=cpu",
            "offload_optimizer does nothing at stage 0: set zero_optimization.stage to at least 1",
        ),
        ("training.stages=[]", "training.stages"),
        ("training.optimizer.learning_rate=1", "training.optimizer.learning_rate: unknown key"),
        ("training.optimiser.lr=1", "training.optimiser: unknown key; did you mean 'optimizer'"),
        ("data.repeat_weight=-1", "data.repeat_weight"),
        ("model.max_patch_bases=200", "training.stages.0.window_bases 128 is shorter than a patch may be"),
    ],
)
def test_mistakes_are_told_by_their_key(toy_config, override, says):
    with pytest.raises(ConfigError) as caught:
        load(toy_config, override)
    assert says in str(caught.value)


def test_activation_checkpointing_reaches_every_stack(toy_config):
    plain, checkpointed = load(toy_config), load(toy_config, "training.activation_checkpointing=true")
    assert plain.model_to_build() == plain.model
    model = checkpointed.model_to_build()
    for part in ("global_model", "encoder", "decoder"):
        assert getattr(model, part).activation_checkpointing
        assert not getattr(checkpointed.model, part).activation_checkpointing
    switched = {part: getattr(plain.model, part) for part in ("global_model", "encoder", "decoder")}
    assert model.model_copy(update=switched) == plain.model


def test_monitors_write_into_the_run_unless_told_otherwise(toy_config):
    block = load(toy_config, "deepspeed.csv_monitor.enabled=true", "deepspeed.wandb.enabled=true").deepspeed_block()
    assert block == {"csv_monitor": {"enabled": True, "output_path": "runs/toy/logs"}, "wandb": {"enabled": True}}
    told = load(toy_config, "deepspeed.csv_monitor={enabled: true, output_path: elsewhere}").deepspeed_block()
    assert told["csv_monitor"]["output_path"] == "elsewhere"


def test_deepspeeds_own_block_passes_through():
    config = deepspeed_config({"zero_optimization": {"stage": 3, "reduce_bucket_size": 77}}, 4, 0.5, "bf16")
    assert config["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 77}
    assert config["train_batch_size"] == 4
    assert config["gradient_clipping"] == 0.5
    assert config["torch_autocast"]["dtype"] == "bfloat16"
    assert "torch_autocast" not in deepspeed_config({}, 1, 0.0, "fp32")
