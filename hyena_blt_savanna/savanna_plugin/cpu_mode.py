"""Savanna on a machine without CUDA, for tests: each replacement, what it stands in for and why.

Never active where CUDA is: `cpu_mode` refuses. Nothing here changes what is computed but where it says so.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hyena_blt_savanna.savanna_plugin.checkout import SavannaError, import_savanna
from hyena_blt_savanna.savanna_plugin.replacements import Replacements

CPU = torch.device("cpu")


@contextmanager
def cpu_mode() -> Iterator[None]:
    """Savanna's code runs on the CPU while this lasts.

    Raises:
        SavannaError: there is a CUDA device, or Savanna is missing.
    """
    if torch.cuda.is_available():
        raise SavannaError("the CPU mode is for machines without CUDA, and this one has it: leave it out")
    if is_on():
        yield
        return
    with Replacements() as replaced:
        with Replacements() as stand_ins:
            # Only while Savanna is imported: others would take them for the real packages.
            _without_gpu_packages(stand_ins)
            training = import_savanna("savanna.training")
            import_savanna("savanna.model.operators.attention.flash")
        _without_cuda(replaced)
        _without_kernels(replaced)
        # Its initialisation asserts that there is CUDA unless it is told otherwise.
        initialize = training.initialize_megatron
        replaced.set(
            training, "initialize_megatron", lambda global_config: initialize(global_config, allow_no_cuda=True)
        )
        yield


def is_on() -> bool:
    """Whether Savanna runs on the CPU now."""
    training = sys.modules.get("savanna.training")
    return training is not None and isinstance(vars(training).get("torch"), _Torch)


def _without_gpu_packages(stand_ins: Replacements) -> None:
    """savanna.model.operators.local.norms imports transformer_engine whether its norms are used or not, and attention
    imports flash_attn. Empty modules of these names let them be imported; what is asked of them is refused."""
    for name, contents in (
        ("transformer_engine", {}),
        ("transformer_engine.pytorch", {}),
        ("flash_attn", {"flash_attn_qkvpacked_func": _refuse, "flash_attn_triton": None}
                       | {"flash_attn_varlen_qkvpacked_func": attention}),
    ):  # fmt: skip
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        module.__getattr__ = _missing_in(name)  # type: ignore[method-assign]
        vars(module).update(contents)
        stand_ins.set_item(sys.modules, name, module)
    vars(sys.modules["transformer_engine"])["pytorch"] = sys.modules["transformer_engine.pytorch"]


def _missing_in(package: str) -> Any:
    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # Savanna takes an ImportError for "not installed", and goes on without.
        raise ImportError(f"{package}.{name} needs CUDA, and this is the CPU mode: set use_fp8_* to false")

    return missing


def _refuse(*_: Any, **__: Any) -> Any:
    raise SavannaError("this attention needs CUDA: in the CPU mode use the operator flash_v2")


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """`flash_attn_varlen_qkvpacked_func` for sequences of one length, in any dtype.

    Args:
        qkv: [B L, 3, H, D].
        cu_seqlens: int32 [B + 1], where sequences begin.
        max_seqlen: L.
        dropout_p: 0; nothing else is used in training on a CPU.
        softmax_scale: of the scores; None: 1 / sqrt(D).
        causal: whether a position sees itself and those before it only.

    Returns:
        [B L, H, D].
    """
    assert dropout_p == 0.0
    assert len(qkv) == (len(cu_seqlens) - 1) * max_seqlen
    q, k, v = (part.unflatten(0, (-1, max_seqlen)).transpose(1, 2) for part in qkv.unbind(1))
    z = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale)
    return z.transpose(1, 2).flatten(0, 1)


class _Cuda:
    """What Savanna's modules see as `torch.cuda`: one device, which is the CPU; nothing to wait for."""

    LongTensor = staticmethod(torch.LongTensor)
    Event, Stream = torch.cuda.Event, torch.cuda.Stream

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        # The groups of ranks are only made where there are devices, and rank % device_count must be the local rank.
        return 1 << 30

    @staticmethod
    def current_device() -> torch.device:
        return CPU

    @staticmethod
    def get_device_name(_: object = None) -> str:
        # No device whose peak rate is listed: utilisation is left out of the log.
        return "cpu"

    @staticmethod
    def memory_stats(*_: object) -> dict[str, int]:
        # AllocStats compares three of these between steps.
        return dict.fromkeys(("num_alloc_retries", "num_device_alloc", "num_device_free"), 0)

    @staticmethod
    def memory_stats_as_nested_dict(*_: object) -> dict[str, Any]:
        return {}

    @staticmethod
    def memory_allocated() -> int:
        return 0

    max_memory_allocated = memory_reserved = max_memory_reserved = memory_allocated

    @staticmethod
    def get_rng_state() -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def nothing(*_: object) -> None:
        """For synchronize, set_device and the like."""

    synchronize = set_device = set_rng_state = empty_cache = nothing


