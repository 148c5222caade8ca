"""Reading sequences one base at a time with a hybrid: a position of the local modules a base, of the global a patch.

Rows of a batch end their patches at different bases. A row whose patch has ended waits, because the global model's
view of that patch is read for the very next base; the others go on. Once all rows wait, `end_patches` reads a patch of
each in one step of the global model. What is remembered of a row is what its blocks remember (`model.memories`), the
states of the bases of its unfinished patch, and what its last finished patch says to each place of the next one: none
of it grows with the sequence, unless the global model's memory does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hyena_blt_savanna.model.decoding import StackReader
from hyena_blt_savanna.model.from_patches import CrossAttention
from hyena_blt_savanna.model.hyena_blt import HyenaBLT
from hyena_blt_savanna.model.kmer_reading import KmerReader
from hyena_blt_savanna.model.patches import lay_out


class HybridDecoder:
    """`prefill` once; then for each row and base `read`, `end_patches` if its patch has ended, and `logits`.

    All but `prefill` leave it to the caller to turn gradients off, once for all bases. Where rows are asked for, they
    are int64 [b] on the CPU, or None: all of the batch.

    Args:
        model: in evaluation mode, on one rank.
    """

    def __init__(self, model: HyenaBLT) -> None:
        self._encoder, self._decoder, self._config = model.encoder, model.decoder, model.config
        self._global_model = StackReader.of(model.global_model)
        self._kmers = KmerReader(self._encoder.embedding.kmers)
        self._encoder_blocks = StackReader(self._encoder.blocks)
        self._decoder_blocks = StackReader(self._decoder.blocks, self._decoder.norm)
        # What a patch says to its places is known once it has ended, unless a base has to ask.
        self._bases_ask = isinstance(self._decoder.from_patches, CrossAttention)

    @torch.no_grad()
    def prefill(self, bases: Tensor, patch_lengths: Tensor) -> Tensor:
        """Reads the start of a sequence in one parallel pass.

        Args:
            bases: int64 [1, L], the byte in front included.
            patch_lengths: integer [1, P], P at least 1, of finished patches; what they leave is an unfinished one, of
                less than J bases.

        Returns:
            Logits [1, C] of the base after the last one.
        """
        config, num_bases = self._config, bases.shape[1]
        layout = lay_out(patch_lengths, num_bases, config.max_patch_bases)
        x_BLD = self._encoder_blocks.prefill(self._encoder.embed(bases, layout))
        after_BPM = self._global_model.prefill(self._encoder.pool(x_BLD, layout))
        self._kmers.prefill(bases)
        self._num_read = torch.tensor([num_bases])
        self._all = torch.arange(1)
        # Bases of the unfinished patch, and their states; those behind them are anything.
        num_unfinished = num_bases - int(patch_lengths.sum())
        self._places = torch.tensor([num_unfinished])
        self._unfinished = x_BLD.new_zeros(1, config.max_patch_bases, x_BLD.shape[2])
        self._unfinished[:, :num_unfinished] = x_BLD[:, num_bases - num_unfinished :]
        self._newest = x_BLD[:, -1].clone()
        self._said = self._say(after_BPM[:, -1:].clone())
        first = self._first_patch_read(patch_lengths, num_bases)
        start = int(patch_lengths[:, :first].sum())
        return self._prefill_decoder(
            x_BLD[:, start:], after_BPM[:, first:], patch_lengths[:, first:], after_BPM[:, first - 1] if first else None
        )

    def _first_patch_read(self, patch_lengths: Tensor, num_bases: int) -> int:
        """The patch from which on the decoder knows all that the last base's logits are made of."""
        starts = patch_lengths[0].cumsum(0) - patch_lengths[0]
        reach = self._config.decoder.reach_bases(self._config.local_width)
        return max(int((starts < num_bases - reach).sum()) - 1, 0)

    def _prefill_decoder(
        self, x_BLD: Tensor, after_BPM: Tensor, patch_lengths: Tensor, before_BM: Tensor | None
    ) -> Tensor:
        x_BLD = self._decoder.with_patches(x_BLD, after_BPM, patch_lengths, before_BM)
        logits: Tensor = self._decoder.head(self._decoder_blocks.prefill(x_BLD)[:, -1])
        return logits

    def read(self, bases: Tensor, rows: Tensor | None = None) -> None:
        """Reads the next base, int64 [b], of some rows."""
        places = self._places if rows is None else self._places[rows]
        x_BD = self._encoder.embedding.bases(bases) + self._kmers.step(bases, rows)
        if self._encoder.place is not None:
            x_BD = x_BD + self._encoder.place(places.to(bases.device))
        if self._encoder.periods is not None:
            num_read = self._num_read if rows is None else self._num_read[rows]
            x_BD = x_BD + self._encoder.periods(1, num_read.to(bases.device))[:, 0]
        x_BD = self._encoder_blocks.step(x_BD, rows)
        if rows is None:
            rows, self._newest = self._all, x_BD
        else:
            self._newest[rows] = x_BD
        self._unfinished[rows, places] = x_BD
        self._places.index_add_(0, rows, self._all.new_ones(len(rows)))
        self._num_read.index_add_(0, rows, self._all.new_ones(len(rows)))

    def end_patches(self) -> None:
        """The unfinished patch of every row, of one base at least, ends here: the global model reads it."""
        num_places = self._config.max_patch_bases
        layout = lay_out(self._places[:, None].to(self._unfinished.device), num_places, num_places)
        patches_BPM = self._encoder.pool(self._unfinished, layout)
        self._said = self._say(self._global_model.step(patches_BPM[:, 0])[:, None])
        self._places.zero_()

    def logits(self, rows: Tensor | None = None) -> Tensor:
        """Of the base after those read, [b, C], of some rows: once for each base."""
        places, x_BD = self._places, self._newest
        if rows is not None:
            places, x_BD = places[rows], x_BD[rows]
        if self._bases_ask:
            two_bases = torch.full((len(x_BD), 1), 2, device=x_BD.device)
            layout = lay_out(two_bases, 2, 2)
            said = self._said if rows is None else self._said[rows]
            x_BD = x_BD + self._decoder.from_patches(said, x_BD[:, None], layout)[:, 1]
        else:
            x_BD = x_BD + self._said[self._all if rows is None else rows, places]
        if self._decoder.place is not None:
            x_BD = x_BD + self._decoder.place(places.to(x_BD.device))
        logits: Tensor = self._decoder.head(self._decoder_blocks.step(x_BD, rows))
        return logits

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows, int64 [b], only; a row may come more than once."""
        for part in (self._global_model, self._encoder_blocks, self._decoder_blocks, self._kmers):
            part.select(rows)
        for name in _PER_ROW:
            setattr(self, name, getattr(self, name)[rows])
        self._all = torch.arange(len(self._places))

    def join(self, others: Sequence[HybridDecoder]) -> None:
        """Adds the rows of other decoders of the same model, behind its own."""
        self._global_model.join([other._global_model for other in others])
        self._encoder_blocks.join([other._encoder_blocks for other in others])
        self._decoder_blocks.join([other._decoder_blocks for other in others])
        self._kmers.join([other._kmers for other in others])
        for name in _PER_ROW:
            setattr(self, name, torch.cat([getattr(self, name), *(getattr(other, name) for other in others)]))
        self._all = torch.arange(len(self._places))

    @property
    def num_bytes(self) -> int:
        """What is remembered of all rows, k-mers aside."""
        blocks = (self._global_model, self._encoder_blocks, self._decoder_blocks)
        return sum(part.num_bytes for part in blocks) + sum(getattr(self, name).nbytes for name in _PER_ROW)

    def _say(self, after_BPM: Tensor) -> Tensor:
        """What is kept of a finished patch, [B, 1, M]: its words to each place, [B, J, D], or itself."""
        if self._bases_ask:
            return after_BPM
        num_places = self._config.max_patch_bases
        lengths = torch.full((len(after_BPM), 1), num_places, device=after_BPM.device)
        said: Tensor = self._decoder.from_patches(after_BPM, after_BPM, lay_out(lengths, num_places, num_places))
        return said


_PER_ROW = ("_num_read", "_places", "_unfinished", "_newest", "_said")
