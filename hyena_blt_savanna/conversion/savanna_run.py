"""Whole configurations of runs between Savanna and here, each with a list of what the other side has no place for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.conversion.savanna_config import DEFAULTS, FIXED, FIXED_WITH, describe
from hyena_blt_savanna.conversion.savanna_hybrid import (
    BLOCK,
    HybridBlock,
    describe_hybrid,
    parse_block,
    parse_hybrid,
    parse_model,
)
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.training.run_config import RunConfig

_MODEL_KEYS = (
    {*DEFAULTS, *FIXED, *(key for keys in FIXED_WITH.values() for key in keys)}
    | {"num_layers", "hidden_size", "num_attention_heads", "operator_config", "max_position_embeddings",
       "tokenizer_type", "init_method", "output_layer_init_method", "fast_conv_proj", "num_groups_hyena_mlp",
       "output_layer_parallelism", BLOCK}
)  # fmt: skip
"""Keys that the model follows from, or that change nothing that is computed."""
_DATA_PATHS = ("train_data_paths", "valid_data_paths", "test_data_paths")


@dataclass(frozen=True)
class Converted:
    """A configuration on the other side.

    Attributes:
        tree: ready for YAML.
        without_counterpart: what was left out, or is only nearly the same, in words.
    """

    tree: dict[str, Any]
    without_counterpart: list[str]

    def to_yaml(self) -> str:
        """As a file, with the list as comments in front."""
        lines = "".join(f"# {line}\n" for line in self.without_counterpart)
        return lines + yaml.safe_dump(self.tree, sort_keys=False, width=120)


class _Keys:
    """Savanna's keys, and which of them have been asked for."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._read = set(_MODEL_KEYS)

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add(key)
        value = self._settings.get(key)
        return default if value is None else value

    def unread(self) -> dict[str, Any]:
        # Null and false switch nothing on.
        return {
            key: value
            for key, value in sorted(self._settings.items())
            if key not in self._read and value not in (None, False)
        }


def to_ours(settings: Mapping[str, Any], where: str, num_ranks: int = 1) -> Converted:
    """A run of ours from Savanna's keys.

    Args:
        settings: Savanna's keys of model, data and training, without hyphens.
        where: the files, for messages.
        num_ranks: of Savanna's run: without train_batch_size, the batch is counted with it.

    Raises:
        ConversionError: the model is none that is converted.
    """
    keys = _Keys(settings)
    notes: list[str] = []
    is_hybrid = BLOCK in settings
    model: Config = parse_hybrid(settings, where) if is_hybrid else parse_model(settings, where)
    tree: dict[str, Any] = {"run": str(keys.get("save", "runs/from_savanna")), "seed": keys.get("seed", 1234)}
    tree["data"] = _data(keys, notes, is_hybrid)
    tree["model"] = _short(model)
    tree["training"] = _training(keys, notes, num_ranks)
    if is_hybrid:
        block = parse_block(settings, where)
        tree["data"] |= {
            "annotation": block.annotation,
            "strands": block.strands,
            "window_patches": block.window_patches - 1,
        }
        tree["training"]["loss_chunk_bases"] = block.loss_chunk_bases
    if tree["training"]["validation"] and not _has_validation(keys):
        tree["training"]["validation"] = None
        notes.append("valid-data-paths: validated on is FOLDER/validation beside FOLDER/train, and none of "
                     "train-data-paths is such a FOLDER/train")  # fmt: skip
    num_context = keys.get("context_parallel_size", 1)
    if num_context > 1:
        tree["parallel"] = {"context": num_context}
    tree["deepspeed"] = {"zero_optimization": dict(keys.get("zero_optimization", {"stage": 0}))}
    dropouts = {key: keys.get(key, 0.1) for key in ("hidden_dropout", "attention_dropout")}
    notes += [f"{key} is {rate}: there is no dropout here" for key, rate in dropouts.items() if rate]
    num_model = keys.get("model_parallel_size", 1)
    if num_model > 1:
        notes.append(
            f"model_parallel_size is {num_model}, and there is no tensor parallelism here: ZeRO 3 or parallel.context "
            "share what one GPU can't hold"
        )
    if keys.get("load") is not None:
        notes.append(
            f"load is {keys.get('load')}: convert it (tools/convert_checkpoint.py --to native) and give start_from"
        )
    notes += [f"{key} is {_short_text(value)}, and has no counterpart" for key, value in keys.unread().items()]
    return Converted(tree, notes)


