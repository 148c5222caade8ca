"""What torch's counter of operations sees in a pass, by the parts that `flops` methods give.

`FlopCounterMode` counts matrix products. Here it is taught the other operations that `model.flops` has formulas for:
the products of shifted convolutions, Fourier transforms and the products of spectra. Of attention it counts all pairs
of a query and a key; here only the pairs that the mask lets through count. Nothing is taken from a configuration: the
counts come from the tensors that a pass makes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from hyena_blt_savanna.model.convolution import BackendName, choosing_backends
from hyena_blt_savanna.model.flops import LONGEST_COUNTED_DIRECTLY, real_transform

_ATEN = torch.ops.aten

PARTS: list[tuple[str, str]] = [
    (r"^HyenaBLT\.encoder\b", "local_encoder"),
    (r"^HyenaBLT\.decoder\.head$", "head"),
    (r"^HyenaBLT\.decoder\b", "local_decoder"),
    (r"^Isotropic\.(embedding|head)$", "head"),
    (r"^HNet\.(encoder|decoder|router|residual)\b", r"\1"),
    (r"^HNet:product$", "running_mean"),
    (r"^(HNet|KmerTokens)\.head$", "head"),
    (r"\.mixer\.(in|out)_projection$", "projections"),
    (r"\.mlp\b", "mlp"),
    (r"\.(featurizer|operator):shifted$", "short_convolutions"),
    (r"\.(featurizer|operator):fourier$", "fourier_convolutions"),
    (r"\.operator(\.implicit_filter\b.*)?:product$", "filters"),
    (r"\.mixer:product$", "attention"),
]
"""Patterns of MODULE or MODULE:KIND, and the part that such operations belong to, in which \\1 stands for a
pattern's group; the first that matches counts."""


def count_by_part(model: nn.Module, *inputs: Any) -> dict[str, float]:
    """Operations of one forward pass, by part.

    Args:
        model: any architecture.
        inputs: what its `forward` takes.

    Returns:
        Operations of the parts that have any; those of modules that no pattern of PARTS matches under the module.
    """
    with torch.no_grad():
        found = count_by_module(lambda: model(*inputs))
    by_part: defaultdict[str, float] = defaultdict(float)
    for (module, kind), count in found.items():
        by_part[_part(module, kind)] += count
    return dict(by_part)


def count_by_module(run: Callable[[], Any], all_pairs: bool = False) -> dict[tuple[str, str], float]:
    """Operations of whatever `run` does.

    Args:
        run: a forward pass, or a forward and a backward one.
        all_pairs: count masked pairs of attention too; a backward pass can't tell them apart.

    Returns:
        Operations of each innermost module, named from the class of the outermost one, and each kind: product (of
        matrices), shifted or fourier.
    """
    # torch has no count for the fused attention of a CPU.
    with (
        sdpa_kernel(SDPBackend.MATH),
        choosing_backends(_as_counted),
        _Counter() as counter,
        nullcontext() if all_pairs else _MaskedPairs(counter),
    ):
        run()
    return dict(counter.found)


def _as_counted(x: Tensor, taps: Tensor) -> BackendName:
    return "shifted" if taps.shape[1] <= LONGEST_COUNTED_DIRECTLY else "fourier"


def _part(module: str, kind: str) -> str:
    for pattern, part in PARTS:
        found = re.search(pattern, module) or re.search(pattern, f"{module}:{kind}")
        if found:
            return found.expand(part)
    return module


class _Counter(FlopCounterMode):
    """Keeps the innermost module of each operation.

    Attributes:
        found: operations by module and kind.
        share: of the products counted now that are wanted.
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping={op: count for op, (_, count) in _TAUGHT.items()})
        self.found: defaultdict[tuple[str, str], float] = defaultdict(float)
        self.share = 1.0

    def _count_flops(self, func_packet: Any, out: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func_packet in self.flop_registry:
            count = self.flop_registry[func_packet](*args, **kwargs, out_val=out)
            kind = _TAUGHT[func_packet][0] if func_packet in _TAUGHT else "product"
            if count:
                self.found[max(self.mod_tracker.parents, key=_depth), kind] += count * self.share
        return out


class _MaskedPairs(TorchFunctionMode):
    """Scales the products within attention to the pairs that the mask lets through."""

    def __init__(self, counter: _Counter) -> None:
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key = args[:2]
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        num_queries, num_keys = query.shape[-2], key.shape[-2]
        if kwargs.get("is_causal", False):
            mask = torch.ones(num_queries, num_keys, dtype=torch.bool).tril()
        if mask is not None:
            self._counter.share = float((mask if mask.dtype == torch.bool else mask.isfinite()).double().mean())
        try:
            return func(*args, **kwargs)
        finally:
            self._counter.share = 1.0


def _depth(module: str) -> int:
    return -1 if module == "Global" else module.count(".")


def _product_of_a_tap(y: Tensor, weight: Any, *_: Any, **__: Any) -> int:
    is_tap = isinstance(weight, Tensor) and y.ndim == 3 and weight.shape == (y.shape[0], 1, 1)
    return 2 * y.numel() if is_tap else 0


def _further_tap(y: Tensor, *_: Any, **__: Any) -> int:
    return 2 * y.numel()


def _product_of_spectra(spectrum: Tensor, *_: Any, **__: Any) -> int:
    return 6 * spectrum.numel() if spectrum.is_complex() else 0


def _transform(x: Tensor, *_: Any, **__: Any) -> float:
    return x[..., 0].numel() * real_transform(x.shape[-1])


def _transform_back(spectrum: Tensor, dims: Any, normalization: Any, size: int, **_: Any) -> float:
    return spectrum[..., 0].numel() * real_transform(size)


_TAUGHT: dict[Any, tuple[str, Callable[..., float]]] = {
    _ATEN.mul: ("shifted", _product_of_a_tap),
    _ATEN.addcmul_: ("shifted", _further_tap),
    _ATEN.mul_: ("fourier", _product_of_spectra),
    _ATEN._fft_r2c: ("fourier", _transform),
    _ATEN._fft_c2r: ("fourier", _transform_back),
}
for _, _count in _TAUGHT.values():
    _count._get_raw = True  # type: ignore[attr-defined]
