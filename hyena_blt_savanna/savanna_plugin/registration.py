"""Puts the hybrid into Savanna's training, and takes it out again.

Savanna has no registry: its training looks everything up by name in `savanna.training` when it is called. These names
are replaced, and whatever Savanna changes of the process is put back.
"""

from __future__ import annotations

import gc
import importlib
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from hyena_blt_savanna.conversion.savanna_hybrid import PATCHER
from hyena_blt_savanna.conversion.savanna_hybrid_weights import to_savanna_weights
from hyena_blt_savanna.conversion.torch_files import read_torch
from hyena_blt_savanna.data.manifest import read_annotation_manifest
from hyena_blt_savanna.evaluation.native_checkpoint import read_parts
from hyena_blt_savanna.model.hyena_blt import HyenaBLT
from hyena_blt_savanna.model.prediction import Prediction
from hyena_blt_savanna.savanna_plugin.checkout import SavannaError, import_savanna
from hyena_blt_savanna.savanna_plugin.data import (
    Place,
    ScaledBatch,
    ScaledBatches,
    evaluation_batches,
    open_samples,
    training_batches,
)
from hyena_blt_savanna.savanna_plugin.replacements import Replacements
from hyena_blt_savanna.savanna_plugin.savanna_blocks import SavannaStack, build_context, own_device, with_savanna_blocks
from hyena_blt_savanna.savanna_plugin.settings import Settings, operator_names
from hyena_blt_savanna.training.first_weights import load_first_weights
from hyena_blt_savanna.training.flops import training_flops_per_base
from hyena_blt_savanna.training.model_config import with_activation_checkpointing
from hyena_blt_savanna.training.optimizer import OptimizerConfig, parameter_groups

FILTERS = ("*short_conv_weight", "*filter.h", "*filter.gamma", "*filter.p", "*filter.R")
"""Savanna's names of what never decays, as our own filters never do."""


@contextmanager
def registered(settings: Settings) -> Iterator[Registration]:
    """Savanna trains the hybrid while this lasts.

    Args:
        settings: of the run.

    Raises:
        SavannaError: Savanna is missing.
    """
    with Replacements() as replaced:
        # Before its import, which replaces torch.cuda.empty_cache for good.
        _keep_process(replaced)
        training = import_savanna("savanna.training")
        logs = import_savanna("savanna.logging")
        choices: list[str] = import_savanna("savanna.arguments.global_config").operator_type_CHOICES
        replaced.set(torch.cuda, "empty_cache", lambda: None)
        # Some lines for each matrix product of each step.
        replaced.set(import_savanna("savanna.mpu.layers"), "print_rank_0", lambda *_: None)
        for name in operator_names():
            choices.append(name)
            replaced.call_back(lambda name=name: choices.remove(name))  # type: ignore[misc]
        registration = Registration(settings)
        replaced.call_back(registration.close)
        for name, value in registration.names(training).items():
            replaced.set(training, name, value)
        replaced.set(logs, "get_flops", registration.flops_per_second)
        yield registration


