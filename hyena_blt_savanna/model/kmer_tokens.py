"""Fixed words of k bases as tokens, scored base by base.

The global model runs over words and predicts the next word among all 4^k; what it says about single bases follows
exactly, as conditionals of that one distribution. So its figures stand beside those of models of single bases, and
a base is never scored from its own word alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.flops import linear
from hyena_blt_savanna.model.head import Targets
from hyena_blt_savanna.model.initialisation import small_init_std
from hyena_blt_savanna.model.patches import PatchLayout, close_unfinished, lay_out
from hyena_blt_savanna.model.prediction import Prediction
from hyena_blt_savanna.model.scored_classes import class_of_byte
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.nucleotides import BASE_CODE, END_OF_DOCUMENT, OTHER_CODE, PADDING, VOCABULARY_SIZE

if TYPE_CHECKING:
    from hyena_blt_savanna.model.hyena_blt import Objective


class KmerTokensConfig(Config):
    """Fixed words of k bases as tokens."""

    kind: Literal["kmer_tokens"] = "kmer_tokens"
    """The name of this architecture in configuration files."""
    word_bases: int = Field(6, ge=1, le=8)
    """k, the bases of a word: patches are cut by a static rule of this length (6 in GENERator and Carbon)."""
    global_model: StackConfig
    """Blocks over words; their width is M."""

    @property
    def num_words(self) -> int:
        """Words of k bases, 4^k."""
        return 4**self.word_bases

    def flops(
        self, num_bases: int, num_patches: int, objective: Objective = "next_base", training: bool = False
    ) -> dict[str, float]:
        """Operations of a forward pass over one sequence: the stack's parts, and a head over 4^k words and k ends.

        The word that is predicted behind the last one, and the first from the start vector, make P + 1. Sums over
        words are left out, as a softmax is elsewhere.
        """
        head = linear(num_patches + 1, self.global_model.width, self.num_words + self.word_bases)
        return {**self.global_model.flops(num_patches), "head": head}

    def build(self) -> KmerTokens:
        """The model with fresh weights, drawn from torch's default generator."""
        return KmerTokens(self)