def _short(config: Config) -> dict[str, Any]:
    """A configuration without what is default; `kind` stays."""
    kind = config.to_dict()["kind"]
    return {"kind": kind, **config.model_dump(mode="json", exclude_defaults=True)}


def _short_text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _data(keys: _Keys, notes: list[str], is_hybrid: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"folder": "data"}
    paths = {split: keys.get(split) for split in _DATA_PATHS}
    weights = [keys.get(split.replace("paths", "weights")) for split in _DATA_PATHS]
    keys.get("data_impl")
    train = [Path(path) for path in paths["train_data_paths"] or []]
    if train and [path.name for path in train] == ["train"]:
        data["folder"] = str(train[0].parent)
    elif train:
        data = {"sources": _sources(train, weights[0] or [1.0] * len(train), notes)}
    if not is_hybrid:
        data["annotation"] = None
        data["strands"] = "forward"
    if keys.get("to_upper") in ("weighted", "normalized_weighted"):
        data["repeat_weight"] = float(keys.get("lowercase_loss_reweighting", 1.0))
        if keys.get("to_upper") == "weighted":
            notes.append("to_upper is weighted: the loss here is divided by the sum of the weights, not by the bases")
    elif keys.get("to_upper") is None:
        notes.append("to_upper is not set: bases in lower case are letters of their own in Savanna; here, the same")
    if not keys.get("mask_loss_control_tags", False):
        notes.append("mask_loss_control_tags is off: tags and join marks are never scored here")
    return data


def _has_validation(keys: _Keys) -> bool:
    paths = keys.get("train_data_paths") or []
    return not paths or any(Path(path).name == "train" for path in paths)


def _sources(paths: Sequence[Path], weights: Sequence[float], notes: list[str]) -> list[dict[str, Any]]:
    """A mixture of all datasets that have a weight; of one called `train` the folder, with its validation."""
    notes.append(
        "train-data-paths: Savanna takes the dataset that is furthest behind its share, here shares are exact within "
        "blocks of samples; tools/import_savanna_data.py makes ours of uint16 tokens, and one patcher must cut all"
    )
    used = [
        (path.parent if path.name == "train" else path, float(weight))
        for path, weight in zip(paths, weights, strict=False)
        if weight > 0
    ]
    names = [path.name for path, _ in used]
    sources: list[dict[str, Any]] = []
    for place, (path, weight) in enumerate(used):
        # Sources are told apart by their names.
        own = {"name": f"{path.name}_{place}"} if names.count(path.name) > 1 else {}
        sources.append({"path": str(path), "weight": weight, **own})
    return sources