def _keep_process(replaced: Replacements) -> None:
    """Puts back what Savanna changes of the whole process."""
    mpu = import_savanna("savanna.mpu.initialize") if "savanna.mpu.initialize" in sys.modules else None
    had_groups = mpu is not None and mpu.model_parallel_is_initialized()
    replaced.set(torch.cuda, "empty_cache", torch.cuda.empty_cache)
    # DeepSpeed keeps Savanna's groups of ranks, and its ways of checkpointing, for the next engine too.
    for name in ("deepspeed.utils.groups", "deepspeed.runtime.activation_checkpointing.checkpointing"):
        module = importlib.import_module(name)
        for key, value in list(vars(module).items()):
            if not (callable(value) or key.startswith("__") or isinstance(value, ModuleType)):
                replaced.set(module, key, value)
    streams, collects = (sys.stdout, sys.stderr), gc.isenabled()
    # Savanna filters warnings for good.
    warned = warnings.catch_warnings()
    warned.__enter__()
    threads, states = torch._C._is_multithreading_enabled(), (random.getstate(), np.random.get_state())
    generator = torch.get_rng_state()

    def put_back() -> None:
        sys.stdout, sys.stderr = streams
        warned.__exit__(None, None, None)
        (gc.enable if collects else gc.disable)()
        torch._C._set_multithreading_enabled(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(generator)
        if not had_groups and "savanna.mpu.initialize" in sys.modules:
            sys.modules["savanna.mpu.initialize"].destroy_model_parallel()

    replaced.call_back(put_back)


class Registration:
    """What takes the place of Savanna's own functions, for one run.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closing: list[Callable[[], None]] = []

    def names(self, training: Any) -> dict[str, Any]:
        """What `savanna.training` looks up by name, and what it finds."""
        save, reduce = training.save_checkpoint, training.reduce_losses
        return {
            "get_model": self.get_model,
            "forward_step": self.forward_step,
            "build_train_valid_test_data_iterators": self.build_iterators,
            "get_params_for_weight_decay_optimization": self.parameter_groups,
            "add_model_flop_utilization_inputs": self.add_flops,
            "get_total_flops": lambda global_config, model: global_config.model_flops_per_iteration,
            "update_data_loading_config": self.update_data_position,
            "save_checkpoint": lambda **given: self.save_checkpoint(save, **given),
            "reduce_losses": lambda losses: reduce(losses) * self._log_factor,
        }

    def close(self) -> None:
        """Ends what runs beside the training."""
        while self._closing:
            self._closing.pop()()

    # The model

    def get_model(self, global_config: Any, use_cache: bool = False) -> HyenaBLT:
        """`savanna.training.get_model`: the hybrid with its first weights."""
        from deepspeed.runtime.zero import partition_parameters

        # ZeRO 3 would cut each weight up as it is made, and these are scaled once more when all are there; what
        # initialises the engine cuts them up as well.
        partition_parameters.shutdown_init_context()
        try:
            return self._build(global_config).to(own_device())
        finally:
            partition_parameters.restore_init_context()

    def _build(self, global_config: Any) -> HyenaBLT:
        settings, block = self.settings, self.settings.block
        config = settings.model
        if global_config.checkpoint_activations:
            config = with_activation_checkpointing(config)
        context = build_context()
        # The first weights are those of a run of ours with the same seed.
        torch.manual_seed(global_config.seed)
        if block.global_blocks == "ours":
            model = config.build(context)
            if block.start_from is not None:
                load_first_weights(model, settings.model, block.start_from)
        else:
            skip_init = config.global_model.hyena.skip_init
            stack = SavannaStack(global_config, block.window_patches, skip_init, context)
            model = with_savanna_blocks(config, stack, context)
            if block.start_from is not None:
                load_into_savanna_blocks(model, settings)
        return model

    def parameter_groups(self, module: nn.Module, global_config: Any) -> list[dict[str, Any]]:
        """`get_params_for_weight_decay_optimization`: embeddings, vectors and filters don't decay."""
        parameters = global_config.optimizer["params"]
        # Savanna's schedule takes it from here.
        global_config.wd_free_lr = parameters.pop("wd_free_lr", None)
        patterns = (*OptimizerConfig().no_decay, *FILTERS)
        return parameter_groups(module, global_config.weight_decay, patterns)

    # The data

    def build_iterators(self, global_config: Any) -> tuple[Any, Any, Any, list[Any]]:
        """`build_train_valid_test_data_iterators`: every rank reads its own."""
        mpu, settings = import_savanna("savanna.mpu"), self.settings
        place = Place(
            mpu.get_data_parallel_rank(),
            mpu.get_data_parallel_world_size(),
            mpu.get_sequence_parallel_rank(),
            mpu.get_sequence_parallel_world_size(),
        )
        micro, num_micro = global_config.train_micro_batch_size_per_gpu, global_config.gradient_accumulation_steps
        per_step = global_config.train_batch_size * settings.window_bases
        if global_config.train_data_token_index is None:
            global_config.train_data_token_index = global_config.iteration * per_step
        start_step = -(-global_config.train_data_token_index // per_step)
        global_config.train_data_token_index = start_step * per_step
        num_steps = global_config.train_iters
        global_config.train_val_test_num_samples = [num_steps * global_config.train_batch_size, 0, 0, 0]
        global_config.do_train, global_config.do_valid = int(num_steps > 0), int(global_config.eval_iters > 0)
        global_config.do_test, global_config.num_per_ds_evals = global_config.do_valid, 0
        samples = open_samples(settings, global_config.seed)
        loader = training_batches(settings, samples, place, global_config.train_batch_size, micro, start_step)
        self._closing.append(loader.close)
        train = ScaledBatches(iter(loader), num_micro, self._sum_over_ranks)
        num = global_config.eval_iters * num_micro
        held_out = [
            ScaledBatches(evaluation_batches(settings, paths, place, micro, num), 1, self._sum_over_ranks)
            if num
            else None
            for paths in (settings.get("valid_data_paths"), settings.get("test_data_paths"))
        ]
        return train, held_out[0], held_out[1], []

    def _sum_over_ranks(self, value: float) -> float:
        mpu = import_savanna("savanna.mpu")
        total = torch.tensor([value], dtype=torch.float64, device=own_device())
        dist.all_reduce(total)
        # Ranks of tensor parallelism have the same windows.
        return float(total) / mpu.get_model_parallel_world_size()

    # A step

    def forward_step(
        self,
        data_iterator: Iterator[ScaledBatch],
        model: Any,
        global_config: Any,
        timers: Any,
        return_logits: bool = False,
        is_train: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`savanna.training.forward_step`: the loss of a micro batch, scaled so that the gradients of all of a step's,
        as DeepSpeed averages them, are those of the weighted nats divided by the scored weight of the whole step."""
        if timers is not None:
            timers("batch generator").start()
        scaled = next(data_iterator)
        batch = scaled.batch.to(own_device())
        if timers is not None:
            timers("batch generator").stop()
        asked: dict[str, Any] = {}
        if model.module.context.num_ranks > 1:
            asked = {"left_patches": batch.left_patches, "first_positions": batch.first_positions}
        if return_logits:
            logits = model(batch.bases, batch.patch_lengths, **asked)
        asked |= {"loss_weights": batch.loss_weights, "loss_chunk_bases": self.settings.block.loss_chunk_bases}
        if model.module.training:
            asked |= {name: getattr(batch, name) for name in model.module.auxiliary_inputs}
        # ZeRO 3 rebuilds a named tuple as a plain one.
        nats, auxiliary_nats, _ = Prediction(*model(batch.bases, batch.patch_lengths, **asked))
        if auxiliary_nats is not None:
            nats = nats + auxiliary_nats
        # DeepSpeed divides by the micro batches of a step, too.
        self._divisor = gradient_divisor(model)
        loss = nats * (scaled.num_micro_batches * self._divisor / scaled.total_weight if scaled.total_weight else 0.0)
        return (loss, logits) if return_logits else loss

    @property
    def _log_factor(self) -> float:
        """Savanna logs the mean over all ranks; on context ranks the loss is a sum."""
        mpu = import_savanna("savanna.mpu")
        return mpu.get_data_parallel_world_size() * mpu.get_sequence_parallel_world_size() / self._divisor

    # What is counted and kept

    def add_flops(self, global_config: Any) -> None:
        """`add_model_flop_utilization_inputs`: by the hybrid's own count, with the mean patch of the data."""
        settings, mfu = self.settings, import_savanna("savanna.mfu")
        per_base = training_flops_per_base(settings.model, settings.window_bases, mean_patch_bases(settings))
        flops = int(per_base * settings.window_bases * global_config.train_batch_size)
        global_config.model_flops_per_iteration = flops
        # Computing activations again is one more forward pass, a third of a step.
        global_config.hw_model_flops_per_iteration = flops * 4 // 3 if global_config.checkpoint_activations else flops
        global_config.theoretical_device_throughput = mfu.get_available_flops(torch.device("cuda"), torch.bfloat16)

    def flops_per_second(self, global_config: Any, model: Any, iter_time_s: float) -> float:
        """`savanna.logging.get_flops`: of each rank."""
        per_rank: float = global_config.model_flops_per_iteration / dist.get_world_size()
        return per_rank / iter_time_s

    def update_data_position(self, global_config: Any) -> None:
        """`update_data_loading_config`: Savanna's own unpickles the whole checkpoint for it, which torch has refused to
        do since 2.6."""
        folder = Path(global_config.load) / f"global_step{global_config.iteration}"
        names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise SavannaError(f"{folder} has neither {names[0]} nor {names[1]}: give load a folder of checkpoints")
        position = read_torch(path).get("data_loading") or {}
        if global_config.train_data_token_index is None:
            global_config.train_data_token_index = position.get("train_data_token_index")

    def save_checkpoint(self, save: Callable[..., None], **given: Any) -> None:
        """`savanna.training.save_checkpoint`, and the patcher that cut the data beside the weights."""
        save(**given)
        if dist.get_rank() == 0:
            source = Path(f"{patcher_folder(self.settings)}")
            target = Path(given["global_config"].save) / f"global_step{given['iteration']}" / PATCHER
            if source.is_dir():
                copy_patcher(source, target)
        dist.barrier()


def gradient_divisor(engine: Any) -> float:
    """What DeepSpeed divides the sum of all ranks' gradients by; through Savanna's mpu it knows of context ranks."""
    return float(engine.seq_dp_world_size / engine.sequence_parallel_size)


def load_into_savanna_blocks(model: HyenaBLT, settings: Settings) -> None:
    """Gives a hybrid with global blocks of Savanna's the weights of a native checkpoint; each rank takes its part.

    Args:
        model: fresh.
        settings: of the run.

    Raises:
        PretrainedError: there is no checkpoint, or it is broken.
        SavannaError: it is of another model.
    """
    assert settings.block.start_from is not None
    parts = read_parts(settings.block.start_from)
    if parts.config != settings.model:
        raise SavannaError(
            f"hyena-blt.start_from: {parts.folder} is a checkpoint of another model than Savanna's keys and hyena-blt "
            "describe: compare its config.yaml with them"
        )
    fast = bool(settings.get("fast_conv_proj", False))
    tensors, _ = to_savanna_weights(parts.tensors, settings.model, settings.block.window_patches, fast)
    mpu = import_savanna("savanna.mpu")
    rank, num_ranks = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    own = model.state_dict()
    for name, target in own.items():
        whole = tensors[name].load()
        cut = [dim for dim in range(whole.ndim) if whole.shape[dim] != target.shape[dim]]
        with torch.no_grad():
            target.copy_(whole.chunk(num_ranks, cut[0])[rank] if cut else whole)


def patcher_folder(settings: Settings) -> Path:
    """Where the annotation of the first dataset keeps its patcher."""
    return Path(settings.get("train_data_paths")[0]).parent / f"{settings.block.annotation}.patcher"


def copy_patcher(source: Path, target: Path) -> None:
    """Copies a patcher beside the weights of a checkpoint."""
    from hyena_blt_savanna.patching.patcher import Patcher

    Patcher.load(source).save(target)


def mean_patch_bases(settings: Settings) -> float:
    """Of the training data, weighed by their weights."""
    paths: Sequence[str] = settings.get("train_data_paths")
    weights = np.asarray(settings.get("train_data_weights", [1.0] * len(paths)), dtype=np.float64)
    means = []
    for path in paths:
        manifest = read_annotation_manifest(Path(path), settings.block.annotation)
        means.append(manifest.statistics["forward"].mean_bases)
    # Windows are as long everywhere: patches a base are what is averaged.
    return float(weights.sum() / (weights / np.asarray(means)).sum())
