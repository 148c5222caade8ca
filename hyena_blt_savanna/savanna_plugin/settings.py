"""The configuration of a run inside Savanna: its own YAML files, and the block hyena-blt."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.conversion.foreign_yaml import merge_foreign
from hyena_blt_savanna.conversion.savanna_hybrid import (
    BLOCK,
    OWN_OPERATORS,
    HybridBlock,
    parse_block,
    parse_hybrid,
    with_savanna_operators,
)
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.savanna_plugin.checkout import SavannaError, import_savanna

CONFIG_COPY = "hyena_blt.yml"
"""What the merged configuration is called in a checkpoint's `configs/`."""

_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "to_upper": ((None, "normalized_weighted"), "bases are read in upper case, and lower case is a weight of the loss, "
                 "divided by the sum of the weights"),
    "pretraining_strategy": ((None, "AR"), "the model predicts the next base"),
    "alignment_method": ((None,), "the model is pretrained only"),
    "pipe_parallel_size": ((None, 0, 1), "the model isn't cut into stages"),
    "tokenizer_type": (("CharLevelTokenizer",), "bases are bytes"),
    "checkpoint_validation_with_forward_pass": ((None, False), "it calls the model with tokens alone"),
    "curriculum_learning": ((None,), "windows are of one length"),
    "soft_prompt_tuning": ((None,), "all weights are trained"),
    "lr_medium_hyena": ((None,), "the schedule gives all groups one rate"),
    "data_path": ((None,), "give train-data-paths, valid-data-paths and test-data-paths"),
    "hidden_dropout": ((0,), "the model has no dropout, and Savanna's default is 0.1"),
    "attention_dropout": ((0,), "the model has no dropout, and Savanna's default is 0.1"),
    "weight_by_num_documents": ((None, False), "give train-data-weights"),
}  # fmt: skip
"""Keys of Savanna's that can have some values only, and why."""
_WITH_SAVANNA_BLOCKS: dict[str, tuple[tuple[Any, ...], str]] = {
    "sequence_parallel": ((None, False), "the local modules need all of a window's bases"),
}


@dataclass(frozen=True)
class Settings:
    """A run's configuration.

    Attributes:
        where: the files, for messages.
        keys: Savanna's, without hyphens and without our block.
        block: ours.
        model: what both describe.
    """

    where: str
    keys: dict[str, Any]
    block: HybridBlock
    model: HyenaBLTConfig

    @property
    def window_bases(self) -> int:
        """Savanna's seq_length."""
        length: int = self.keys["seq_length"]
        return length

    @property
    def repeat_weight(self) -> float:
        """Of lower-case bases in the loss: Savanna's, where it makes them upper case."""
        if self.keys.get("to_upper") is None:
            return 1.0
        return float(self.keys.get("lowercase_loss_reweighting", 1.0))

    def get(self, key: str, default: Any = None) -> Any:
        """A key of Savanna's, where it is given and not null."""
        value = self.keys.get(key)
        return default if value is None else value

    def build_global_config(self, num_ranks: int) -> Any:
        """Savanna's GlobalConfig; the operators' names must be registered.

        Args:
            num_ranks: of the run.

        Raises:
            SavannaError: Savanna refuses a key or a value.
        """
        arguments = import_savanna("savanna.arguments")
        keys = {**self.keys, "config_files": {CONFIG_COPY: self._copy()}}
        # Savanna counts the devices of this machine, which a run on a CPU has none of.
        keys.setdefault("global_num_gpus", num_ranks)
        # By its metadata: Savanna puts a module in its place that is imported at its first use.
        if not list(importlib.metadata.distributions(name="wandb")):
            keys.setdefault("use_wandb", False)
        try:
            return arguments.GlobalConfig.from_dict(keys)
        except (TypeError, ValueError, AssertionError, KeyError) as error:
            raise SavannaError(f"{self.where}: Savanna refuses this configuration: {error}") from error

    def _copy(self) -> str:
        block = {key: value for key, value in self.block.to_dict().items() if key != "start_from"}
        return yaml.safe_dump({**self.keys, "hyena-blt": block}, sort_keys=False)


