"""The blocks of an isotropic model as the global model of a Hyena-BLT, with fresh local modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from hyena_blt_savanna.config import ConfigError, merge
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights, check_tensors, state_shapes
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, lazy
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig

LOCAL_MODULES: dict[str, Any] = {
    "local_width": 96,
    "max_patch_bases": 16,
    "kmers": {"sizes": [2, 3, 4, 5, 6, 7, 8]},
    "encoder": {"blocks": []},
    "decoder": {"blocks": ["gated_convolution"], "num_taps": 4, "hidden_width": 192},
}
"""Those of configs/model/quickstart.yaml."""
FROZEN = ["global_model.*"]
TRAIN_LOCAL, TRAIN_ALL = "train_local.yaml", "train_all.yaml"
_SEED = 0


def into_hyena_blt(weights: ModelWeights, sources: Sequence[str | Path] = ()) -> ModelWeights:
    """Puts the blocks and the final norm of an isotropic model into a hybrid.

    Embedding and head stay behind: a patch is no base, and the local modules have their own.

    Args:
        weights: of an isotropic model.
        sources: YAML files and `key=value` of the hybrid; with a `model:` at the top, or without. What they leave out
            is the source's (`global_model`), or the quickstart's (all else).

    Raises:
        ConversionError: the source is no isotropic model, or the configuration doesn't fit its blocks.
    """
    if not isinstance(weights.config, IsotropicConfig):
        kind = weights.config.to_dict()["kind"]
        raise ConversionError(
            f"--into hyena_blt takes the blocks of an isotropic model, and this one is of kind {kind}"
        )
    config = _hybrid_config(weights.config, sources)
    wanted = state_shapes(config)
    tensors: dict[str, LazyTensor] = {
        name.replace("stack.", "global_model.", 1): tensor
        for name, tensor in weights.tensors.items()
        if name.startswith("stack.")
    }
    is_global = "global_model."
    check_tensors(
        "the global model of --config",
        {name: shape for name, shape in wanted.items() if name.startswith(is_global)},
        {name: tensor.shape for name, tensor in tensors.items()},
    )
    fresh = _fresh_local_weights(config)
    tensors |= {name: lazy(fresh[name]) for name in wanted if not name.startswith(is_global)}
    left = sorted({name for name in weights.tensors if not name.startswith("stack.")})
    notes = (
        *weights.notes,
        f"{', '.join(left)} of the isotropic model stay behind; the local modules are drawn afresh (seed {_SEED})",
    )
    ordered = {name: tensors[name] for name in wanted}
    # Neither the window, which was one of single bases, nor the data say anything about the hybrid.
    return ModelWeights(config, ordered, notes=notes)


def with_global_model_of(source: ModelWeights, hybrid: ModelWeights) -> ModelWeights:
    """The isotropic source with the hybrid's global model in the place of its own blocks: what the two must agree in.

    Args:
        source: what the hybrid's global model was taken from.
        hybrid: of `into_hyena_blt`, read back.
    """
    assert isinstance(source.config, IsotropicConfig)
    assert isinstance(hybrid.config, HyenaBLTConfig)
    config = source.config.model_copy(update={"stack": hybrid.config.global_model})
    blocks = {
        name.replace("global_model.", "stack.", 1): tensor
        for name, tensor in hybrid.tensors.items()
        if name.startswith("global_model.")
    }
    return ModelWeights(config, {**source.tensors, **blocks})


def _hybrid_config(source: IsotropicConfig, sources: Sequence[str | Path]) -> HyenaBLTConfig:
    stack = source.stack.to_dict()
    try:
        given = merge(sources) if sources else {}
        given = given.get("model", given)
        if not isinstance(given, Mapping):
            raise ConversionError(f"--config: model must be a mapping, not {given!r}")
        tree = {**LOCAL_MODULES, **given}
        tree["global_model"] = _filled(stack, given.get("global_model", {}))
        return HyenaBLTConfig.parse(tree, "--config")
    except ConfigError as error:
        raise ConversionError(str(error)) from error


def _filled(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with `defaults` where it says nothing."""
    filled = dict(defaults)
    for key, value in given.items():
        before = filled.get(key)
        nested = isinstance(value, Mapping) and isinstance(before, Mapping)
        filled[key] = _filled(before, value) if nested else value  # type: ignore[arg-type]
    return filled


def _fresh_local_weights(config: HyenaBLTConfig) -> dict[str, torch.Tensor]:
    # The local modules depend on the global model's width alone: it is built with one small block.
    stack = config.global_model
    small = stack.model_copy(
        update={"blocks": ["hyena_se"], "mlp": stack.mlp.model_copy(update={"width": 1})},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module = config.model_copy(update={"global_model": small}).build()
    return {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("global_model.")}


def write_training_files(config: HyenaBLTConfig, folder: Path, native: Path) -> None:
    """Writes what trains the hybrid: the local modules alone first, then all of it.

    Args:
        config: of the hybrid.
        folder: where the files go.
        native: what the first training starts from; runs get names beside it.
    """
    model = config.to_dict()
    local, everything = (str(native.with_name(native.name + ending)) for ending in ("-local", "-all"))
    stages = {
        TRAIN_LOCAL: {"run": local, "start_from": str(native), "model": model, "training": {"frozen": FROZEN}},
        TRAIN_ALL: {"run": everything, "start_from": local, "model": model, "training": {"frozen": []}},
    }
    for name, tree in stages.items():
        (folder / name).write_text(yaml.safe_dump(tree, sort_keys=False))
