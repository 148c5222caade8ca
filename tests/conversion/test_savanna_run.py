from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyena_blt_savanna.conversion.foreign_yaml import merge_foreign
from hyena_blt_savanna.conversion.savanna_run import from_ours, to_ours
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.training.run_config import RunConfig

STACK = {
    "width": 32,
    "num_heads": 4,
    "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"],
    "hyena": {"se_groups": 8, "mr_groups": 8, "mr_taps": 16, "mr_decay_length": 64, "li_order": 4},
    "norm": {"epsilon": 1e-6, "epsilon_inside_root": False},
}
TRAINING = {
    "stages": [{"steps": 500, "window_bases": 256, "batch_windows": 8, "micro_batch_windows": 2}],
    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.98], "eps": 1e-9, "weight_decay": 0.05},
    "schedule": {"warmup_steps": 50, "min_lr_ratio": 0.1},
    "gradient_clipping": 0.5,
    "precision": "bf16",
    "activation_checkpointing": True,
    "validation": {"every_steps": 100, "num_bases": 4 * 8 * 256},
    "checkpoints": {"every_steps": 50, "keep_last": 3},
    "logging": {"every_steps": 5},
}
HYBRID = {"kind": "hyena_blt", "local_width": 16, "max_patch_bases": 8, "global_model": STACK}
ISOTROPIC = {"kind": "isotropic", "stack": STACK | {"hyena": STACK["hyena"] | {"mr_decay_length": 256}}}  # type: ignore[operator]


def run(model: dict[str, Any], **changes: Any) -> RunConfig:
    is_hybrid = model["kind"] == "hyena_blt"
    data = {"folder": "data", "annotation": "cuts" if is_hybrid else None, "repeat_weight": 0.1}
    data |= {"strands": "both", "window_patches": 63} if is_hybrid else {"strands": "forward"}
    tree = {"run": "runs/x", "seed": 7, "data": data, "model": model, "training": TRAINING}
    tree |= {"parallel": {"context": 2}, "deepspeed": {"zero_optimization": {"stage": 1}}}
    return RunConfig.parse({**tree, **changes})


@pytest.mark.parametrize("model", [HYBRID, ISOTROPIC], ids=["hybrid", "isotropic"])
def test_there_and_back_is_the_same_run(tmp_path: Path, model: dict[str, Any]) -> None:
    config = run(model)
    there = from_ours(config)
    path = tmp_path / "run.yml"
    path.write_text(there.to_yaml())
    back = to_ours(merge_foreign([path]), "run.yml")
    again = RunConfig.parse(back.tree)
    assert again.model == config.model
    assert again.training == config.training
    assert (again.seed, again.run, again.parallel, again.deepspeed) == (
        config.seed, config.run, config.parallel, config.deepspeed,
    )  # fmt: skip
    assert again.data == config.data
    assert there.without_counterpart == ["training.precision bf16: Savanna's weights are bf16 too, with a copy in fp32"]


def test_what_savanna_has_no_place_for_is_listed(tmp_path: Path) -> None:
    stages = [*TRAINING["stages"], {"steps": 5, "window_bases": 512, "batch_windows": 8}]  # type: ignore[misc]
    config = run(HYBRID, seed=0, training={**TRAINING, "stages": stages, "precision": "auto"}, start_from="there")
    listed = "\n".join(from_ours(config, window_patches=128).without_counterpart)
    for part in ("the first stage is taken", "seed 0", "precision auto", "start_from there"):
        assert part in listed
    assert from_ours(config, window_patches=128).tree["hyena-blt"]["window_patches"] == 128


def test_what_we_have_no_place_for_is_listed(tmp_path: Path) -> None:
    tree = from_ours(run(ISOTROPIC)).tree | {
        "use_fp8_norm": False, "model_parallel_size": 4, "lr-decay-style": "linear", "to_upper": None,
        "load": "there", "recycle_events": True, "async_save": False, "hidden-dropout": 0.2, "precision": "fp16",
        "checkpoint_scale": "log", "mask_loss_control_tags": False,
        "train-data-paths": ["a/x", "b/x", "c/y"], "train-data-weights": [3, 1, 0],
    }  # fmt: skip
    tree["optimizer"] = {"type": "sm3", "params": {"lr": 1e-3, "wd_free_lr": 1e-4}}
    del tree["train_batch_size"]
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(tree))
    converted = to_ours(merge_foreign([path]), "run.yml", num_ranks=16)
    listed = "\n".join(converted.without_counterpart)
    for part in ("no tensor parallelism", "follows a cosine here", "letters of their own", "load is there",
                 "recycle_events is True", "hidden_dropout is 0.2", "precision is fp16", "checkpoint-scale is log",
                 "never scored here", "train-data-paths: Savanna takes", "valid-data-paths: validated on",
                 "optimizer.type is sm3", "optimizer.params.wd_free_lr is 0.0001",
                 "batch_windows is 4: micro batch x accumulation x 2 data-parallel rank(s)"):  # fmt: skip
        assert part in listed, part
    assert converted.tree["data"]["sources"] == [
        {"path": "a/x", "weight": 3.0, "name": "x_0"},
        {"path": "b/x", "weight": 1.0, "name": "x_1"},
    ]
    assert converted.tree["training"]["validation"] is None
    # What is off is nothing that is missing.
    assert "async_save" not in listed


def test_blends_become_mixtures(tmp_path: Path) -> None:
    tree = from_ours(run(HYBRID)).tree
    tree |= {"train-data-paths": ["a/train", "b/c"], "train-data-weights": None}
    path = tmp_path / "run.yml"
    path.write_text(yaml.safe_dump(tree))
    config = RunConfig.parse(to_ours(merge_foreign([path]), "run.yml").tree)
    assert config.data.folder is None
    assert config.data.sources is not None
    assert [(str(source.path), source.weight, source.name) for source in config.data.sources] == [
        ("a", 1.0, "a"),
        ("b/c", 1.0, "c"),
    ]
    # Of a there is one.
    assert config.training.validation is not None


def test_models_that_savanna_has_no_blocks_for(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="give --window-patches"):
        from_ours(run(HYBRID, data={"folder": "data"}))
    words = {"kind": "kmer_tokens", "global_model": STACK}
    with pytest.raises(ConversionError, match="Savanna has no model of kind kmer_tokens"):
        from_ours(run(words, data={"folder": "data"}, parallel={"context": 1}))
    mixture = {"sources": [{"path": "data", "weight": 1}], "window_patches": 63}
    with pytest.raises(ConversionError, match=r"data\.sources are mixed sample by sample .*: set data\.folder"):
        from_ours(run(HYBRID, data=mixture))


def test_tools_convert_and_tell_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.yaml"
    run(HYBRID).save(path)
    tool = str(Path(__file__).parents[2] / "tools" / "convert_config.py")
    for arguments, code in ((["--to", "savanna", str(path)], 0), (["--to", "ours", str(path)], 1)):
        monkeypatch.setattr(sys, "argv", [tool, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(tool, run_name="__main__")
        assert ended.value.code == code
    printed = capsys.readouterr()
    assert printed.out.startswith("# training.precision bf16")
    assert yaml.safe_load(printed.out)["hyena-blt"]["annotation"] == "cuts"
    assert "num_layers, hidden_size, seq_length" in printed.err
