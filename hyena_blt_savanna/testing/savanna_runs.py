"""Runs of a tiny hybrid inside Savanna, for tests: each function is called on every rank of a group."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from hyena_blt_savanna.conversion.convert import Conversion, convert
from hyena_blt_savanna.evaluation.native_checkpoint import save_pretrained
from hyena_blt_savanna.parallel.context import SINGLE_RANK
from hyena_blt_savanna.savanna_plugin.checkout import import_savanna
from hyena_blt_savanna.savanna_plugin.cpu_mode import cpu_mode
from hyena_blt_savanna.savanna_plugin.pretrain import pretrain
from hyena_blt_savanna.savanna_plugin.replacements import Replacements
from hyena_blt_savanna.savanna_plugin.settings import Settings, read_settings
from hyena_blt_savanna.testing.toy_training import ToyBatch, toy_windows
from hyena_blt_savanna.training.pretrain import build_engine
from hyena_blt_savanna.training.ranks import join_ranks
from hyena_blt_savanna.training.run_config import RunConfig
from hyena_blt_savanna.training.run_data import RunData

KEYS: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "operator-config": [[["hyena_se", "hyena_mr", "hyena"], 1]],
    "num_groups_hyena": 32,
    "num_groups_hyena_medium": 8,
    "num_groups_hyena_short": 8,
    "seq_length": 128,
    "max_position_embeddings": 128,
    "short-conv-L": 3,
    "hyena_se_len": 7,
    "hyena_mr_len": 16,
    "hyena_filter_cls": "implicit_modal",
    "hyena_medium_filter_cls": "explicit_single_decay",
    "explicit_filter_decay_preset": "weak",
    "hyena_filter_order": 4,
    "hyena_filter_wd": 0.0,
    "norm": "rmsnorm",
    "rms_norm_epsilon": 1e-6,
    "pre_mlp_norm": True,
    "mlp_type": "llama",
    "make_gated_mlp_multiple_of": 16,
    "pos_emb": "rotary",
    "rotary_pct": 1.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "init_method": "small_init",
    "output_layer_init_method": "wang_init",
    "tokenizer_type": "CharLevelTokenizer",
    "make_vocab_size_divisible_by": 8,
    "optimizer": {"type": "Adam", "params": {"lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8}},
    "weight_decay": 0.1,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 1},
    "precision": "fp32",
    "train_batch_size": 4,
    "train-iters": 20,
    "lr-decay-style": "cosine",
    "warmup": 0.1,
    "min_lr": 3e-4,
    "eval_interval": 100,
    "eval_iters": 0,
    "log_interval": 1,
    "seed": 5,
    "data-impl": "mmap",
    "to_upper": "normalized_weighted",
    "lowercase_loss_reweighting": 0.5,
    "checkpoint_scale": "linear",
    "hyena-blt": {
        "global_blocks": "ours",
        "window_patches": 64,
        "model": {"local_width": 16, "max_patch_bases": 8, "kmers": {"sizes": [2, 3]}},
    },
}
"""A configuration without its paths, batch and number of micro batches."""


def configuration(data: Path, **changes: Any) -> dict[str, Any]:
    """A tiny run's configuration.

    Args:
        data: folder of `train` and `validation`.
        changes: keys of Savanna's with underscores, or of our block with `blt_` in front; `blocks` is the pattern of
            operators.
    """
    keys = {key: dict(value) if isinstance(value, dict) else value for key, value in KEYS.items()}
    for split, name in (("train", "train"), ("valid", "validation"), ("test", "validation")):
        keys[f"{split}-data-paths"] = [str(data / name)]
    if "blocks" in changes:
        blocks = changes.pop("blocks")
        keys |= {"operator-config": [[blocks, 1]], "num_layers": len(blocks)}
    for key, value in changes.items():
        if key.startswith("blt_"):
            keys["hyena-blt"][key.removeprefix("blt_")] = value
        else:
            keys.pop(key.replace("_", "-"), None)
            keys[key] = value
    return keys


@dataclass
class Curve:
    """What a run did.

    Attributes:
        losses: of each step, as Savanna logs them.
        norms: of the gradients of each step, before they were clipped.
        rates: the learning rate after each step.
        validation: the loss of the evaluation at the end, if there was one.
        weights: of the model at the end, on the first rank of a run without ZeRO 3.
        logits: of `fixed_windows` at the end, on one rank.
        flops: of a step, as Savanna logs them.
        token_index: Savanna's place in the data at the end.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    validation: float | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    flops: float = 0.0
    token_index: int = 0


