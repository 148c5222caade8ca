"""Sequences drawn base by base, with patch boundaries found on the way by the model's own entropy model and rule.

A base costs a pass of the local modules over the few bases that they read, and a patch a step of the global model.
Both give the logits of one pass over the whole sequence: the local modules read `local_reach_bases` back and no
further, and all that the global model says about a patch is settled once it ends. That is the hybrid; a base costs the
isotropic model a step (`model.decoding`), and the other models read everything again for each base.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hyena_blt_savanna.evaluation.sampling import Sampler
from hyena_blt_savanna.evaluation.scoring import patcher_of
from hyena_blt_savanna.model.decoding import Decoder, StackReader
from hyena_blt_savanna.model.hyena_blt import HyenaBLT
from hyena_blt_savanna.model.isotropic import Isotropic
from hyena_blt_savanna.model.kmer_tokens import KmerTokens
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.nucleotides import BASES, END_OF_DOCUMENT, UPPER, Bytes
from hyena_blt_savanna.patching.patcher import Patcher, as_bases

if TYPE_CHECKING:
    from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel


class GenerationError(ValueError):
    """A request for a sequence that can't be met."""


@dataclass(frozen=True)
class Generated:
    """A sequence that was drawn.

    Attributes:
        prompt: as it was given.
        bases: what was drawn behind it, upper case.
        log_likelihoods: float32 [number of bases drawn], nats: what the model gave each of them, whatever the
            temperature and the choice among classes.
        patch_lengths: int32 [P]: of prompt and drawn bases; the last patch may be unfinished.
        ended: whether the model ended the document.
    """

    prompt: str
    bases: str
    log_likelihoods: NDArray[np.float32]
    patch_lengths: NDArray[np.int32]
    ended: bool

    @property
    def sequence(self) -> str:
        """Prompt and drawn bases."""
        return self.prompt + self.bases


@torch.inference_mode()
def generate(
    model: HyenaBLTModel,
    prompt: str,
    num_bases: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_at_end: bool = False,
) -> Generated:
    """Draws bases behind a prompt.

    Args:
        model: the model.
        prompt: letters of either case; may be empty.
        num_bases: to draw.
        temperature: divides the logits; 0 takes the most likely base.
        top_k: draw from so many most likely bases only.
        top_p: draw from the fewest most likely bases that have this probability together only.
        seed: the same seed draws the same sequence.
        stop_at_end: let the model end the document; otherwise the end is never drawn.

    Raises:
        SequenceError: the prompt has a wrong letter.
        SamplingError: the settings make no sense.
        GenerationError: `num_bases` is negative.
        NoPatcherError: the model needs a patcher and has none.
    """
    if num_bases < 0:
        raise GenerationError(f"num_bases is {num_bases}: give 0 or more")
    assert isinstance(model.module.class_of_byte, Tensor)
    allowed = list(BASES) + ([END_OF_DOCUMENT] if stop_at_end else [])
    columns = model.module.class_of_byte[allowed].tolist()
    byte_of = dict(zip(columns, allowed, strict=True))
    sampler = Sampler(columns, temperature, top_k, top_p, seed)
    reader = _reader(model, UPPER[as_bases(prompt)] if prompt else np.empty(0, dtype=np.uint8))
    drawn, log_likelihoods = bytearray(), []
    ended = False
    for _ in range(num_bases):
        logits = reader.logits().float()
        column = sampler.draw(logits)
        if byte_of[column] == END_OF_DOCUMENT:
            ended = True
            break
        drawn.append(byte_of[column])
        log_likelihoods.append(float(logits.log_softmax(-1)[column]))
        reader.push(byte_of[column])
    return Generated(prompt, drawn.decode(), np.array(log_likelihoods, dtype=np.float32), reader.patch_lengths(), ended)


class _Reader(Protocol):
    """Reads a sequence base by base."""

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""

    def logits(self) -> Tensor:
        """[C], of the base after those read."""

    def patch_lengths(self) -> NDArray[np.int32]:
        """int32 [P], the last one of an unfinished patch if there is one."""


def _reader(model: HyenaBLTModel, prompt: Bytes) -> _Reader:
    if isinstance(model.module, HyenaBLT):
        return PatchReader(model, prompt)
    if isinstance(model.module, KmerTokens):
        return WordReader(model, prompt)
    if isinstance(model.module, Isotropic):
        return IsotropicReader(model.module, prompt, model.device)
    return SingleBaseReader(model.module, prompt, model.device)


class IsotropicReader:
    """Reads with an isotropic model: the prompt in one pass, then a step for each base.

    Args:
        module: the model.
        prompt: uint8 [L], upper case.
        device: of the model.
    """

    def __init__(self, module: Isotropic, prompt: Bytes, device: torch.device) -> None:
        self._decoder = Decoder(module)
        first = torch.tensor([[END_OF_DOCUMENT, *prompt.tolist()]], device=device)
        self._logits = self._decoder.prefill(first)
        self._base = torch.zeros(1, dtype=torch.long, device=device)
        self._unread = bytearray()

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""
        # Only when it is asked what follows: nobody asks behind the last base.
        self._unread.append(base)

    def logits(self) -> Tensor:
        """[C], of the base after those read."""
        for base in self._unread:
            self._logits = self._decoder.step(self._base.fill_(base))
        self._unread.clear()
        return self._logits[0]

    def patch_lengths(self) -> NDArray[np.int32]:
        """None, int32 [0]."""
        return np.empty(0, dtype=np.int32)