def _training(keys: _Keys, notes: list[str], num_ranks: int) -> dict[str, Any]:
    optimizer = dict(keys.get("optimizer", {"params": {}}))
    parameters = dict(optimizer.get("params", {}))
    lr = float(parameters.pop("lr", 1e-3))
    window_bases, steps = keys.get("seq_length"), keys.get("train_iters", 1)
    micro, accumulation = keys.get("train_micro_batch_size_per_gpu"), keys.get("gradient_accumulation_steps", 1)
    num_data = max(1, num_ranks // (keys.get("context_parallel_size", 1) * keys.get("model_parallel_size", 1)))
    batch = keys.get("train_batch_size", (micro or 1) * accumulation * num_data)
    if keys.get("train_batch_size") is None:
        notes.append(f"batch_windows is {batch}: micro batch x accumulation x {num_data} data-parallel rank(s)")
    decay_iters = keys.get("lr_decay_iters", steps)
    stage = {"steps": steps, "window_bases": window_bases, "batch_windows": batch}
    if micro is not None:
        stage["micro_batch_windows"] = micro
    training: dict[str, Any] = {
        "stages": [stage],
        "optimizer": {
            "lr": lr,
            "betas": list(parameters.pop("betas", (0.9, 0.999))),
            "eps": float(parameters.pop("eps", 1e-8)),
            "weight_decay": float(keys.get("weight_decay", parameters.pop("weight_decay", 0.01))),
        },
        "schedule": {
            "warmup_steps": round(keys.get("warmup", 0.01) * decay_iters),
            "min_lr_ratio": min(1.0, float(keys.get("min_lr", 0.0)) / lr),
        },
        "gradient_clipping": keys.get("gradient_clipping", 1.0) or None,
        "precision": {"bfloat16": "bf16", "fp16": "bf16"}.get(str(keys.get("precision", "fp32")), "fp32"),
        "activation_checkpointing": bool(keys.get("checkpoint_activations", False)),
        **_intervals(keys, notes, batch * window_bases),
    }
    if keys.get("lr_decay_style", "linear") != "cosine":
        notes.append(f"lr-decay-style is {keys.get('lr_decay_style', 'linear')}: the rate follows a cosine here")
    else:
        notes.append("lr-decay-style: Savanna's cosine is stretched by the warm-up, and cut off at min_lr; here it "
                     "ends at min_lr with the last step")  # fmt: skip
    if keys.get("precision") == "fp16":
        notes.append("precision is fp16: it is bf16 here")
    if str(optimizer.get("type", "Adam")).lower() != "adam":
        notes.append(f"optimizer.type is {optimizer['type']}: it is AdamW here")
    notes += [f"optimizer.params.{key} is {value}, and has no counterpart" for key, value in parameters.items()]
    return training


def _intervals(keys: _Keys, notes: list[str], bases_per_step: int) -> dict[str, Any]:
    validation = None
    if keys.get("eval_iters", 100) > 0:
        bases = keys.get("eval_iters", 100) * bases_per_step
        validation = {"every_steps": keys.get("eval_interval", 1000), "num_bases": bases}
    checkpoints: dict[str, Any] = {"every_steps": keys.get("checkpoint_factor", 1000)}
    if keys.get("checkpoint_factor") and keys.get("checkpoint_scale", "linear") != "linear":
        notes.append("checkpoint-scale is log: checkpoints are written at even steps here")
    if keys.get("keep_last_n_checkpoints"):
        checkpoints["keep_last"] = keys.get("keep_last_n_checkpoints")
    logging = {"every_steps": keys.get("log_interval", 10)}
    return {"validation": validation, "checkpoints": checkpoints, "logging": logging}


def from_ours(config: RunConfig, window_patches: int | None = None) -> Converted:
    """Savanna's keys of a run of ours; for a hybrid with our block among them.

    Args:
        config: of the run; its first stage is converted.
        window_patches: of a hybrid: positions of the global model; None: data.window_patches and the byte in front.

    Raises:
        ConversionError: the model has parts that Savanna has none for, window_patches is missing, or the data are a
            mixture.
    """
    training, data, notes = config.training, config.data, []
    if data.folder is None:
        raise ConversionError(
            "data.sources are mixed sample by sample from folders of shards, and Savanna reads one file each: set "
            "data.folder"
        )
    stage = training.stages[0]
    micro = stage.micro_batch_windows
    if isinstance(config.model, HyenaBLTConfig):
        positions = window_patches or (data.window_patches + 1 if data.window_patches else None)
        if positions is None:
            raise ConversionError(
                "Savanna's blocks take sequences of one length: give --window-patches, the positions of the global "
                "model (window_bases over the mean patch, and some more)"
            )
        block = HybridBlock(
            window_patches=positions,
            annotation=data.annotation or "patches",
            strands=data.strands,
            loss_chunk_bases=training.loss_chunk_bases,
        )
        tree = describe_hybrid(config.model, stage.window_bases, block)
    elif isinstance(config.model, IsotropicConfig):
        tree = describe(config.model, stage.window_bases)
    else:
        raise ConversionError(f"Savanna has no model of kind {config.model.kind}: only isotropic and hyena_blt")
    tree |= {
        "train-data-paths": [str(data.folder / "train")],
        "valid-data-paths": [str(data.folder / "validation")],
        "test-data-paths": [str(data.folder / "validation")],
        "data-impl": "mmap",
        "to_upper": "normalized_weighted",
        "lowercase_loss_reweighting": float(data.repeat_weight),
        "mask_loss_control_tags": True,
        "train_batch_size": stage.batch_windows,
        **({"train_micro_batch_size_per_gpu": micro} if micro else {}),
        "train-iters": stage.steps,
        "seed": max(config.seed, 1),
        "optimizer": {
            "type": "Adam",
            "params": {
                "lr": training.optimizer.lr,
                "betas": list(training.optimizer.betas),
                "eps": training.optimizer.eps,
            },
        },
        "weight-decay": training.optimizer.weight_decay,
        "lr-decay-style": "cosine",
        "min_lr": training.optimizer.lr * training.schedule.min_lr_ratio,
        "warmup": training.schedule.warmup_steps / stage.steps,
        "gradient_clipping": training.gradient_clipping or 0.0,
        "precision": "bfloat16" if training.precision == "bf16" else "fp32",
        "hidden-dropout": 0.0,
        "attention-dropout": 0.0,
        "checkpoint-activations": training.activation_checkpointing,
        "checkpoint-num-layers": 1,
        "eval_interval": training.validation.every_steps if training.validation else 1000,
        "eval_iters": _eval_iters(config),
        "save": str(config.run),
        "checkpoint_factor": training.checkpoints.every_steps,
        "checkpoint_scale": "linear",
        "keep_last_n_checkpoints": training.checkpoints.keep_last,
        "log_interval": training.logging.every_steps,
        "zero_optimization": dict(config.deepspeed.get("zero_optimization", {"stage": 0})),
        "context_parallel_size": config.num_context(0),
    }
    notes += _not_in_savanna(config)
    return Converted(tree, notes)


def _eval_iters(config: RunConfig) -> int:
    stage, validation = config.training.stages[0], config.training.validation
    if validation is None:
        return 0
    return max(1, (validation.num_bases or 0) // (stage.batch_windows * stage.window_bases))


def _not_in_savanna(config: RunConfig) -> list[str]:
    training, data = config.training, config.data
    zero = set(config.deepspeed) - {"zero_optimization"}
    reasons: Sequence[tuple[bool, str]] = (
        (len(training.stages) > 1, "training.stages: Savanna's windows have one length; the first stage is taken"),
        (training.stages[0].length_warmup is not None, "training.stages.0.length_warmup"),
        (bool(training.stages[0].rotary.model_dump(exclude_none=True)), "training.stages.0.rotary: set it in model"),
        (training.objective != "next_base", f"training.objective {training.objective}"),
        (bool(training.frozen), "training.frozen"),
        (config.seed < 1, f"seed {config.seed}: Savanna wants one above 0, and gets 1"),
        (data.cuts is not None, "data.cuts"),
        (data.left_out is not None, "data.left_out"),
        (config.start_from is not None, f"start_from {config.start_from}: give hyena-blt.start_from or Savanna's load"),
        (training.precision == "bf16", "training.precision bf16: Savanna's weights are bf16 too, with a copy in fp32"),
        (training.precision == "auto", "training.precision auto: fp32"),
        (bool(zero), f"deepspeed.{', deepspeed.'.join(sorted(zero))}: put them in deepspeed_extra_args"),
        (isinstance(config.model, IsotropicConfig) and data.strands == "both", "data.strands both: Savanna reads files "
         "as they are; prepare the reverse strand as a dataset"),
    )  # fmt: skip
    return [f"{reason}" for holds, reason in reasons if holds]
