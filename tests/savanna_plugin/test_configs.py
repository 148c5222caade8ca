"""Upstream's own configurations of Evo 2 become ours, with the right numbers of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hyena_blt_savanna.conversion.foreign_yaml import merge_foreign
from hyena_blt_savanna.conversion.savanna_hybrid import parse_model
from hyena_blt_savanna.conversion.savanna_run import from_ours, to_ours
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.parameters import count_parameters
from hyena_blt_savanna.training.run_config import RunConfig

FOLDERS = ("40b", "7b-context-ext", "7b-final-test", "7b-ft", "context-scaling", "launcher-test")
"""Of Evo 2; configs/model holds experiments from before it, of other architectures."""
OTHER_MODELS = {
    "7b-sh2-actfix_group-ablation_short_hyena_mlp.yml",
    "deepspeed-rank-log.yml",
    "regression_test.yml",
}
"""Files in them whose MLPs are short convolutions."""


def model_files(upstream: Path) -> list[tuple[Path, dict[str, Any]]]:
    """YAML files that name an architecture."""
    found = []
    for folder in FOLDERS:
        for path in sorted((upstream / "configs" / folder).rglob("*.y*ml")):
            try:
                settings = merge_foreign([path])
            except ConversionError:
                assert is_broken(path), path
                continue
            if "operator_config" in settings and "num_layers" in settings:
                found.append((path, settings))
    return found


def is_broken(path: Path) -> bool:
    """Whether a file is nothing that Savanna could read either."""
    try:
        return not isinstance(yaml.safe_load(path.read_text()), dict)
    except yaml.YAMLError:
        return True


def num_parameters(keys: dict[str, Any]) -> int:
    """Of the weights that Savanna's blocks read, counted from the shapes that its modules make."""
    width, layers = keys["hidden_size"], keys["num_layers"]
    operators: list[str] = []
    for pattern, times in keys["operator_config"]:
        operators += pattern * (layers // len(pattern) if times == "all" else times)
    multiple = keys.get("make_gated_mlp_multiple_of", 16)
    hidden = -(-int(2 * width * 4 / 3) // multiple) * multiple
    if keys.get("pad_mlp_weights"):
        at_once = 16 * keys.get("model_parallel_size", 1)
        hidden = -(-hidden // at_once) * at_once
    rows = keys.get("make_vocab_size_divisible_by", 128) * keys.get("model_parallel_size", 1)
    total = -(-512 // rows) * rows * width + width
    groups = keys.get("num_groups_hyena") or width
    for operator in operators:
        total += 4 * width * width + width + 2 * width + 3 * width * hidden
        if "hyena" in operator:
            total += 3 * width * keys["short_conv_L"]
        if operator == "hyena_se":
            total += (keys.get("num_groups_hyena_short") or groups) * keys["hyena_se_len"]
        if operator == "hyena_mr":
            total += (keys.get("num_groups_hyena_medium") or groups) * keys["hyena_mr_len"] + width
        if operator == "hyena":
            total += groups * keys["hyena_filter_order"] * 3 + width
    return total


def test_all_of_evo_2_is_converted(upstream: Path) -> None:
    counts: dict[str, int] = {}
    windows: dict[int, set[int]] = {}
    refused = {}
    for path, settings in model_files(upstream):
        try:
            config = parse_model(settings, path.name)
        except ConversionError as error:
            refused[path.name] = str(error)
            continue
        key = shapes(config)
        if key not in counts:
            counts[key] = sum(count_parameters(config).values())
        assert counts[key] == num_parameters(settings), path
        windows.setdefault(settings["hidden_size"], set()).add(settings["seq_length"])
    # 7B and 40B with hidden widths before and after they were padded; the rest are smaller tests of upstream's.
    assert {6_582_312_704, 41_119_409_152} <= set(counts.values())
    for width in (4096, 8192):
        assert {8192, 32_768, 131_072, 262_144, 524_288, 1_048_576} <= windows[width]
    assert set(refused) == OTHER_MODELS
    assert all("mlp_type is 'short_hyena'; only 'llama' is converted" in reason for reason in refused.values())


def shapes(config: IsotropicConfig) -> str:
    """What a model's number of weights follows from: all but positions and the grid of hyena_mr's decay."""
    stack = config.to_dict()["stack"]
    del stack["attention"], stack["hyena"]["mr_decay_length"]
    return yaml.safe_dump({**config.to_dict(), "stack": stack})


def test_all_data_configurations_become_mixtures(upstream: Path) -> None:
    model = merge_foreign([upstream / "configs/7b-final-test/model_configs/act-fix/v2/7b-sh2-actfix_longer_warmup.yml"])
    num_mixtures = 0
    for path in sorted((upstream / "configs").rglob("*.y*ml")):
        text = path.read_text()
        if "train-data-paths" not in text or "num_layers" in text:
            continue
        keys = merge_foreign([path])
        paths = keys["train_data_paths"]
        config = RunConfig.parse(to_ours({**model, **keys}, path.name).tree)
        weights = keys.get("train_data_weights") or [1.0] * len(paths)
        assert config.data.sources is not None
        assert [source.weight for source in config.data.sources] == [weight for weight in weights if weight > 0], path
        num_mixtures += 1
    assert num_mixtures > 10


def test_a_pair_of_files_is_a_run_of_ours_and_back(upstream: Path, tmp_path: Path) -> None:
    model = upstream / "configs/7b-context-ext/model_configs/generated/1M/7b-hybrid-log_evo1-1M.yml"
    data = sorted((upstream / "configs/7b-context-ext/data_configs").glob("*.yml"))[0]
    converted = to_ours(merge_foreign([model, data]), "pair", num_ranks=64)
    config = RunConfig.parse(converted.tree)
    stage = config.training.stages[0]
    assert (stage.window_bases, config.parallel.context) == (1_048_576, 2)
    assert isinstance(config.model, IsotropicConfig)
    rotary = config.model.stack.attention.rotary
    assert (rotary.base, rotary.position_scale) == (1e11, 128)
    assert (config.training.optimizer.lr, config.training.schedule.min_lr_ratio) == (3e-5, 0.1)
    assert (config.training.precision, config.training.activation_checkpointing) == ("bf16", True)
    assert config.data.repeat_weight == 0.1
    listed = "\n".join(converted.without_counterpart)
    for key in ("use_fp8_input_projections", "model_parallel_size is 32", "train-data-paths", "sequence_parallel"):
        assert key in listed, listed
    # A mixture stays here.
    data_of_one = {key: value for key, value in converted.tree["data"].items() if key != "sources"} | {"folder": "data"}
    (tmp_path / "back.yml").write_text(from_ours(RunConfig.parse({**converted.tree, "data": data_of_one})).to_yaml())
    again = RunConfig.parse(to_ours(merge_foreign([tmp_path / "back.yml"]), "back").tree)
    assert (again.model, again.training, again.parallel) == (config.model, config.training, config.parallel)