class SingleBaseReader:
    """Reads with a model that finds its own chunks: one pass over all bases so far for each base.

    Args:
        module: the model.
        prompt: uint8 [L], upper case.
        device: of the model.
    """

    def __init__(self, module: nn.Module, prompt: Bytes, device: torch.device) -> None:
        self.module, self.device = module, device
        self._bases = bytearray([END_OF_DOCUMENT]) + bytearray(prompt)

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""
        self._bases.append(base)

    def logits(self) -> Tensor:
        """[C], of the base after those read."""
        bases = torch.frombuffer(bytearray(self._bases), dtype=torch.uint8).long()[None].to(self.device)
        return self.module(bases, torch.ones_like(bases))[0, -1]

    def patch_lengths(self) -> NDArray[np.int32]:
        """None, int32 [0]."""
        return np.empty(0, dtype=np.int32)


class _CuttingReader:
    """Finds patch boundaries while it reads.

    Args:
        patcher: of the model.
    """

    def __init__(self, patcher: Patcher) -> None:
        self._stepper = patcher.stepper()
        self._bases = bytearray([END_OF_DOCUMENT])
        # The byte in front is a patch of its own, and not part of the patcher's stream.
        self._lengths = [1]
        self._num_unfinished = 0

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""
        self._bases.append(base)
        self._stepper.push(base)
        self._num_unfinished += 1
        if self._stepper.next_starts_patch:
            self._lengths.append(self._num_unfinished)
            self._num_unfinished = 0

    def patch_lengths(self) -> NDArray[np.int32]:
        """int32 [P], the last one of an unfinished patch if there is one."""
        unfinished = [self._num_unfinished] if self._num_unfinished else []
        return np.array(self._lengths[1:] + unfinished, dtype=np.int32)


class WordReader(_CuttingReader):
    """Reads with a model of words: one pass over all patches so far for each base.

    Args:
        model: a model of words and its patcher.
        prompt: uint8 [L], upper case.

    Raises:
        NoPatcherError: there is no patcher.
    """

    def __init__(self, model: HyenaBLTModel, prompt: Bytes) -> None:
        super().__init__(patcher_of(model))
        self.module, self.device = model.module, model.device
        for base in prompt:
            self.push(int(base))

    def logits(self) -> Tensor:
        """[C], of the base after those read."""
        bases = torch.tensor([list(self._bases)]).to(self.device)
        return self.module(bases, torch.tensor([self._lengths]).to(self.device))[0, -1]


class PatchReader(_CuttingReader):
    """Reads with a hybrid; holds the global model's output for the last patches, which the decoder may still read.

    Args:
        model: a hybrid and its patcher.
        prompt: uint8 [L], upper case.

    Raises:
        NoPatcherError: there is no patcher.
    """

    def __init__(self, model: HyenaBLTModel, prompt: Bytes) -> None:
        assert isinstance(model.module, HyenaBLT)
        super().__init__(patcher_of(model))
        self.module, self.device = model.module, model.device
        self._reach_bases = model.module.local_reach_bases
        # However short patches are: those with a base within reach, and the one before.
        self._num_kept = self._reach_bases + 2
        for base in prompt:
            super().push(int(base))
        self._read_prompt()

    def push(self, base: int) -> None:
        """Reads one base, given as its byte."""
        num_patches = len(self._lengths)
        super().push(base)
        if len(self._lengths) > num_patches:
            self._finish_patch()

    def logits(self) -> Tensor:
        """[C], of the base after those read."""
        first = self._first_patch(1)
        lengths, states, _ = self._encode(first)
        num_dropped = len(self._lengths) - self._after.shape[1]
        before = self._after[:, first - num_dropped - 1] if first else None
        return self.module.decoder(states, self._after[:, first - num_dropped :], lengths, before)[0, -1]

    def _read_prompt(self) -> None:
        self._global_model = StackReader(self.module.global_model)
        # A copy, or all of it would be kept.
        self._after = self._global_model.prefill(self._encode(0)[2])[:, -self._num_kept :].clone()

    def _finish_patch(self) -> None:
        """Encodes the patch that has just ended, and has the global model read it."""
        patch = self._encode(self._first_patch(self._lengths[-1]))[2][:, -1:]
        self._after = torch.cat([self._after, self._global_model.step(patch)], 1)[:, -self._num_kept :]

    def _first_patch(self, num_last: int) -> int:
        """The patch to begin with, so that all is there that the local modules read for the last `num_last` bases."""
        first = len(self._lengths) - 1
        num_bases = self._num_unfinished + self._lengths[first]
        while first > 0 and num_bases < num_last + self._reach_bases:
            first -= 1
            num_bases += self._lengths[first]
        return first

    def _encode(self, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the encoder from the start of patch `first` to the newest base.

        Returns:
            Patch lengths int32 [1, P], states of the bases [1, L, D], patches [1, P, M].
        """
        lengths = torch.tensor([self._lengths[first:]], dtype=torch.int32)
        num_bases = int(lengths.sum()) + self._num_unfinished
        bases = torch.tensor([list(self._bases[-num_bases:])]).to(self.device)
        lengths = lengths.to(self.device)
        layout = lay_out(lengths, num_bases, self.module.config.max_patch_bases)
        # Where the model is told positions, they count from the first base of all.
        return lengths, *self.module.encoder(bases, layout, first_position=len(self._bases) - num_bases)
