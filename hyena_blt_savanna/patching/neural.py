"""The `neural` entropy model: the isotropic model with blocks of a finite reach.

Each base is judged by the same number of bases before it, wherever a chunk of the stream begins: what a pass needs of
the bases before it is carried over (`parallel.stream`), so nothing is read twice, and one base at a time is read by
the same code as a million. A document is read as in training: an end-of-document byte stands in front of its first
base, and no base of an earlier document is read.

Entropies are over A, C, G, T, whose probabilities are those of the model divided by their sum. Marks and letters that
are no base are read as what they are; the conventions of `ngram` hold for the entropies there: 0 inside a tag and in
a run of unknown letters. Sums of floating-point numbers depend on how a stream is cut into passes, by some 1e-6
nats in fp32 before they are laid on the grid.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.entropy_grid import on_grid
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.nucleotides import BASE_CODE, BASES, END_OF_DOCUMENT, OTHER_CODE, PADDING, UPPER, Bytes
from hyena_blt_savanna.parallel.stream import Stream, StreamState
from hyena_blt_savanna.patching.marks import IN_SEQUENCE, IN_TAG, PLACE, START, state_after, states_before
from hyena_blt_savanna.patching.neural_kernels import fuse

_READ_BASES = 1 << 20
_LARGEST_NATS = np.log(4.0)


class NeuralError(ValueError):
    """A `neural` entropy model that can't be built or has nothing to score."""


class NeuralConfig(Config):
    """Settings of a `neural` entropy model."""

    kind: Literal["neural"] = "neural"
    model: IsotropicConfig
    """The network; each of its blocks has a finite reach."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products in bfloat16, several times as fast on machines that multiply in it."""
    chunk_bases: int = Field(2048, ge=1)
    """Bases of one pass: enough to keep the cores busy, few enough to stay in their cache."""

    @field_validator("model")
    @classmethod
    def _reach_is_finite(cls, model: IsotropicConfig) -> IsotropicConfig:
        endless = sorted({block for block in model.stack.blocks if model.stack.reach(block) is None})
        if endless:
            hints = {
                "hyena_li": "hyena_li reads without end: use hyena_se or hyena_mr",
                "attention": "attention reads without end: set stack.attention.window",
            }
            raise ValueError(
                "an entropy model reads a bounded stretch before each base: "
                + "; ".join(hints[block] for block in endless)
            )
        return model


