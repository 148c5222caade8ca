"""Whether two checkpoints give the same logits, without a whole isotropic model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights
from hyena_blt_savanna.evaluation.native_checkpoint import patch_places
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.nucleotides import Bytes

NUM_BASES = 512
TOLERANCE = 1e-3
"""Of the largest logit. A weight in a wrong place moves logits by their own size; another order of sums, or an epsilon
outside of a root, by less than this."""


def fixed_bases() -> Bytes:
    """The sequence that conversions are checked on: uint8 [512] of A, C, G and T, always the same."""
    letters = np.frombuffer(b"ACGT", np.uint8)
    return letters[np.random.default_rng(0).integers(0, 4, NUM_BASES)]


def logits_of(weights: ModelWeights) -> Tensor:
    """Logits of the fixed sequence, computed in fp32.

    A stack of bases is run with one layer's weights in memory at a time; any other model is built.

    Args:
        weights: of any model.

    Returns:
        float32 [1, L, V].
    """
    bases = fixed_bases()
    inputs = torch.from_numpy(bases.astype(np.int64))[None]
    config = weights.config
    if isinstance(config, IsotropicConfig) and config.kmers is None:
        with torch.device("meta"):
            module: nn.Module = config.build()
        _load_on_use(module, weights.tensors)
    else:
        with torch.random.fork_rng(devices=[]):
            module = config.build()  # type: ignore[attr-defined]
        for name, tensor in module.state_dict().items():
            tensor.copy_(weights.tensors[name].load())
    with torch.inference_mode():
        logits: Tensor = module.eval()(inputs, _patch_lengths(weights, bases))
    return logits.float()


def _patch_lengths(weights: ModelWeights, bases: Bytes) -> Tensor:
    places = patch_places(weights.config)
    if weights.patcher is not None:
        lengths = weights.patcher.segment_sequence(bases)
    else:
        lengths = np.full(len(bases) // places[1] if places else 1, places[1] if places else len(bases), np.int32)
    return torch.from_numpy(lengths)[None]


def _load_on_use(module: nn.Module, tensors: Mapping[str, LazyTensor]) -> None:
    """Gives each layer of a model on the meta device its weights when it runs, and takes them away again.

    Weights are used in their owners' `forward` only, which is what ZeRO 3 asks for too.
    """
    for prefix, part in module.named_modules():
        own = {
            name: tensors[f"{prefix}.{name}"]
            for name, _ in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
            if f"{prefix}.{name}" in tensors
        }
        if own:
            part.register_forward_pre_hook(_Loading(own))
            part.register_forward_hook(_Dropping(own))


class _Loading:
    def __init__(self, own: Mapping[str, LazyTensor]) -> None:
        self.own = own

    def __call__(self, part: nn.Module, args: Any) -> None:
        for name, tensor in self.own.items():
            _set(part, name, tensor.load().float())


class _Dropping:
    def __init__(self, own: Mapping[str, LazyTensor]) -> None:
        self.own = own

    def __call__(self, part: nn.Module, args: Any, output: Any) -> None:
        for name, tensor in self.own.items():
            _set(part, name, torch.empty(tensor.shape, device="meta"))


def _set(part: nn.Module, name: str, tensor: Tensor) -> None:
    if name in part._parameters:
        part._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    else:
        part._buffers[name] = tensor


def compare(source: Tensor, target: Tensor) -> dict[str, Any]:
    """How far the logits of two checkpoints are from each other.

    Args:
        source: [1, L, V].
        target: likewise.

    Returns:
        `num_bases`, `largest_logit` of the source, `largest_difference`.

    Raises:
        ConversionError: they are not the same model's.
    """
    largest, difference = float(source.abs().max()), float((source - target).abs().max())
    # A difference that is no number is not small.
    if not difference <= TOLERANCE * largest:
        raise ConversionError(
            f"the target's logits differ from the source's by up to {difference:.3g}, where the largest is "
            f"{largest:.3g}: the conversion is wrong, and nothing was written; --no-check writes it all the same"
        )
    return {"num_bases": source.shape[1], "largest_logit": largest, "largest_difference": difference}