def read_settings(sources: Sequence[str | Path]) -> Settings:
    """Reads Savanna's YAML files with our block, and `key=value`; the last one of a key wins.

    Args:
        sources: of the command line.

    Raises:
        ConversionError: a file is missing or is no YAML, or a key is missing or has a value that isn't converted.
        SavannaError: a key has a value that this model can't be trained with.
    """
    where = " ".join(map(str, sources))
    found: dict[str, Any] = {}
    for source in sources:
        tree = merge_foreign([source])
        if isinstance(tree.get(BLOCK), dict) and isinstance(found.get(BLOCK), dict):
            # Within our block, too, a file or a key changes what it names, and nothing else.
            tree[BLOCK] = _merged(found[BLOCK], tree[BLOCK])
        found |= tree
    block, model = parse_block(found, where), parse_hybrid(found, where)
    keys = {key: value for key, value in found.items() if key != BLOCK}
    if block.global_blocks == "savanna":
        # ParallelBlock knows its own names only.
        keys = with_savanna_operators(keys)
    settings = Settings(where, keys, block, model)
    _check(settings)
    return settings


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _merged(below[key], above[key])
    return merged


def _check(settings: Settings) -> None:
    rules = {**_ONLY, **(_WITH_SAVANNA_BLOCKS if settings.block.global_blocks == "savanna" else {})}
    problems = [
        f"{key} is {settings.get(key)!r}, and can be {' or '.join(map(_spelled, allowed))} only: {reason}"
        for key, (allowed, reason) in rules.items()
        if settings.get(key) not in allowed
    ]
    problems += _check_paths(settings.keys)
    num_context = settings.get("context_parallel_size", 1)
    try:
        settings.model.global_model.check_context(num_context)
    except ConfigError as error:
        problems.append(str(error).replace("parallel.context", "context_parallel_size"))
    if settings.block.global_blocks == "savanna":
        problems += _check_savanna_blocks(settings, num_context)
    elif settings.get("model_parallel_size", 1) > 1:
        problems.append("model_parallel_size is above 1, and our own blocks aren't cut: set hyena-blt.global_blocks "
                        "to savanna, or use context_parallel_size")  # fmt: skip
    if problems:
        listed = "\n".join(f"  {line}" for line in problems)
        raise SavannaError(f"{settings.where}: {len(problems)} mistake(s)\n{listed}")


def _spelled(value: Any) -> str:
    return "left out" if value is None else repr(value)


def _check_paths(keys: Mapping[str, Any]) -> list[str]:
    problems = []
    for split in ("train", "valid", "test"):
        paths, weights = keys.get(f"{split}_data_paths"), keys.get(f"{split}_data_weights")
        if not isinstance(paths, list) or not paths:
            problems.append(f"{split}-data-paths must list the datasets (paths without .bin); Savanna wants all three")
        elif weights is not None and len(weights) != len(paths):
            problems.append(f"{split}-data-weights has {len(weights)} weights, and {split}-data-paths {len(paths)}")
    return problems


def _check_savanna_blocks(settings: Settings, num_context: int) -> list[str]:
    problems = []
    if settings.block.window_patches % (2 * num_context):
        problems.append(
            f"hyena-blt.window_patches is {settings.block.window_patches}, and Savanna cuts it into 2 x "
            f"context_parallel_size pieces: make it a multiple of {2 * num_context}"
        )
    if num_context > 1 and settings.get("pos_emb") == "rotary" and "attention" in settings.model.global_model.blocks:
        problems.append(
            "pos-emb is rotary, which numbers the positions of each context rank from 0 (savanna.model.operators."
            "positional_embeddings.RotaryEmbedding): use rotary_linear_scaled with rotary_emb_scaling_factor 1"
        )
    if not torch.cuda.is_available():
        on = [key for key in settings.keys if key.startswith("use_fp8") and settings.keys[key]]
        problems += [
            f"{key} needs TransformerEngine and CUDA, and this machine has none: set it to false" for key in on
        ]
        if settings.get("fast_conv_proj") or settings.get("fast_conv_mixer"):
            problems.append("fast_conv_proj and fast_conv_mixer need causal_conv1d and CUDA: set them to false")
    return problems


def operator_names() -> tuple[str, ...]:
    """Names of operators that Savanna gets to know."""
    return tuple(OWN_OPERATORS)
