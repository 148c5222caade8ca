"""Reading the rows of a batch base by base, whatever the model is.

The isotropic model reads a base of all rows in one step. With the hybrid, rows whose patches have ended wait until all
rows do (`model.hybrid_decoding`). Both remember what the sequence leaves behind, and their logits are those of one pass
over the whole sequence. The other models read everything again for each base.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyena_blt_savanna.evaluation.scoring import patcher_of
from hyena_blt_savanna.model.decoding import Decoder
from hyena_blt_savanna.model.hybrid_decoding import HybridDecoder
from hyena_blt_savanna.model.hyena_blt import HyenaBLT
from hyena_blt_savanna.model.isotropic import Isotropic
from hyena_blt_savanna.model.kmer_tokens import KmerTokens
from hyena_blt_savanna.nucleotides import END_OF_DOCUMENT, Bytes
from hyena_blt_savanna.patching.patcher import Patcher, PatchStepper

if TYPE_CHECKING:
    from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel


class RowReader(Protocol):
    """Reads sequences, a row each."""

    def ready(self) -> tuple[list[int], Tensor]:
        """Some rows, and the logits [b, C] of their next base; none once all rows are left out.

        Each of the rows that it gave before has been pushed to or left out since.
        """

    def push(self, row: int, base: int) -> None:
        """The next base of a row, given as its byte."""

    def leave_out(self, row: int) -> None:
        """Nobody asks any more what follows in a row."""

    def patch_lengths(self, row: int) -> NDArray[np.int32]:
        """int32 [P] of the bases of a row, the last one of an unfinished patch if there is one."""


def row_reader(model: HyenaBLTModel, prompts: Sequence[Bytes]) -> RowReader:
    """Reads rows behind their prompts.

    Args:
        model: the model.
        prompts: uint8 [L] each, upper case; equal ones are read once.

    Raises:
        NoPatcherError: the model needs a patcher and has none.
    """
    if isinstance(model.module, HyenaBLT):
        return HybridRows(model.module, patcher_of(model), prompts, model.device)
    if isinstance(model.module, Isotropic):
        return IsotropicRows(model.module, prompts, model.device)
    patcher = patcher_of(model) if isinstance(model.module, KmerTokens) else None
    return WholePassRows(model.module, patcher, prompts, model.device)


class _Patches:
    """The patches of a row, found while it is being read.

    Attributes:
        lengths: of those that have ended, that of the byte in front first: it is a patch of its own, and no part of
            the patcher's stream.
        num_unfinished: bases behind them.
    """

    def __init__(self, stepper: PatchStepper, lengths: list[int], num_unfinished: int) -> None:
        self._stepper, self.lengths, self.num_unfinished = stepper, lengths, num_unfinished

    @classmethod
    def of_prompt(cls, patcher: Patcher, prompt: Bytes) -> _Patches:
        """Those of a prompt, uint8 [L]."""
        stepper = patcher.stepper()
        lengths = stepper.read(prompt).tolist()
        return cls(stepper, [1, *lengths], len(prompt) - sum(lengths))

    def copy(self) -> _Patches:
        """The same, to go on with another row."""
        return _Patches(self._stepper.copy(), list(self.lengths), self.num_unfinished)

    def push(self, base: int) -> bool:
        """Reads a base; returns whether a patch ended with it."""
        self.num_unfinished += 1
        ended = self._stepper.push(base)
        if ended:
            self.lengths.append(self.num_unfinished)
            self.num_unfinished = 0
        return ended

    @property
    def known(self) -> NDArray[np.int32]:
        """int32 [P], without the byte in front, the last one of an unfinished patch if there is one."""
        unfinished = [self.num_unfinished] if self.num_unfinished else []
        return np.array(self.lengths[1:] + unfinished, dtype=np.int32)


class _Rows(ABC):
    """Rows that are read side by side.

    Args:
        decoder: has read the prompt of each.
        logits: [B, C], of the bases behind the prompts.
    """

    def __init__(self, decoder: Decoder | HybridDecoder, logits: Tensor) -> None:
        self._decoder_rows = list(range(len(logits)))
        self._kept = list(self._decoder_rows)
        self._first: Tensor | None = logits
        self._decoder = decoder

    def leave_out(self, row: int) -> None:
        """Nobody asks any more what follows in a row."""
        self._kept.remove(row)

    def ready(self) -> tuple[list[int], Tensor]:
        """Some rows, and the logits [b, C] of their next base; see `RowReader`."""
        if len(self._kept) < len(self._decoder_rows):
            self._decoder.select(torch.tensor([self._decoder_rows.index(row) for row in self._kept], dtype=torch.long))
            self._decoder_rows = list(self._kept)
        if not self._kept:
            return [], torch.empty(0)
        if self._first is None:
            return self._go_on(self._decoder_rows)
        logits, self._first = self._first[self._kept], None
        return self._decoder_rows, logits

    @property
    def num_bytes(self) -> int:
        """What is remembered of all rows, k-mers and boundaries aside."""
        return self._decoder.num_bytes

    @abstractmethod
    def _go_on(self, rows: list[int]) -> tuple[list[int], Tensor]:
        """Reads what was pushed; the rows are those of the decoder."""


class IsotropicRows(_Rows):
    """Reads with an isotropic model: prompts in one pass each, then a base of all rows in a step.

    Args:
        module: the model.
        prompts: uint8 [L] each, upper case.
        device: of the model.
    """

    def __init__(self, module: Isotropic, prompts: Sequence[Bytes], device: torch.device) -> None:
        distinct, of_row = _distinct(prompts)
        decoders = [Decoder(module) for _ in distinct]
        logits = [decoder.prefill(_behind_end(p, device)) for decoder, p in zip(decoders, distinct, strict=True)]
        self._isotropic, *others = decoders
        self._isotropic.join(others)
        self._isotropic.select(of_row)
        super().__init__(self._isotropic, torch.cat(logits)[of_row])
        self._device = device
        self._pushed: dict[int, int] = {}

    def push(self, row: int, base: int) -> None:
        """The next base of a row, given as its byte."""
        self._pushed[row] = base

    def patch_lengths(self, row: int) -> NDArray[np.int32]:
        """None, int32 [0]."""
        return np.empty(0, dtype=np.int32)

    def _go_on(self, rows: list[int]) -> tuple[list[int], Tensor]:
        bases = torch.tensor([self._pushed[row] for row in rows], device=self._device)
        return rows, self._isotropic.step(bases)


class HybridRows(_Rows):
    """Reads with a hybrid: prompts in one pass each, then local modules by bases and the global model by patches.

    Args:
        module: the model.
        patcher: finds boundaries on the way.
        prompts: uint8 [L] each, upper case.
        device: of the model.
    """

    def __init__(self, module: HyenaBLT, patcher: Patcher, prompts: Sequence[Bytes], device: torch.device) -> None:
        distinct, of_row = _distinct(prompts)
        decoders = [HybridDecoder(module) for _ in distinct]
        patches = [_Patches.of_prompt(patcher, prompt) for prompt in distinct]
        logits = [
            decoder.prefill(_behind_end(prompt, device), torch.tensor([of_prompt.lengths], device=device))
            for decoder, prompt, of_prompt in zip(decoders, distinct, patches, strict=True)
        ]
        self._hybrid, *others = decoders
        self._hybrid.join(others)
        self._hybrid.select(of_row)
        super().__init__(self._hybrid, torch.cat(logits)[of_row])
        self._device = device
        self._patches = [patches[index].copy() for index in of_row.tolist()]
        # The base, and whether a patch ended with it.
        self._pushed: dict[int, tuple[int, bool]] = {}

    def push(self, row: int, base: int) -> None:
        """The next base of a row, given as its byte."""
        self._pushed[row] = base, self._patches[row].push(base)

    def patch_lengths(self, row: int) -> NDArray[np.int32]:
        """int32 [P], the last one of an unfinished patch if there is one."""
        return self._patches[row].known

    def _go_on(self, rows: list[int]) -> tuple[list[int], Tensor]:
        """The rows whose patches go on; once there are none, all of them."""
        pushed = {row: self._pushed[row] for row in rows if row in self._pushed}
        self._pushed.clear()
        if pushed:
            bases = torch.tensor([base for base, _ in pushed.values()], device=self._device)
            self._hybrid.read(bases, self._at(list(pushed)))
        going = [row for row, (_, ended) in pushed.items() if not ended]
        if not going:
            going = rows
            self._hybrid.end_patches()
        return going, self._hybrid.logits(self._at(going))

    def _at(self, rows: list[int]) -> Tensor | None:
        """Where some rows stand in the decoder's batch."""
        if len(rows) == len(self._decoder_rows):
            return None
        return torch.tensor([self._decoder_rows.index(row) for row in rows])


