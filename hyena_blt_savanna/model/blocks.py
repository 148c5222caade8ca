"""One residual block: x + mixer(norm(x)), then x + mlp(norm(x)); and the table of mixers by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.attention import Attention
from hyena_blt_savanna.model.mixers import HyenaMixer
from hyena_blt_savanna.model.mlp import Activation, GatedMLP
from hyena_blt_savanna.model.operators import HyenaImplicit, HyenaLI, HyenaMR, HyenaSE
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel

if TYPE_CHECKING:
    from hyena_blt_savanna.model.stack import StackConfig


def _hyena(operator: type[HyenaSE] | type[HyenaMR] | type[HyenaLI] | type[HyenaImplicit]) -> Callable[..., nn.Module]:
    def build(config: StackConfig, context: ContextParallel) -> nn.Module:
        core = operator(config.width, config.hyena, context)
        return HyenaMixer(config.width, core, config.hyena, len(config.blocks), context)

    return build


def _attention(config: StackConfig, context: ContextParallel) -> nn.Module:
    return Attention(config.width, config.num_heads, config.attention, len(config.blocks), context)


MIXERS: dict[str, Callable[[StackConfig, ContextParallel], nn.Module]] = {
    "hyena_se": _hyena(HyenaSE),
    "hyena_mr": _hyena(HyenaMR),
    "hyena_li": _hyena(HyenaLI),
    "hyena_implicit": _hyena(HyenaImplicit),
    "attention": _attention,
}
"""What a block's name in `StackConfig.blocks` builds: a module from [B, L, M] to [B, L, M]."""


def build_mixer(name: str, config: StackConfig, context: ContextParallel = SINGLE_RANK) -> nn.Module:
    """The mixer of that name.

    Raises:
        ConfigError: there is no such mixer, or the configuration doesn't fit it.
    """
    if name not in MIXERS:
        raise ConfigError(f"blocks: there is no {name!r}; choose from {', '.join(MIXERS)}")
    return MIXERS[name](config, context)


class Block(nn.Module):
    """A mixer along the sequence and an MLP over the channels, each behind a norm and added to its input.

    Source: Savanna's `ParallelBlock.sequential_residual_forward`.
    """

    def __init__(
        self, name: str, activation: Activation, config: StackConfig, context: ContextParallel = SINGLE_RANK
    ) -> None:
        super().__init__()
        self.name = name
        self.activation_checkpointing = config.activation_checkpointing
        self.mixer_norm = config.norm.build(config.width, before_product=True)
        self.mixer = build_mixer(name, config, context)
        self.mlp_norm = config.norm.build(config.width, before_product=True)
        hidden_width = config.mlp.hidden_width(config.width)
        self.mlp = GatedMLP(config.width, hidden_width, activation, len(config.blocks))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, M] to [B, L, M]."""
        if self.activation_checkpointing and self.training:
            mixed: Tensor = checkpoint(self._mix, x, use_reentrant=False, preserve_rng_state=False)
            return mixed
        return self._mix(x)

    def _mix(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.mlp(self.mlp_norm(x))
