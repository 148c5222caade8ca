"""Losses of the hybrid besides the one of the bases: what else its vectors may be asked to know.

Each is a sum over a batch in nats, times a coefficient. None of them changes a logit: they are computed in training
only, from what the forward pass has computed anyway and from targets that it never reads, and what they learn is
learned by the modules below them. Sums, not means, and no statistics of a batch: neither the number of ranks nor
accumulation changes a gradient.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.model.flops import linear
from hyena_blt_savanna.model.patches import PatchLayout, bases_to_grid

ENTROPY_MEAN_NATS = 1.3
"""About the mean of DNA's entropies: 1.33 on E. coli, 1.24 on human chromosome 20, of count models of order 8."""
ENTROPY_SPREAD_NATS = 0.1
"""Between their standard deviations: 0.05 on E. coli, 0.2 on chromosome 20."""


class AuxiliaryConfig(Config):
    """Coefficients of the losses; those of 0 are not computed and have no weights.

    The autoencoder has none of them: trained with that objective, a model leaves their weights as they are.
    """

    patch_length: float = Field(0.0, ge=0)
    """From the global model's output at a patch, the length of the next one: cross-entropy over 1 to max_patch_bases.
    A length weighs what the bases of its patch weigh on average, so that one nat a patch is less than one nat a base.
    """
    entropy: float = Field(0.0, ge=0)
    """From the state that scores a base, the entropy model's entropy of that base: squared error, in units of
    2 * 0.1^2 nats^2. It needs an annotation with stored entropies."""
    reconstruction: float = Field(0.0, ge=0)
    """The autoencoder's loss: bases from the encoder's vector of their own patch, by the same decoder."""

    @property
    def has_losses(self) -> bool:
        """Whether any loss is computed."""
        return bool(self.patch_length or self.entropy or self.reconstruction)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields of a batch that the losses read besides bases, patch lengths and weights."""
        return ("entropies",) if self.entropy else ()

    def flops(
        self, num_bases: int, num_patches: int, width: int, patch_width: int, max_patch_bases: int, decoder: float
    ) -> float:
        """Operations of the losses over one sequence.

        Args:
            num_bases: L.
            num_patches: P; the last one's successor is not known.
            width: D.
            patch_width: M.
            max_patch_bases: J.
            decoder: operations of one more pass through the decoder, its head included.
        """
        patch_length = linear(num_patches - 1, patch_width, max_patch_bases) if self.patch_length else 0.0
        entropy = linear(num_bases, width, 1) if self.entropy else 0.0
        return patch_length + entropy + (decoder if self.reconstruction else 0.0)

    def build(self, width: int, patch_width: int, max_patch_bases: int) -> AuxiliaryLosses:
        """The losses, with heads of zeros where they have one."""
        return AuxiliaryLosses(self, width, patch_width, max_patch_bases)


class AuxiliaryLosses(nn.Module):
    """The weighted sum of the losses that have a coefficient.

    Args:
        config: coefficients.
        width: D, of the decoder's states.
        patch_width: M, of the global model's output.
        max_patch_bases: J.
    """

    def __init__(self, config: AuxiliaryConfig, width: int, patch_width: int, max_patch_bases: int) -> None:
        super().__init__()
        self.config = config
        self.patch_length = nn.Linear(patch_width, max_patch_bases) if config.patch_length else None
        self.entropy = nn.Linear(width, 1) if config.entropy else None
        for head in (self.patch_length, self.entropy):
            if head is not None:
                # As the head of the bases: nothing flows back before it has learned which way.
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def forward(
        self,
        layout: PatchLayout,
        patches_BPM: Tensor,
        states_BLD: Tensor,
        reconstruction_nats: Tensor | None,
        loss_weights: Tensor,
        entropies: Tensor | None,
    ) -> Tensor:
        """Adds up the losses of a batch.

        Args:
            layout: of the finished patches.
            patches_BPM: what the global model made of the patches.
            states_BLD: of the decoder; those at t score base t + 1.
            reconstruction_nats: scalar, the autoencoder's, where that loss has a coefficient.
            loss_weights: float32 [B, L], weight of base t as a target.
            entropies: float32 [B, L], nats, where that loss has a coefficient; read where the weight is above 0.

        Returns:
            A scalar, float32 at least, nats.
        """
        nats = loss_weights.new_zeros(())
        if self.patch_length is not None:
            logits = self.patch_length(patches_BPM[:, :-1])
            nats = nats + self.config.patch_length * _length_nats(logits, layout, loss_weights)
        if self.entropy is not None:
            assert entropies is not None, "the entropy loss is trained with entropies"
            guess = self.entropy(states_BLD[:, :-1]).squeeze(-1)
            nats = nats + self.config.entropy * _entropy_nats(guess, entropies[:, 1:], loss_weights[:, 1:])
        if reconstruction_nats is not None:
            nats = nats + self.config.reconstruction * reconstruction_nats
        return nats


def _length_nats(logits: Tensor, layout: PatchLayout, loss_weights: Tensor) -> Tensor:
    """Nats of the lengths of all patches but the first, [B, P - 1, J] logits; padded patches have no target.

    A patch that is still open at the end of the bases is none of the layout's, and no target either. Where windows are
    cut anew in the loader, the last patch of each ends with its window: one length in hundreds is not the rule's.
    """
    lengths = layout.lengths[:, 1:]
    nats = functional.cross_entropy(logits.float().transpose(1, 2), lengths - 1, ignore_index=-1, reduction="none")
    weights = bases_to_grid(loss_weights[..., None], layout)[:, 1:].sum((2, 3)) / lengths.clamp(min=1)
    return (nats * weights).sum()


def _entropy_nats(guess: Tensor, entropies: Tensor, weights: Tensor) -> Tensor:
    """Nats of entropies [B, L - 1] under normal distributions of one spread, but for the constant.

    A squared error of DNA's entropies is tiny, because they are nearly flat: 0.002 nats^2 on E. coli for a guess of
    their mean. In units of a typical variance it is of the size of the other losses, and one coefficient means as
    much for each. Mean and spread are constants, not the data's: a head that starts at zero begins at the mean, and
    what a window weighs does not depend on the others of its batch.
    """
    wanted = (entropies - ENTROPY_MEAN_NATS) / ENTROPY_SPREAD_NATS
    # Not a product with the weights alone: what an entropy is where nothing weighs must not matter, even if it is NaN.
    error = (guess.float() - wanted).masked_fill(weights == 0, 0.0)
    return (0.5 * error.square() * weights).sum()