class _Torch(ModuleType):
    """`torch`, as a module of Savanna's sees it: all of it, and another `cuda`."""

    cuda = _Cuda

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _without_cuda(replaced: Replacements) -> None:
    """Gives each imported module of Savanna's a `torch` whose `cuda` is the CPU, and puts what it would allocate on
    "cuda" there. The rest of the program keeps its own torch."""
    stand_in = _Torch("torch")
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "savanna" or module is None:
            continue
        if vars(module).get("torch") is torch:
            replaced.set(module, "torch", stand_in)
        if "ALLOC_DEVICE" in vars(module):
            # Imported by value into several modules.
            replaced.set(module, "ALLOC_DEVICE", "cpu")


def _without_kernels(replaced: Replacements) -> None:
    training, utils = import_savanna("savanna.training"), import_savanna("savanna.utils")
    data, flash = import_savanna("savanna.mpu.data"), import_savanna("savanna.model.operators.attention.flash")
    checkpointing = import_savanna("deepspeed.runtime.activation_checkpointing.checkpointing")
    adam = import_savanna("deepspeed.ops.adam")
    # DeepSpeed's FusedAdam is compiled at its first use, for minutes; torch's AdamW is the same update.
    replaced.set(adam, "FusedAdam", torch.optim.AdamW)
    # They ask CUDA for generators of their own, for dropout under tensor parallelism.
    replaced.set(checkpointing, "model_parallel_cuda_manual_seed", lambda seed: None)
    replaced.set(checkpointing, "get_cuda_rng_tracker", _RandomStates)
    # It copies by Tensor.cuda().
    replaced.set(utils, "get_total_params", total_params)
    replaced.set(training, "get_total_params", total_params)
    replaced.set(data, "broadcast_data", broadcast_data)
    replaced.set(import_savanna("savanna.mpu"), "broadcast_data", broadcast_data)
    # It asserts a half precision on CUDA before it calls flash_attn.
    replaced.set(flash.FlashSelfAttention, "forward", _flash_self_attention)


class _RandomStates:
    """DeepSpeed's tracker of CUDA's random states, with none: everything draws from torch's generator."""

    @contextmanager
    def fork(self, *_: object) -> Iterator[None]:
        yield

    def get_states(self) -> dict[str, Any]:
        """Of no generators."""
        return {}

    def set_states(self, states: dict[str, Any]) -> None:
        """Of no generators."""


def total_params(model: torch.nn.Module) -> int:
    """`savanna.utils.get_total_params`: weights over the ranks of tensor parallelism, of one data-parallel rank."""
    mpu = import_savanna("savanna.mpu")
    own = sum(parameter.nelement() for parameter in model.parameters()) if mpu.get_data_parallel_rank() == 0 else 0
    total = torch.tensor([own])
    torch.distributed.all_reduce(total)
    return int(total)


def broadcast_data(keys: list[str], data: dict[str, Tensor] | None, datatype: torch.dtype) -> dict[str, Tensor]:
    """`savanna.mpu.broadcast_data`, one tensor at a time.

    Args:
        keys: of `data`.
        data: on the first rank of each group; not looked at on the others.
        datatype: of all of it.
    """
    mpu = import_savanna("savanna.mpu")
    found: list[Any] = [None]
    if mpu.get_model_parallel_rank() == 0 and mpu.get_sequence_parallel_rank() == 0:
        assert data is not None
        found = [{key: data[key].to(datatype) for key in keys}]
    for source, group in (
        (mpu.get_model_parallel_src_rank(), mpu.get_model_parallel_group()),
        (mpu.get_sequence_parallel_src_rank(), mpu.get_sequence_parallel_group()),
    ):
        torch.distributed.broadcast_object_list(found, source, group=group)
    tensors: dict[str, Tensor] = found[0]
    return tensors


def _flash_self_attention(
    self: Any, qkv: Tensor, causal: bool | None = None, cu_seqlens: Tensor | None = None, max_seqlen: int | None = None
) -> Tensor:
    assert cu_seqlens is not None
    assert max_seqlen is not None
    is_causal = self.causal if causal is None else causal
    return attention(qkv, cu_seqlens, max_seqlen, softmax_scale=self.softmax_scale, causal=is_causal)
