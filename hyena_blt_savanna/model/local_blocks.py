"""The blocks of the local modules, given as a list of names, and how far back they read."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import nn

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.model.attention import AttentionConfig
from hyena_blt_savanna.model.blocks import Block
from hyena_blt_savanna.model.flops import linear
from hyena_blt_savanna.model.gated_convolution import GatedConvolution
from hyena_blt_savanna.model.initialisation import wang_init_std
from hyena_blt_savanna.model.mlp import MLPConfig
from hyena_blt_savanna.model.norms import NormConfig
from hyena_blt_savanna.model.operators import HyenaConfig
from hyena_blt_savanna.model.stack import StackConfig

GATED_CONVOLUTION = "gated_convolution"
LOCAL_BLOCKS = (GATED_CONVOLUTION, "hyena_se", "hyena_mr", "attention")
"""Names that a local module may list: blocks that read a fixed number of bases, so that their cost is linear."""


class LocalConfig(Config):
    """Blocks over single bases, of the local encoder or decoder."""

    blocks: list[str] = Field([GATED_CONVOLUTION])
    """Names from first to last: gated_convolution, hyena_se, hyena_mr, attention; the list may be empty."""
    num_taps: PositiveInt = 4
    """Bases that a gated convolution reads, its own included."""
    hidden_width: PositiveInt = 192
    """Channels inside a gated convolution."""
    num_heads: PositiveInt = 4
    """Heads of the attention blocks; read only where there are any."""
    hyena: HyenaConfig = HyenaConfig()
    """The hyena_se and hyena_mr blocks."""
    attention: AttentionConfig = Field(AttentionConfig(window=128))
    """The attention blocks; their window must be given."""
    mlp: MLPConfig = MLPConfig()
    """The MLP of the hyena_se, hyena_mr and attention blocks."""
    norm: NormConfig = NormConfig()
    """The norms of the same blocks."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass, and compute the rest again."""

    @field_validator("blocks")
    @classmethod
    def _known(cls, blocks: list[str]) -> list[str]:
        unknown = sorted(set(blocks) - set(LOCAL_BLOCKS))
        if unknown:
            raise ValueError(f"there is no local block {', '.join(unknown)}; choose from {', '.join(LOCAL_BLOCKS)}")
        return blocks

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if "attention" in self.blocks and self.attention.window is None:
            raise ValueError("attention.window is null; attention over single bases needs a window, such as 128")
        return self

    def check(self, width: int) -> None:
        """Refuses blocks that a width doesn't fit.

        Raises:
            ConfigError: filters or heads can't share out the channels.
        """
        for name, kind in (("hyena_se", "se"), ("hyena_mr", "mr")):
            if name in self.blocks:
                self.hyena.num_groups(kind, width)  # type: ignore[arg-type]
        if "attention" in self.blocks and width % (2 * self.num_heads):
            raise ConfigError(
                f"num_heads = {self.num_heads} does not cut local_width = {width} into heads of even width"
            )

    def reach_bases(self, width: int) -> int:
        """Bases before base t that the state of base t is computed from."""
        reach = 0
        for name in self.blocks:
            before = self.num_taps - 1 if name == GATED_CONVOLUTION else self._stack_of(name, width).reach(name)
            assert before is not None
            reach += before
        return reach

    def flops(self, num_bases: int, width: int) -> float:
        """Operations of the blocks over one sequence.

        A gated convolution widens K taps of D to two of H channels and narrows H to D, 2 D H (2 K + 1) a base; the
        others see `StackConfig.flops`.
        """
        widen = linear(num_bases, self.num_taps * width, 2 * self.hidden_width)
        gated = widen + linear(num_bases, self.hidden_width, width)
        return sum(
            gated if name == GATED_CONVOLUTION else sum(self._stack_of(name, width).flops(num_bases).values())
            for name in self.blocks
        )

    def build(self, width: int) -> nn.ModuleList:
        """The blocks, an empty list where there are none."""
        blocks: list[nn.Module] = []
        for name, activation in zip(self.blocks, self.mlp.activations(self.blocks), strict=True):
            if name == GATED_CONVOLUTION:
                saving = self.activation_checkpointing
                blocks.append(GatedConvolution(width, self.hidden_width, self.num_taps, saving))
            else:
                blocks.append(Block(name, activation, self._stack_of(name, width)))
        return nn.ModuleList(blocks)

    def _stack_of(self, name: str, width: int) -> StackConfig:
        """What the `Block` of that name is built from."""
        return StackConfig(
            width=width,
            num_heads=self.num_heads,
            blocks=[name],
            hyena=self.hyena,
            attention=self.attention,
            mlp=self.mlp,
            norm=self.norm,
            activation_checkpointing=self.activation_checkpointing,
        )


def check_heads(key: str, num_heads: int, width: int) -> None:
    """Refuses heads of cross-attention that can't share out the channels.

    Raises:
        ConfigError: they can't; it names the key.
    """
    if width % num_heads:
        raise ConfigError(f"{key} = {num_heads} does not divide local_width = {width}; choose a divisor")


def scale_residual_branches(blocks: list[nn.Module], width: int) -> None:
    """Draws the ways out of blocks again, scaled by the depth of the residual stream that they all write to."""
    for block in blocks:
        if isinstance(block, GatedConvolution):
            block.reset_parameters(len(blocks))
        else:
            assert isinstance(block, Block)
            for name in ("mixer.out_projection.weight", "mlp.down.weight"):
                nn.init.normal_(block.get_parameter(name), std=wang_init_std(width, len(blocks)))
