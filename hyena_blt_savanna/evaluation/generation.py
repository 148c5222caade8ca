"""Sequences drawn base by base, with patch boundaries found on the way by the model's own entropy model and rule.

Several sequences are drawn side by side: see `evaluation.row_readers` for what a base costs with which model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyena_blt_savanna.evaluation.row_readers import RowReader, row_reader
from hyena_blt_savanna.evaluation.sampling import Sampler
from hyena_blt_savanna.nucleotides import BASES, END_OF_DOCUMENT, UPPER
from hyena_blt_savanna.patching.patcher import as_bases

if TYPE_CHECKING:
    from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel

BATCH_ROWS = 16
"""Sequences that are drawn side by side unless something else is asked for."""


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
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    [drawn] = generate_many(model, [prompt], num_bases, stop_at_end=stop_at_end, **settings)  # type: ignore[arg-type]
    return drawn


def generate_many(
    model: HyenaBLTModel,
    prompts: Sequence[str],
    num_bases: int,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_at_end: bool = False,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Generated]:
    """Draws sequences behind several prompts, or several behind one.

    What is drawn depends on the prompt, the seed and which sample of its prompt it is: neither the other prompts nor
    the number of sequences drawn side by side changes it, but for logits that differ by rounding. Sample 0 is what
    `generate` draws.

    Args:
        model: the model.
        prompts: letters of either case; any may be empty.
        num_bases: to draw behind each.
        num_samples: sequences to draw behind each prompt.
        temperature: as in `generate`, like those that follow.
        top_k: see there.
        top_p: see there.
        seed: of all.
        stop_at_end: see there.
        batch_rows: sequences that are drawn side by side; what is held grows with it, not with their number.

    Returns:
        All samples of the first prompt, then those of the next; each as soon as its batch is drawn.

    Raises:
        SequenceError: a prompt has a wrong letter.
        SamplingError: the settings make no sense.
        GenerationError: `num_bases` is negative, or `num_samples` or `batch_rows` is not positive.
        NoPatcherError: the model needs a patcher and has none.
    """
    for name, value, least in (
        ("num_bases", num_bases, 0),
        ("num_samples", num_samples, 1),
        ("batch_rows", batch_rows, 1),
    ):
        if value < least:
            raise GenerationError(f"{name} is {value}: give {least} or more")
    for prompt in prompts:
        if prompt:
            as_bases(prompt)
    assert isinstance(model.module.class_of_byte, Tensor)
    allowed = list(BASES) + ([END_OF_DOCUMENT] if stop_at_end else [])
    byte_of = dict(zip(model.module.class_of_byte[allowed].tolist(), allowed, strict=True))

    def sampler_of(samples: Sequence[int]) -> Sampler:
        return Sampler(list(byte_of), temperature, top_k, top_p, seed, samples)

    # Senseless settings are refused now, not when the first sequence is asked for.
    sampler_of([])
    return _batches(model, prompts, num_bases, num_samples, batch_rows, byte_of, sampler_of)


def _batches(
    model: HyenaBLTModel,
    prompts: Sequence[str],
    num_bases: int,
    num_samples: int,
    batch_rows: int,
    byte_of: dict[int, int],
    sampler_of: Callable[[Sequence[int]], Sampler],
) -> Iterator[Generated]:
    rows = itertools.product(prompts, range(num_samples))
    while batch := list(itertools.islice(rows, batch_rows)):
        of_batch = [prompt for prompt, _ in batch]
        yield from _draw(model, of_batch, num_bases, byte_of, sampler_of([sample for _, sample in batch]))


@torch.inference_mode()
def _draw(
    model: HyenaBLTModel, prompts: list[str], num_bases: int, byte_of: dict[int, int], sampler: Sampler
) -> list[Generated]:
    """Draws behind each prompt side by side; `byte_of` has the columns that may be drawn."""
    read = [UPPER[as_bases(prompt)] if prompt else np.empty(0, dtype=np.uint8) for prompt in prompts]
    reader: RowReader = row_reader(model, read)
    drawn = [bytearray() for _ in prompts]
    nats: list[list[float]] = [[] for _ in prompts]
    has_ended = [False] * len(prompts)
    if num_bases == 0:
        for row in range(len(prompts)):
            reader.leave_out(row)
    while True:
        rows, logits = reader.ready()
        if not rows:
            break
        log_likelihoods = logits.float().log_softmax(-1).cpu().numpy()
        columns = sampler.draw(log_likelihoods, rows)
        chosen = log_likelihoods[np.arange(len(rows)), columns].tolist()
        for row, column, of_base in zip(rows, columns.tolist(), chosen, strict=True):
            has_ended[row] = byte_of[column] == END_OF_DOCUMENT
            if not has_ended[row]:
                drawn[row].append(byte_of[column])
                nats[row].append(of_base)
                reader.push(row, byte_of[column])
            if has_ended[row] or len(drawn[row]) == num_bases:
                reader.leave_out(row)
    return [
        Generated(
            prompt,
            drawn[row].decode(),
            np.array(nats[row], dtype=np.float32),
            reader.patch_lengths(row),
            has_ended[row],
        )
        for row, prompt in enumerate(prompts)
    ]