class KmerTokens(nn.Module):
    """Logits of every single base from a global model over words.

    What is read: a word of n bases A, C, G, T, n at most k (forced boundaries make shorter ones), is one of 4^n rows
    of a table. Patches that hold an end of document share one row, the one in front of a row of a batch as well as
    the last one of a document; all others with another letter share another.

    What is predicted: logits of the 4^k words, and for each place of the word the odds that the document ends there.
    Given that it doesn't, the next base is scored by the words that begin with those already seen of its own; a letter
    that is none of the four is any of them, and is summed over. So the nats of a whole word's bases sum to the word's
    own, -log softmax of its logit, and the ends that did not come: sum over places of softplus(odds).

    Causal in bases: logits at t read the last patch that is finished before base t + 1, and the bases of t + 1's own
    patch up to t.

    Source: words as tokens: Nucleotide Transformer (Dalla-Torre et al. 2023), GENERator (arXiv:2502.07272); the
    factorisation over the letters of a word: the chain rule, as in Carbon's nucleotide scores.
    """

    class_of_byte: Tensor
    base_codes: Tensor

    def __init__(self, config: KmerTokensConfig) -> None:
        super().__init__()
        self.config = config
        width, word_bases = config.global_model.width, config.word_bases
        # Words of n bases begin at row (4^n - 1) / 3: behind the ends' row 0 and all shorter words.
        self.other_row = (4 ** (word_bases + 1) - 1) // 3
        self.words = nn.Embedding(self.other_row + 1, width)
        nn.init.normal_(self.words.weight, std=small_init_std(width))
        self.global_model = config.global_model.build()
        self.start = nn.Parameter(torch.zeros(width))
        self.head = nn.Linear(width, config.num_words + word_bases, bias=False)
        nn.init.zeros_(self.head.weight)
        codes = torch.full((VOCABULARY_SIZE,), OTHER_CODE, dtype=torch.long)
        codes[: len(BASE_CODE)] = torch.from_numpy(BASE_CODE.astype("int64"))
        self.register_buffer("base_codes", codes, persistent=False)
        self.register_buffer("class_of_byte", class_of_byte(), persistent=False)

    def forward(
        self,
        bases: Tensor,
        patch_lengths: Tensor,
        loss_weights: Tensor | None = None,
        loss_chunk_bases: int | None = None,
    ) -> Tensor | Prediction:
        """Scores the next base at each base.

        Args:
            bases: int64 [B, L].
            patch_lengths: integer [B, P], each at most k; zeros are padding, on the right. What they leave of the
                bases is an unfinished patch.
            loss_weights: float32 [B, L], weight of base t as a target: asks for nats in place of logits.
            loss_chunk_bases: not read: what is large here is the head over words, not the logits of bases.

        Returns:
            float [B, L, NUM_SCORED]: logits at t score base t + 1; columns are A, C, G, T, end of document. With
            `loss_weights`: a Prediction.
        """
        logits = self._logits(bases, patch_lengths)
        if loss_weights is None:
            return logits
        return Prediction(Targets(bases, loss_weights, self.class_of_byte).nats_of_logits(logits))

    def _logits(self, bases: Tensor, patch_lengths: Tensor) -> Tensor:
        num_bases, word_bases = bases.shape[1], self.config.word_bases
        read = self.global_model(self.words(self.word_rows(bases, patch_lengths)))
        start = self.start.to(read.dtype).expand(len(bases), 1, -1)
        predicted = self.head(torch.cat([start, read], 1)).float()
        # The base to be predicted behind the last one given belongs to a patch as well.
        layout = lay_out(close_unfinished(patch_lengths, num_bases + 1), num_bases + 1, word_bases)
        letters, there = _on_grid(functional.pad(bases, (0, 1), value=END_OF_DOCUMENT), layout)
        # Nothing follows an end or padding in its word: what stands for them there is not read.
        is_last = ~there | (letters == END_OF_DOCUMENT) | (letters == PADDING)
        codes = self.base_codes[letters].masked_fill(is_last, 0)
        words, ends = predicted.split([self.config.num_words, word_bases], -1)
        bases_of_words = next_letters(words.flatten(0, 1), codes.flatten(0, 1)).view(*ends.shape, 4)
        logits = torch.cat([bases_of_words, ends[..., None]], -1).flatten(1, 2)
        # Behind a patch of k bases that nobody has ended stands padding: what is scored there is not read.
        index = layout.patch[:, 1:] * word_bases + layout.place[:, 1:].clamp(max=word_bases - 1)
        return logits.gather(1, index[..., None].expand(-1, -1, logits.shape[2]))

    def word_rows(self, bases: Tensor, patch_lengths: Tensor) -> Tensor:
        """Rows of the table of words.

        Args:
            bases: int64 [B, L].
            patch_lengths: integer [B, P].

        Returns:
            int64 [B, P]; 0 for padded patches.
        """
        layout = lay_out(patch_lengths, bases.shape[1], self.config.word_bases)
        letters, there = _on_grid(bases, layout)
        codes = self.base_codes[letters]
        number = torch.zeros_like(layout.lengths)
        for place in range(self.config.word_bases):
            number = torch.where(there[..., place], 4 * number + codes[..., place], number)
        rows = number + (4 ** there.sum(-1) - 1) // 3
        rows = torch.where((there & (codes == OTHER_CODE)).any(-1), self.other_row, rows)
        return torch.where((there & (letters == END_OF_DOCUMENT)).any(-1), 0, rows)


def _on_grid(bases: Tensor, layout: PatchLayout) -> tuple[Tensor, Tensor]:
    """The byte at each place of each patch, int64 [B, P, k], and whether there is one, bool [B, P, k]."""
    index, there = layout.bases_on_grid()
    shape = (len(bases), -1, layout.num_places)
    return bases.gather(1, index.clamp(max=bases.shape[1] - 1)).view(shape), there.view(shape)


def next_letters(words: Tensor, codes: Tensor) -> Tensor:
    """The exact conditionals of a distribution over words, letter by letter.

    Args:
        words: float [N, 4^k], logits of words as base-4 numbers, their first letter in front.
        codes: int64 [N, k], the letters that are there: 0 to 3, or another number for any letter.

    Returns:
        float [N, k, 4], log probabilities of each letter at each place given the letters before it: a log-sum-exp
        over all words that agree so far, of which a quarter is left at the next place.
    """
    columns = []
    left = words[..., None]
    for place in range(codes.shape[1]):
        left = left.reshape(len(words), 4, -1)
        columns.append(left.logsumexp(-1).log_softmax(-1))
        if place + 1 < codes.shape[1]:
            code = codes[:, place]
            is_any = (code < 0) | (code > 3)
            chosen = left.gather(1, code.masked_fill(is_any, 0)[:, None, None].expand(-1, 1, left.shape[2]))[:, 0]
            left = torch.where(is_any[:, None], left.logsumexp(1), chosen) if bool(is_any.any()) else chosen
    return torch.stack(columns, 1)