def train(config: Mapping[str, Any], folder: Path) -> Curve:
    """Trains through `savanna.training.pretrain` on the CPU. Every rank calls.

    Args:
        config: of `configuration`.
        folder: exists; for the YAML file.
    """
    settings, curve = settings_of(config, folder), Curve()
    with quietly(), cpu_mode(), Replacements() as replaced:
        training = import_savanna("savanna.training")
        log, evaluate = training.training_log, training.evaluate_and_print_results

        def training_log(**given: Any) -> Any:
            curve.losses.append(float(given["loss_dict"]["lm_loss"]))
            curve.norms.append(float(given["model"].get_global_grad_norm() or 0.0))
            curve.rates.append(float(given["learning_rate"]))
            module = given["model"].module
            if given["global_config"].zero_stage < 3:
                curve.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
            if torch.distributed.get_world_size() == 1 and given["global_config"].zero_stage < 3:
                curve.logits = logits_of_fixed_windows(module)
            return log(**given)

        def results(losses: Mapping[str, float], *_: Any) -> None:
            curve.validation = losses["lm_loss"]

        replaced.set(training, "training_log", training_log)
        replaced.set(training, "print_and_log_results", results)
        assert evaluate is training.evaluate_and_print_results
        global_config = pretrain(settings)
        curve.flops = global_config.model_flops_per_iteration
        curve.token_index = global_config.train_data_token_index
    return curve


def fixed_windows() -> ToyBatch:
    """Two windows that fit the tiny model."""
    batch = toy_windows(2, num_bases=96)
    num_patches = int((batch.patch_lengths > 0).sum(1).max())
    return replace(batch, patch_lengths=batch.patch_lengths[:, :num_patches])


def logits_of_fixed_windows(model: torch.nn.Module) -> Tensor:
    """[2, L, 5], of a model as it stands."""
    batch = fixed_windows()
    with torch.inference_mode():
        logits: Tensor = model(batch.bases, batch.patch_lengths)
    return logits.clone()


