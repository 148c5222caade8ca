"""What Savanna's own code makes of models and data, for tests: called on one rank."""

from __future__ import annotations

import contextlib
import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyena_blt_savanna.conversion.savanna_hybrid_weights import all_places, to_savanna_weights
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.evaluation.tensor_files import lazy
from hyena_blt_savanna.savanna_plugin.checkout import SavannaError, import_savanna
from hyena_blt_savanna.savanna_plugin.cpu_mode import cpu_mode
from hyena_blt_savanna.savanna_plugin.registration import registered
from hyena_blt_savanna.testing.savanna_mistakes import mistakes
from hyena_blt_savanna.testing.savanna_runs import (
    KEYS,
    configuration,
    initialised,
    logits_of_fixed_windows,
    plain_config,
    quietly,
    save_native,
    settings_of,
    train,
)
from hyena_blt_savanna.testing.toy_training import toy_windows
from hyena_blt_savanna.training.optimizer import OptimizerConfig, parameter_groups
from hyena_blt_savanna.training.ranks import join_ranks


def probe(data: Path, folder: Path) -> dict[str, Any]:
    """All that the tests look at."""
    join_ranks()
    return {
        "leaks": leaks(data, folder),
        "refusals": refusals(data, folder),
        "mistakes": mistakes(data, folder),
        "blocks": both_kinds_of_blocks(data, folder),
        "data": reads_data(data, folder),
    }


