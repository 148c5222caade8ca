"""What training steps really take on each rank: bytes of tensors that are alive, or of memory that is resident."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from hyena_blt_savanna.data.batches import Batch
from hyena_blt_savanna.data.slices import slice_batch
from hyena_blt_savanna.evaluation.native_checkpoint import patch_places
from hyena_blt_savanna.model.fused import without_kernels
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.parallel.mesh import Mesh
from hyena_blt_savanna.training.engine import Precision, TrainingEngine
from hyena_blt_savanna.training.live_memory import LiveMemory
from hyena_blt_savanna.training.model_config import ModelConfig, build_model
from hyena_blt_savanna.training.ranks import Ranks, join_ranks
from hyena_blt_savanna.training.rehearsal import GRADIENTS, PARAMETERS, Pass, Rehearsal, batch_of, count_pass

NUM_STEPS = 2
"""The first makes the optimizer's averages; the second has everything from its start on."""
_WARM_BASES = 512


@dataclass(frozen=True)
class MemoryCase:
    """Training steps of a fresh model.

    Attributes:
        model: its configuration, as plain values, activation checkpointing included.
        window_bases: of the windows.
        micro_batch_windows: of a pass of one rank.
        num_micro_batches: of a step.
        num_context: ranks that share a window.
        zero: DeepSpeed's zero_optimization.
        precision: of the matrix products.
        loss_chunk_bases: bases whose logits exist at a time.
    """

    model: dict[str, Any]
    window_bases: int
    micro_batch_windows: int = 1
    num_micro_batches: int = 1
    num_context: int = 1
    zero: Mapping[str, Any] = field(default_factory=dict)
    precision: Precision = "fp32"
    loss_chunk_bases: int | None = 16_384

    def config(self) -> ModelConfig:
        """The model's configuration."""
        config: ModelConfig = TypeAdapter(ModelConfig).validate_python(self.model)
        return config

    def one_pass(self) -> Pass:
        """What a rank computes at a time."""
        return Pass(
            self.config(),
            self.window_bases,
            self.micro_batch_windows,
            self.num_context,
            precision=self.precision,
            loss_chunk_bases=self.loss_chunk_bases,
        )


def live_bytes(cases: Sequence[MemoryCase]) -> list[int]:
    """Most bytes of tensors alive on this rank while DeepSpeed trains each case. Every rank calls.

    Operation by operation, as a rehearsal computes; kernels of several operations keep a few temporaries less.
    """
    found = []
    for case in cases:
        memory = LiveMemory(rehearsal=False)
        with memory:
            _train(case, join_ranks(), with_kernels=False)
        found.append(sum(memory.peak.values()))
        gc.collect()
    return found


def live_parts(cases: Sequence[MemoryCase]) -> list[Rehearsal]:
    """What one real pass of each case keeps alive on this rank; what `rehearse` tells of the last one."""
    found = []
    for case in cases:
        mesh, wanted = replace(join_ranks(), num_context=case.num_context).mesh, case.one_pass()
        memory = LiveMemory(rehearsal=False, apart=(PARAMETERS, GRADIENTS))
        found.append(count_pass(wanted, batch_of(wanted, mesh.context), mesh.build_context(), memory))
    return found


def live_bytes_and_parts(trained: Sequence[MemoryCase], passed: Sequence[MemoryCase]) -> tuple[Any, Any]:
    """`live_bytes` of some cases and `live_parts` of others, in one group of ranks."""
    return live_bytes(trained), live_parts(passed)


def resident_bytes(case: MemoryCase) -> int:
    """How far the resident set of this process rises while DeepSpeed trains a case. Every rank calls, once a process.

    What libraries take at their first use is not counted: the same steps on a short window come first.
    """
    ranks = join_ranks()
    _train(replace(case, window_bases=_WARM_BASES, micro_batch_windows=1), ranks)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    _train(case, ranks)
    return _status_bytes("VmHWM") - before


def random_batch(case: MemoryCase, mesh: Mesh) -> Batch:
    """A rank's slice of windows of random bases, in patches of 1 to 15 bases, 8 on average."""
    config = case.config()
    generator = torch.Generator().manual_seed(mesh.data)
    lengths = torch.ones(case.micro_batch_windows, case.window_bases + 1, dtype=torch.int32)
    if patch_places(config) is not None:
        num_patches = 1 + round(case.window_bases / case.one_pass().mean_patch_bases)
        lengths = torch.randint(1, 16, (case.micro_batch_windows, num_patches), generator=generator, dtype=torch.int32)
        lengths[:, 0] = 1
    shape = (len(lengths), int(lengths.sum(1).max()))
    bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, shape, generator=generator)]
    batch = Batch(bases, lengths, torch.ones(shape), entropies=torch.ones(shape))
    if mesh.num_context == 1:
        return batch
    assert isinstance(config, HyenaBLTConfig | IsotropicConfig)
    return slice_batch(batch, mesh.context, mesh.num_context, config.num_left_patches)


def _train(case: MemoryCase, ranks: Ranks, with_kernels: bool = True) -> None:
    ranks = replace(ranks, num_context=case.num_context)
    model = build_model(case.config(), ranks.mesh.build_context())
    block = {"zero_optimization": dict(case.zero)}
    engine = TrainingEngine(
        model,
        ranks,
        gradient_clipping=1.0,
        precision=case.precision,
        deepspeed_block=block,
        loss_chunk_bases=case.loss_chunk_bases,
    )
    batch = random_batch(case, ranks.mesh)
    with nullcontext() if with_kernels else without_kernels():
        for _ in range(NUM_STEPS):
            engine.accumulate([batch] * case.num_micro_batches)
            engine.update(lr=1e-3)


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"/proc/self/status has no {key}")