def reference(
    data: Path, config: Mapping[str, Any], rates: Sequence[float], run: Path
) -> tuple[list[float], list[float]]:
    """Losses and norms of our own loop's steps on the same batches, from the same first weights.

    Args:
        data: folder of `train` and `validation`.
        config: of `configuration`.
        rates: Savanna's, after each step.
        run: not written.
    """
    settings = settings_of(config, run)
    steps, batch_windows = len(rates), config["train_batch_size"]
    tree = {
        "run": run,
        "seed": config["seed"],
        "data": {
            "folder": str(data),
            "repeat_weight": settings.repeat_weight,
            "window_patches": settings.block.window_patches - 1,
        },
        "model": settings.model.to_dict(),
        "training": {
            "stages": [{"steps": steps, "window_bases": settings.window_bases, "batch_windows": batch_windows}],
            "optimizer": {"lr": 3e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": config["weight_decay"]},
            "gradient_clipping": config["gradient_clipping"],
        },
    }
    run_config, ranks = RunConfig.parse(tree), join_ranks()
    engine, losses, norms = build_engine(run_config, ranks, 0, SINGLE_RANK), [], []
    with RunData(run_config, ranks).open_stage(0, 0) as batches:
        # What Savanna tells is the rate of the next step, and the warm-up begins with none.
        for rate, batch in zip([0.0, *rates], islice(batches, steps), strict=False):
            losses.append(engine.accumulate([batch]).nats_per_base)
            norms.append(engine.update(rate))
    return losses, norms


def settings_of(config: Mapping[str, Any], folder: Path) -> Settings:
    """What is read from a configuration.

    Args:
        config: of `configuration`.
        folder: made if need be; for the YAML file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank{torch.distributed.get_rank()}.yml"
    path.write_text(yaml.safe_dump(dict(config)))
    return read_settings([path])


@contextmanager
def initialised(global_config: Any) -> Iterator[Any]:
    """Savanna's ranks and tokenizer are made ready for a configuration; gives `savanna.training`."""
    training, mpu = import_savanna("savanna.training"), import_savanna("savanna.mpu")
    global_config.configure_distributed_args()
    global_config.build_tokenizer()
    training.initialize_megatron(global_config=global_config)
    try:
        yield training
    finally:
        mpu.destroy_model_parallel()


def plain_config(data: Path, **changes: Any) -> Any:
    """Savanna's GlobalConfig of a model on single bases, with other keys."""
    keys = {key.replace("-", "_"): value for key, value in configuration(data).items() if key != "hyena-blt"}
    keys |= {"global_num_gpus": 1, "use_wandb": False, **changes}
    return import_savanna("savanna.arguments").GlobalConfig.from_dict(keys)


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps what Savanna prints, which is a line for each matrix product, out of the tests' output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def one_rank(data: Path, folder: Path) -> dict[str, Any]:
    """All runs of one rank: see the tests for what each is for."""
    config = configuration(data, train_micro_batch_size_per_gpu=2, gradient_accumulation_steps=2)
    saved = {"save": str(folder / "saved"), "checkpoint_factor": 10}
    found: dict[str, Any] = {"first": train({**config, **saved, "eval_iters": 2}, folder)}
    found["reference"] = reference(data, config, found["first"].rates, folder / "ours")
    load = {"load": str(folder / "saved"), "iteration": 10}
    found["resumed"] = train({**config, **load}, folder)
    found["zero_3"] = train(configuration(data, zero_optimization={"stage": 3}, **_kept_inputs(1)), folder)
    native = folder / "native"
    save_native(settings_of(config, folder), native, config["seed"])
    found["from_native"] = train(configuration(data, blt_start_from=str(native)), folder)
    convert(Conversion(native, folder / "converted", "native", "savanna"))
    load = {"load": str(folder / "converted"), "finetune": True, "warmstart": True}
    blocks = {"blt_global_blocks": "savanna", "train_micro_batch_size_per_gpu": 4}
    found["from_folder"] = train(configuration(data, **blocks, **load, **_kept_inputs(2)), folder)
    half = {"precision": "bfloat16", "bf16": {"enabled": True}, "blt_start_from": str(native), **blocks}
    found["bf16"] = train(configuration(data, **half), folder)
    found["savanna_blocks"] = train(
        configuration(
            data,
            blt_global_blocks="savanna",
            blt_start_from=str(native),
            train_micro_batch_size_per_gpu=2,
            gradient_accumulation_steps=2,
            save=str(folder / "savanna_blocks"),
            checkpoint_factor=20,
        ),
        folder,
    )
    return found


def _kept_inputs(num_layers: int) -> dict[str, Any]:
    """Keys by which only what goes into so many blocks is kept for the backward pass."""
    return {"checkpoint_activations": True, "checkpoint_num_layers": num_layers}


def two_ranks(data: Path, folder: Path, native: Path) -> dict[str, Any]:
    """All runs of two ranks."""
    halves, whole = {"train_micro_batch_size_per_gpu": 2}, {"train_micro_batch_size_per_gpu": 4}
    savanna = {"blt_global_blocks": "savanna", "blt_start_from": str(native), **whole}
    context = {"context_parallel_size": 2, "use_cp_hyena": True}
    runs: dict[str, dict[str, Any]] = {
        "data": {"save": str(folder / "data"), "checkpoint_factor": 10, **halves},
        "data_resumed": {"load": str(folder / "data"), "iteration": 10, **halves},
        "data_zero_3": {"zero_optimization": {"stage": 3}, **halves},
        "context": {**context, **whole},
        "context_savanna": {**context, **savanna},
        "tensor_savanna": {
            "model_parallel_size": 2,
            "save": str(folder / "tensor"),
            "checkpoint_factor": 20,
            **savanna,
        },
    }
    return {name: train(configuration(data, **changes), folder) for name, changes in runs.items()}


def save_native(settings: Settings, folder: Path, seed: int) -> None:
    """The first weights that a run with this seed draws, as a native checkpoint."""
    torch.manual_seed(seed)
    model = settings.model.build()
    save_pretrained(folder, model.state_dict(), settings.model, None, settings.window_bases)