def plain_logits(data: Path) -> Tensor:
    """Of Savanna's own model on single bases, with fresh weights."""
    with quietly(), cpu_mode():
        global_config = plain_config(data)
        with initialised(global_config) as training:
            torch.manual_seed(3)
            model = training.get_model(global_config)
            for name, parameter in model.named_parameters():
                if name.endswith("conv_bias"):
                    # Savanna leaves it as the memory was.
                    torch.nn.init.zeros_(parameter)
            tokens = torch.randint(65, 90, (1, KEYS["seq_length"]), generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                logits: Tensor = model((tokens, None, None))
            return logits.clone()


def leaks(data: Path, folder: Path) -> dict[str, Any]:
    """What is another after a run than before it, and after one that failed; and the logits of Savanna's own model
    before and after both."""
    before = plain_logits(data)
    found, changed = _state(), []
    for steps, paths in ((2, data), (2, folder)):
        with contextlib.suppress(DataError):
            train(configuration(paths, train_iters=steps), folder)
        changed.append([key for key, value in _state().items() if found.get(key) is not value])
    return {"changed": changed, "before": before, "after": plain_logits(data)}


def refusals(data: Path, folder: Path) -> dict[str, str]:
    """What is said where only Savanna's code, or the model, can tell that something is wrong."""
    native = folder / "another"
    save_native(settings_of(configuration(data, blt_model={"local_width": 24}), folder / "refused"), native, seed=1)
    blocks = {"blt_global_blocks": "savanna"}
    cases: dict[str, dict[str, Any]] = {
        "unknown key": {"no_key_of_savannas": 1},
        "another model": {**blocks, "blt_start_from": str(native)},
        "another model of ours": {"blt_start_from": str(native)},
        "no checkpoint": {"load": str(folder), "iteration": 7},
        "long windows": {**blocks, "blt_window_patches": 4, "eval_iters": 1},
        "broken data": {"blt_annotation": "none"},
    }
    found = {}
    for name, changes in cases.items():
        try:
            train(configuration(data, train_iters=2, **changes), folder / "refused")
        except ValueError as error:
            found[name] = str(error)
    return found


def _state() -> dict[str, Any]:
    training, groups = import_savanna("savanna.training"), import_savanna("deepspeed.utils.groups")
    choices = import_savanna("savanna.arguments.global_config").operator_type_CHOICES
    state = {f"savanna.training.{name}": value for name, value in vars(training).items() if not name.startswith("__")}
    for name in ("utils", "mpu.layers", "mpu.data", "logging", "model.block", "model.operators.local.norms"):
        module = import_savanna(f"savanna.{name}")
        state |= {f"{name}.{key}": value for key, value in vars(module).items() if not key.startswith("__")}
    state |= {
        "empty_cache": torch.cuda.empty_cache,
        "groups.mpu": groups.mpu,
        "operators": len(choices),
        "stdout": sys.stdout,
        "gc": gc.isenabled(),
        "threads": torch._C._is_multithreading_enabled(),
        "optimizer": import_savanna("deepspeed.ops.adam").FusedAdam,
        "transformer_engine": sys.modules.get("transformer_engine"),
        "flash_attn": sys.modules.get("flash_attn"),
        "groups": import_savanna("savanna.mpu.initialize")._DATA_PARALLEL_GROUP,
    }
    return state


def both_kinds_of_blocks(data: Path, folder: Path) -> dict[str, Any]:
    """Logits with our global blocks and with Savanna's of the same weights, by the MLPs' activation; which weights of
    each decay; and what is said of windows that are too long for Savanna's."""
    found: dict[str, Any] = {}
    for activation in (None, "gelu"):
        config = configuration(
            data,
            blocks=["hyena_se", "flash_v2", "hyena_mr", "hyena", "flash_v2"],
            blt_global_blocks="savanna",
            parallel_glu_activation_default=activation,
        )
        settings = settings_of(config, folder / "blocks")
        with quietly(), cpu_mode(), registered(settings) as registration:
            global_config = settings.build_global_config(1)
            with initialised(global_config):
                generator = torch.Generator().manual_seed(1)
                ours = settings.model.build()
                for parameter in ours.parameters():
                    # The decoder starts with logits of nothing.
                    parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
                tensors = {name: lazy(value) for name, value in ours.state_dict().items()}
                positions = settings.block.window_patches
                state, _ = to_savanna_weights(tensors, settings.model, positions, fast_kernel=False)
                theirs = registration.get_model(global_config)
                theirs.load_state_dict({name: tensor.load() for name, tensor in state.items()})
                found[str(activation)] = logits_of_fixed_windows(ours), logits_of_fixed_windows(theirs)
                in_place = {place.savanna: place.ours for place in all_places(settings.model)}
                theirs_decay = _decaying(theirs, registration.parameter_groups(theirs, global_config))
                optimizer = OptimizerConfig()
                found["decaying"] = (
                    _decaying(ours, parameter_groups(ours, optimizer.weight_decay, optimizer.no_decay)),
                    sorted(in_place[name] for name in theirs_decay),
                )
                long = toy_windows(1, num_bases=600)
                try:
                    theirs(long.bases, long.patch_lengths)
                except SavannaError as error:
                    found["too long"] = str(error)
    return found


def _decaying(model: nn.Module, groups: list[dict[str, Any]]) -> list[str]:
    decaying = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    return sorted(name for name, parameter in model.named_parameters() if id(parameter) in decaying)


def reads_data(data: Path, folder: Path) -> dict[str, Any]:
    """Our dataset as Savanna reads it; and one that Savanna wrote in uint16, with its samples in Savanna's order."""
    with quietly(), cpu_mode(), initialised(plain_config(data)):
        indexed = import_savanna("savanna.data.indexed_dataset")
        sequence = import_savanna("savanna.data.sequence_dataset")
        ours = indexed.MMapIndexedDataset(str(data / "train"), skip_warmup=True)
        found = {"ours": [np.array(ours.get(index)) for index in range(len(ours))]}
        prefix = str(folder / "uint16")
        write_uint16(indexed, prefix)
        dataset = indexed.make_dataset(prefix, "mmap", skip_warmup=True)
        sizes, documents = dataset.sizes, np.arange(len(dataset))
        num_samples, length, seed = 40, 32, 7
        # What its C++ does for CPython 3.12 alone, its own Python does too.
        epochs = sequence._num_epochs(sequence._num_tokens(documents, sizes), length, num_samples)
        random = np.random.RandomState(seed=seed)
        doc_idx = sequence._build_doc_idx(documents, epochs, random)
        sample_idx = sequence._build_sample_idx(sizes, doc_idx, length, epochs, int(sizes.sum()))
        shuffle_idx = sequence._build_shuffle_idx(sample_idx.shape[0] - 1, random)
        for kind, array in (("doc", doc_idx), ("sample", sample_idx), ("shuffle", shuffle_idx)):
            np.save(f"{prefix}_train_0_indexmap_{num_samples}ns_{length}sl_{seed}s_{kind}_idx.npy", array)
        samples = sequence.SequenceDataset("train_0", prefix, documents, dataset, num_samples, length, seed)
        found["samples"] = [samples[index]["text"] for index in range(len(samples))]
        return found


def write_uint16(indexed: Any, prefix: str) -> None:
    """Some documents as Savanna's preprocessing writes them: with tags, lower case, and an end-of-document token."""
    builder = indexed.MMapIndexedDatasetBuilder(prefix + ".bin", dtype=np.uint16)
    generator = np.random.default_rng(2)
    for number, length in enumerate((5, 70, 33, 1, 200)):
        tag = f"|D__{number};P__X|".encode() if number % 2 else b""
        letters = bytes(generator.choice(np.frombuffer(b"ACGTacgtN", np.uint8), length))
        builder.add_item(np.frombuffer(tag + letters + b"\0", np.uint8).astype(np.uint16))
        builder.end_document()
    builder.finalize(prefix + ".idx")