class NeuralModel:
    """A trained network as an entropy model.

    Args:
        config: its settings.
        weights: state dictionary of the network, of any floating-point dtype.
        device: where the network computes by torch's own operators; None: on the CPU, by kernels written for it. The
            entropies are the same but for rounding.

    Raises:
        NeuralError: the weights are not those of this network.
    """

    def __init__(self, config: NeuralConfig, weights: dict[str, Tensor], device: torch.device | None = None) -> None:
        self.config = config
        self.device = device
        self._weights = {name: weight.detach().float().contiguous() for name, weight in weights.items()}
        self._stream = Stream()
        # Drawing the weights that are about to be replaced must not move the caller's generator.
        with torch.random.fork_rng(devices=[]):
            self._network = config.model.build(self._stream)
        wanted = {name: tuple(weight.shape) for name, weight in self._network.state_dict().items()}
        given = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        if wanted != given:
            wrong = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
            raise NeuralError(
                f"these weights are not those of the network that the settings describe: {', '.join(wrong[:4])}"
                + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
            )
        self._network.load_state_dict(self._weights)
        self._network.eval().requires_grad_(False)
        head = self._network.head.weight.detach()
        self._head = head[self._network.class_of_byte[list(BASES)]].float().to(device)
        if device is not None:
            self._network.to(device)
            return
        # Filters are taken before the weights are cast: they stay fp32.
        fuse(self._network, self._stream)
        if config.precision == "bf16":
            self._network.bfloat16()

    def on(self, device: torch.device) -> NeuralModel:
        """The same model on a device."""
        return NeuralModel(self.config, self._weights, device)

    @property
    def context_bases(self) -> int:
        """Bases before a base that its entropy depends on, at most."""
        reach = self.config.model.reach_bases
        assert reach is not None
        return reach

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the network's settings, the precision and the weights.

        Settings at their defaults are left out: a setting that is new to a block changes no digest of earlier models.
        """
        settings = {
            "model": self.config.model.model_dump(mode="json", exclude_defaults=True),
            "precision": self.config.precision,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name in sorted(self._weights):
            digest.update(name.encode())
            digest.update(self._weights[name].numpy().astype("<f4", copy=False).tobytes())
        return digest.hexdigest()

    def entropies(self, bases: Bytes) -> NDArray[np.float32]:
        """Entropy of each base given the bases before it.

        Args:
            bases: uint8 [L], one or more documents from their start, either case.

        Returns:
            float32 [L], nats.
        """
        return self.stepper().read(bases)

    def stepper(self, state: int = START) -> NeuralStepper:
        """A reader of one stream: from its start, or from a place with the `state` (see `marks`) before it.

        In the midst of a document it reads the first bases as if the document began there; after `context_bases` bases
        nothing is left of that.
        """
        return NeuralStepper(self, state)

    def log_probabilities(self, bases: Bytes) -> NDArray[np.float32]:
        """How likely each base was, given the bases before it.

        Args:
            bases: uint8 [L], one or more documents from their start, either case.

        Returns:
            float32 [L], nats, of the four bases' probabilities divided by their sum; NaN where the byte is no base,
            and inside tags.
        """
        reader = _Reader(self)
        nats = np.full(len(bases), np.nan, dtype=np.float32)
        for start in range(0, len(bases), _READ_BASES):
            chunk = bases[start : start + _READ_BASES]
            by_base = reader.before(chunk, lambda log_p: log_p)
            codes = BASE_CODE[chunk]
            scored = (codes != OTHER_CODE).nonzero()[0]
            nats[start + scored] = by_base[codes[scored], scored]
        nats[states_before(bases) & PLACE == IN_TAG] = np.nan
        return nats

    def bits_per_base(self, bases: Bytes) -> float:
        """Mean of -log2 of the probabilities, over the bases A, C, G, T of uint8 [L].

        Raises:
            NeuralError: there is none.
        """
        nats = self.log_probabilities(bases)
        scored = nats[~np.isnan(nats)]
        if not len(scored):
            raise NeuralError(f"no base A, C, G, T among {len(bases):,} bytes: nothing to score")
        return float(-scored.mean(dtype=np.float64) / np.log(2.0))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """The weights, fp32."""
        return {name: weight.numpy() for name, weight in self._weights.items()}

    @classmethod
    def from_tensors(cls, config: NeuralConfig, tensors: dict[str, NDArray[Any]]) -> Self:
        """The model that `tensors` describes.

        Raises:
            NeuralError: they are not those of such a model.
        """
        return cls(config, {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()})

    @torch.inference_mode()
    def log_probabilities_after(self, bases: Tensor, state: StreamState | None) -> Tensor:
        """One pass.

        Args:
            bases: int64 [B, L], upper case.
            state: of the B streams that the bases continue, changed in place; None: of documents of which nothing
                else is read, each behind its end-of-document byte.

        Returns:
            fp32 [4, B, L] on the model's device: log-probabilities of A, C, G, T as the base after each base.
        """
        bases = bases.to(self._head.device)
        reading = nullcontext() if state is None else self._stream.reading(state)
        # The fused network has its weights in bfloat16 itself.
        is_cast = self.device is not None and self.config.precision == "bf16"
        with reading, torch.autocast(self._head.device.type, torch.bfloat16, enabled=is_cast):
            states = self._network.states(bases)
        # Bases innermost: what follows is four long rows and not many short ones.
        logits = self._head @ states.flatten(0, 1).float().t()
        return logits.log_softmax(0).unflatten(1, bases.shape)


def entropy_of(log_probabilities: Tensor) -> Tensor:
    """Entropies in nats, fp32 [1, ...], of distributions [4, ...] given by the logarithms of their probabilities."""
    return -(log_probabilities.exp() * log_probabilities).sum(0, keepdim=True)


class _Reader:
    """Reads a stream, in chunks of any length, with what the network says after each of its bases."""

    def __init__(self, model: NeuralModel) -> None:
        self._model = model
        self._state: StreamState = []
        front = torch.full((1, 1), END_OF_DOCUMENT)
        self.log_probabilities_next = model.log_probabilities_after(front, self._state)
        """fp32 [4, 1, 1], of the base after those read so far."""

    def before(self, bases: Bytes, reduce: Any) -> NDArray[np.float32]:
        """Reads the next bases; returns what is known of each before it is read.

        Args:
            bases: uint8 [L], either case.
            reduce: from log-probabilities fp32 [4, ...] to what is wanted of them, [R, ...].

        Returns:
            float32 [R, L].
        """
        with torch.inference_mode():
            before = reduce(self.log_probabilities_next).flatten(1)
            if not len(bases):
                return before[:, :0].cpu().numpy()
            known = torch.empty(len(before), len(bases) + 1)
            known[:, :1] = before
            read = torch.from_numpy(UPPER[bases].astype(np.int64))
            for piece, log_p in self._passes(read):
                for row, (start, stop) in enumerate(piece):
                    known[:, start + 1 : stop + 1] = reduce(log_p[:, row, : stop - start])
        return known[:, :-1].numpy()

    def copy(self) -> _Reader:
        """Another reader of the same stream, at the same place. What is kept of a pass is never written to."""
        twin = copy.copy(self)
        twin._state = list(self._state)
        return twin

    def _passes(self, bases: Tensor) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        """Yields stretches of the bases, and the log-probabilities [4, B, L] after them: a row each, from its start.

        An end-of-document byte stands in front of the next document, and begins anew.
        """
        borders = [0, *(bases == END_OF_DOCUMENT).nonzero().flatten().tolist(), len(bases)]
        longest = self._model.config.chunk_bases
        *whole, last = itertools.pairwise(borders)
        if whole:
            first, *whole = whole
            yield from self._stream_passes(bases, *first)
            short = [stretch for stretch in whole if stretch[1] - stretch[0] <= longest]
            for batch in _batches(short, longest):
                yield batch, self._model.log_probabilities_after(_padded(bases, batch), None)
            for start, stop in whole:
                if stop - start > longest:
                    self._state = []
                    yield from self._stream_passes(bases, start, stop)
            self._state = []
        yield from self._stream_passes(bases, *last)

    def _stream_passes(self, bases: Tensor, start: int, stop: int) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        longest = self._model.config.chunk_bases
        for begin in range(start, stop, longest):
            end = min(begin + longest, stop)
            log_p = self._model.log_probabilities_after(bases[None, begin:end], self._state)
            # Copied, or the whole pass would be kept.
            self.log_probabilities_next = log_p[:, :, -1:].clone()
            yield [(begin, end)], log_p


def _batches(stretches: Iterable[tuple[int, int]], num_bases: int) -> Iterator[list[tuple[int, int]]]:
    """Stretches of like lengths side by side, up to `num_bases` a batch with padding."""
    batch: list[tuple[int, int]] = []
    for stretch in sorted(stretches, key=lambda stretch: stretch[1] - stretch[0]):
        if batch and (len(batch) + 1) * (stretch[1] - stretch[0]) > num_bases:
            yield batch
            batch = []
        batch.append(stretch)
    if batch:
        yield batch


def _padded(bases: Tensor, stretches: list[tuple[int, int]]) -> Tensor:
    rows = bases.new_full((len(stretches), max(stop - start for start, stop in stretches)), PADDING)
    for row, (start, stop) in zip(rows, stretches, strict=True):
        row[: stop - start] = bases[start:stop]
    return rows


class NeuralStepper:
    """Reads one stream, in chunks or base by base, with the entropies of the whole stream."""

    def __init__(self, model: NeuralModel, state: int) -> None:
        self._reader = _Reader(model)
        self._mark = state

    @property
    def next_entropy_nats(self) -> float:
        """Entropy of the base after those read so far."""
        if self._mark & PLACE != IN_SEQUENCE:
            return 0.0
        return float(_grid(entropy_of(self._reader.log_probabilities_next).cpu().numpy())[0, 0, 0])

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""
        self.read(np.array([base], dtype=np.uint8))

    def copy(self) -> NeuralStepper:
        """Another reader of the same stream, at the same place."""
        twin = copy.copy(self)
        twin._reader = self._reader.copy()
        return twin

    def read(self, bases: Bytes) -> NDArray[np.float32]:
        """Reads the next bases of the stream.

        Args:
            bases: uint8 [L], either case.

        Returns:
            float32 [L]: the entropy of each of them given those before it, in nats.
        """
        nats = _grid(self._reader.before(bases, entropy_of)[0])
        nats[states_before(bases, self._mark) & PLACE != IN_SEQUENCE] = 0
        self._mark = state_after(bases, self._mark)
        return nats


def _grid(nats: NDArray[np.float32]) -> NDArray[np.float32]:
    return on_grid(np.clip(nats, 0.0, _LARGEST_NATS))