class WholePassRows:
    """Reads with a model that has no memory: one pass over all bases so far for each base.

    Args:
        module: the model.
        patcher: of a model of words; None for a model that finds its own chunks.
        prompts: uint8 [L] each, upper case.
        device: of the model.
    """

    def __init__(
        self, module: nn.Module, patcher: Patcher | None, prompts: Sequence[Bytes], device: torch.device
    ) -> None:
        self._module, self._device = module, device
        self._bases = [bytearray([END_OF_DOCUMENT, *prompt]) for prompt in prompts]
        self._patches = None if patcher is None else [_Patches.of_prompt(patcher, prompt) for prompt in prompts]
        self._kept = list(range(len(prompts)))

    def ready(self) -> tuple[list[int], Tensor]:
        """All rows that are not left out, and the logits [b, C] of their next base."""
        logits = [self._logits(row) for row in self._kept]
        return list(self._kept), torch.stack(logits) if logits else torch.empty(0)

    def push(self, row: int, base: int) -> None:
        """The next base of a row, given as its byte."""
        self._bases[row].append(base)
        if self._patches is not None:
            self._patches[row].push(base)

    def leave_out(self, row: int) -> None:
        """Nobody asks any more what follows in a row."""
        self._kept.remove(row)

    def patch_lengths(self, row: int) -> NDArray[np.int32]:
        """int32 [P], the last one of an unfinished patch if there is one; none without a patcher."""
        return np.empty(0, dtype=np.int32) if self._patches is None else self._patches[row].known

    def _logits(self, row: int) -> Tensor:
        bases = torch.frombuffer(bytearray(self._bases[row]), dtype=torch.uint8).long()[None].to(self._device)
        if self._patches is None:
            lengths = torch.ones_like(bases)
        else:
            lengths = torch.tensor([self._patches[row].lengths], device=self._device)
        logits: Tensor = self._module(bases, lengths)[0, -1]
        return logits


def _distinct(prompts: Sequence[Bytes]) -> tuple[list[Bytes], Tensor]:
    """Prompts without repetitions, and int64 [B]: which of them is each row's."""
    number: dict[bytes, int] = {}
    of_row = [number.setdefault(prompt.tobytes(), len(number)) for prompt in prompts]
    return [np.frombuffer(prompt, dtype=np.uint8) for prompt in number], torch.tensor(of_row)


def _behind_end(prompt: Bytes, device: torch.device) -> Tensor:
    """int64 [1, 1 + L]: a prompt behind an end-of-document byte."""
    return torch.tensor([[END_OF_DOCUMENT, *prompt.tolist()]], device=device)
