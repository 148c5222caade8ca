"""A tiny causal model and batches made in memory, to test training without the real ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.model.base_nats import weighted_nats
from hyena_blt_savanna.model.prediction import Prediction
from hyena_blt_savanna.nucleotides import BASES, END_OF_DOCUMENT, NUM_SCORED, PADDING, SCORED, VOCABULARY_SIZE


class ToyModel(nn.Module):
    """Two causal convolutions over embedded bases; the head scores the next base.

    Args:
        width: channels D.
    """

    class_of_byte: Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY_SIZE, width)
        self.convolutions = nn.ModuleList([nn.Conv1d(width, width, 3), nn.Conv1d(width, width, 5)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, NUM_SCORED)
        classes = torch.full((VOCABULARY_SIZE,), -1, dtype=torch.long)
        classes[list(SCORED)] = torch.arange(NUM_SCORED)
        self.register_buffer("class_of_byte", classes, persistent=False)

    def forward(
        self,
        bases: Tensor,
        patch_lengths: Tensor,
        loss_weights: Tensor | None = None,
        loss_chunk_bases: int | None = None,
    ) -> Tensor | Prediction:
        """Logits [B, L, 5] of bases [B, L], or nats of all of them at once; the boundaries are not looked at."""
        x_BDL = self.embedding(bases).transpose(1, 2)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv1d)
            x_BDL = x_BDL + functional.gelu(convolution(functional.pad(x_BDL, (convolution.kernel_size[0] - 1, 0))))
        logits = self.head(self.norm(x_BDL.transpose(1, 2)))
        if loss_weights is None:
            return logits
        return Prediction(weighted_nats(logits, bases, loss_weights, self.class_of_byte))


@dataclass(frozen=True)
class ToyBatch:
    """The tensors of `hyena_blt_savanna.data.batches.Batch`."""

    bases: Tensor
    patch_lengths: Tensor
    loss_weights: Tensor
    num_cut_patches: int = 0
    entropies: Tensor | None = None
    left_patches: int = 0
    first_positions: Tensor | None = None


def toy_windows(num_windows: int, num_bases: int = 48, seed: int = 0) -> ToyBatch:
    """Windows of random bases with weights that differ, some letters that are not scored, padding, random entropies.

    Args:
        num_windows: B.
        num_bases: L, the byte in front included.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    letters = torch.tensor(list(BASES + b"N"))
    bases = letters[torch.randint(0, len(letters), (num_windows, num_bases), generator=generator)]
    bases[:, 0] = END_OF_DOCUMENT
    weights = torch.rand(num_windows, num_bases, generator=generator)
    # Windows weigh very differently, so that a mean of means would be seen.
    weights *= torch.arange(1, num_windows + 1)[:, None] ** 2
    patch_lengths = torch.zeros(num_windows, num_bases, dtype=torch.int32)
    for row in range(num_windows):
        end = num_bases - row % 5
        bases[row, end:] = PADDING
        starts = list(range(1, end, 8))
        lengths = [1] + [min(8, end - start) for start in starts]
        patch_lengths[row, : len(lengths)] = torch.tensor(lengths)
    weights[(bases == PADDING) | (bases == ord("N"))] = 0
    weights[:, 0] = 0
    entropies = 1.386 * torch.rand(num_windows, num_bases, generator=generator)
    return ToyBatch(bases, patch_lengths, weights.float(), entropies=entropies)


def split_windows(batch: ToyBatch, num_parts: int) -> list[ToyBatch]:
    """Equal runs of a batch's windows."""
    names = [
        name for name in ("bases", "patch_lengths", "loss_weights", "entropies") if getattr(batch, name) is not None
    ]
    parts = zip(*(getattr(batch, name).chunk(num_parts) for name in names), strict=True)
    return [ToyBatch(**dict(zip(names, part, strict=True))) for part in parts]
