"""A trained model with everything that using it takes: weights, configuration and patcher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.evaluation.generation import Generated, GenerationError, generate, generate_many
from hyena_blt_savanna.evaluation.native_checkpoint import PretrainedError, read_native, save_pretrained
from hyena_blt_savanna.evaluation.scoring import LONGEST_PASS_BASES, Embedding, NoPatcherError, Score, embed, score
from hyena_blt_savanna.nucleotides import Bytes
from hyena_blt_savanna.patching.patcher import Patcher

__all__ = ["HyenaBLTModel", "PretrainedError", "save_pretrained"]


class HyenaBLTModel:
    """A trained model, ready to score, embed and generate sequences.

    Args:
        module: the torch model; `module(bases, patch_lengths)` gives logits.
        config: its configuration.
        patcher: finds patch boundaries; None for a model of single bases.
        window_bases: longest window that the model was trained on, if known.
        trained_on: the digest of its training data, and the fold of them that was left out, if known.
        trained_in: how products were computed, for weights of a training in FP8; see `NativeCheckpoint`.
    """

    def __init__(
        self,
        module: nn.Module,
        config: Config,
        patcher: Patcher | None,
        window_bases: int | None = None,
        trained_on: Mapping[str, Any] | None = None,
        trained_in: Mapping[str, Any] | None = None,
    ) -> None:
        self.module = module.eval()
        self.config = config
        self.patcher = patcher
        self.window_bases = window_bases
        self.trained_on = trained_on
        self.trained_in = trained_in

    @classmethod
    def load_from_checkpoint(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Loads a trained model.

        Args:
            path: a native checkpoint, a training checkpoint that holds one, or a run folder (its newest whole
                checkpoint).
            device: where the model computes.

        Raises:
            PretrainedError: there is no checkpoint, it is broken, or it is of another format or model; or there is
                no such device.
        """
        native = read_native(Path(path))
        try:
            module = native.module.to(device)
        except (RuntimeError, AssertionError) as error:
            # torch raises either, by what the device lacks.
            raise PretrainedError(
                f"device {str(device)!r} can't be used: {error}; take another, such as cpu"
            ) from error
        return cls(module, native.config, native.patcher, native.window_bases, native.trained_on, native.trained_in)

    def save(self, folder: str | Path) -> None:
        """Writes the model as a native checkpoint.

        Raises:
            PretrainedError: it can't be written; nothing of it is left.
        """
        save_pretrained(
            Path(folder),
            self.module.state_dict(),
            self.config,
            self.patcher,
            self.window_bases,
            self.trained_on,
            self.trained_in,
        )

    def with_patches(self, factor: float) -> HyenaBLTModel:
        """The same weights on other patches: the limit of the patcher's rule is multiplied.

        Args:
            factor: above 1 for longer patches, below for shorter ones. A model is at its best at the lengths that it
                was trained on.

        Raises:
            NoPatcherError: the model has no patcher.
        """
        if self.patcher is None:
            raise NoPatcherError("this model has no patcher: there are no patches to make longer or shorter")
        patcher = self.patcher.scaled(factor)
        return HyenaBLTModel(self.module, self.config, patcher, self.window_bases, self.trained_on, self.trained_in)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.module.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Weights of the torch model; one that is used twice counts once."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def generate(
        self,
        prompt: str = "",
        max_length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """Draws a sequence base by base; boundaries are found on the way by the model's own patcher.

        Args:
            prompt: what the sequence begins with, of either case; may be empty.
            max_length: bases of the whole sequence, the prompt's included.
            temperature: divides the logits; 0 takes the most likely base.
            top_k: draw from so many most likely bases only.
            top_p: draw from the fewest most likely bases that have this probability together only.
            seed: the same seed draws the same sequence.

        Returns:
            The prompt and the bases drawn behind it.

        Raises:
            SequenceError: the prompt has a wrong letter.
            SamplingError: the settings make no sense.
            GenerationError: the prompt is longer than `max_length`.
        """
        if len(prompt) > max_length:
            raise GenerationError(
                f"the prompt has {len(prompt):,} bases and max_length is {max_length:,}, which counts them too: "
                "give a larger max_length"
            )
        return generate(self, prompt, max_length - len(prompt), temperature, top_k, top_p, seed).sequence

    def generate_many(
        self,
        prompts: Sequence[str],
        num_bases: int,
        num_samples: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[Generated]:
        """Draws sequences side by side: several behind one prompt, or behind several.

        Args:
            prompts: what the sequences begin with, of either case; any may be empty.
            num_bases: to draw behind each, the prompt's not included.
            num_samples: sequences to draw behind each prompt; the first of them is what `generate` draws.
            temperature: see `generate`.
            top_k: see there.
            top_p: see there.
            seed: the same seed draws the same sequences, whatever the other prompts are.

        Returns:
            All samples of the first prompt, then those of the next.

        Raises:
            SequenceError: a prompt has a wrong letter.
            SamplingError: the settings make no sense.
            GenerationError: `num_bases` is negative, or `num_samples` is not positive.
        """
        return generate_many(self, prompts, num_bases, num_samples, temperature, top_k, top_p, seed)

    def score(
        self,
        sequence: str | bytes | Bytes,
        window_bases: int = LONGEST_PASS_BASES,
        overlap_bases: int | None = None,
        batch_windows: int = 1,
    ) -> Score:
        """Log-likelihood of a sequence, base by base, with boundaries over the whole of it.

        Args:
            sequence: letters of either case, at least one.
            window_bases: longer sequences are scored in overlapping windows of so many bases.
            overlap_bases: least context of each base behind the first window's; by default half of a window.
            batch_windows: windows in one pass.

        Raises:
            SequenceError: the sequence is empty or has a wrong letter.
            WindowError: the overlap doesn't fit the window.
        """
        return score(self, sequence, window_bases, overlap_bases, batch_windows)

    def embed(
        self,
        sequence: str | bytes | Bytes,
        window_bases: int = LONGEST_PASS_BASES,
        overlap_bases: int | None = None,
    ) -> Embedding:
        """States of each base and each patch: what the head reads, and what the global model gives.

        Args:
            sequence: letters of either case, at least one.
            window_bases: longer sequences are read in overlapping windows of so many bases.
            overlap_bases: least context of each base behind the first window's; by default half of a window.

        Raises:
            SequenceError: the sequence is empty or has a wrong letter.
            WindowError: the overlap doesn't fit the window.
        """
        return embed(self, sequence, window_bases, overlap_bases)
