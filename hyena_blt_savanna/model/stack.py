"""A stack of blocks, given as a list of names: the global model, and the body of the isotropic one."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.model.attention import AttentionConfig
from hyena_blt_savanna.model.blocks import MIXERS, Block
from hyena_blt_savanna.model.flops import add_parts
from hyena_blt_savanna.model.mlp import MLPConfig
from hyena_blt_savanna.model.norms import NormConfig
from hyena_blt_savanna.model.operators import OPERATOR_KINDS, HyenaConfig
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel


class StackConfig(Config):
    """Width, heads, and which blocks in which order."""

    width: int = Field(gt=0)
    """Number of channels M."""
    num_heads: int = Field(1, gt=0)
    """Heads of the attention blocks; read only where there are any."""
    blocks: list[str] = Field(min_length=1)
    """Names of the mixers from first to last: hyena_se, hyena_mr, hyena_li, hyena_implicit, attention."""
    hyena: HyenaConfig = HyenaConfig()
    """The Hyena blocks."""
    attention: AttentionConfig = AttentionConfig()
    """The attention blocks."""
    mlp: MLPConfig = MLPConfig()
    """The MLP of every block."""
    norm: NormConfig = NormConfig()
    """Every norm."""
    final_norm: bool = True
    """Whether a norm follows the last block."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass, and compute the rest again."""

    @field_validator("blocks")
    @classmethod
    def _known(cls, blocks: list[str]) -> list[str]:
        unknown = sorted(set(blocks) - set(MIXERS))
        if unknown:
            raise ValueError(f"there is no block {', '.join(unknown)}; choose from {', '.join(MIXERS)}")
        return blocks

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in set(self.blocks) & set(OPERATOR_KINDS):
            self.hyena.num_groups(OPERATOR_KINDS[name], self.width)
        if "attention" in self.blocks and (self.width % self.num_heads or self.width // self.num_heads % 2):
            raise ValueError(f"num_heads = {self.num_heads} does not cut width = {self.width} into heads of even width")
        return self

    def with_rotary(self, **changes: float) -> StackConfig:
        """The same stack with other rotary positions in its attention blocks.

        Args:
            changes: fields of RotaryConfig.
        """
        rotary = self.attention.rotary.model_copy(update=changes)
        return self.model_copy(update={"attention": self.attention.model_copy(update={"rotary": rotary})})

    @property
    def attends_to_all(self) -> bool:
        """Whether rotary positions of a block run over a whole window."""
        return "attention" in self.blocks and self.attention.window is None

    def check_context(self, num_ranks: int, key: str = "parallel.context") -> None:
        """Refuses blocks whose channels, filters or heads can't be shared out among context ranks.

        Args:
            num_ranks: C.
            key: what sets it, for the message.

        Raises:
            ConfigError: they can't; it names the key and what would fit.
        """
        shared = {"hyena_li": ("hyena.li_groups", self.hyena.li_groups or self.width)}
        shared |= {"hyena_implicit": ("width", self.width), "attention": ("num_heads", self.num_heads)}
        for name, (what, count) in shared.items():
            if name in self.blocks and count % num_ranks:
                fitting = [str(ranks) for ranks in range(1, count + 1) if count % ranks == 0]
                raise ConfigError(
                    f"{key} = {num_ranks} does not divide {what} = {count} of the {name} blocks: choose from "
                    f"{', '.join(fitting)}, or change {what}"
                )

    def reach(self, block: str) -> int | None:
        """Positions before a position that a block of that name reads there; None: all of them."""
        if block == "attention":
            return None if self.attention.window is None else self.attention.window - 1
        kind = OPERATOR_KINDS[block]
        if kind in ("li", "implicit"):
            return None
        num_taps = self.hyena.se_taps if kind == "se" else self.hyena.mr_taps
        return self.hyena.featurizer_taps - 1 + num_taps - 1

    def flops(self, length: int) -> dict[str, float]:
        """Operations of a forward pass over one sequence, by part: a mixer and an MLP for each block."""
        return add_parts(*(self._block_flops(name, length) for name in self.blocks))

    def _block_flops(self, block: str, length: int) -> dict[str, float]:
        if block == "attention":
            mixer = self.attention.flops(length, self.width)
        else:
            mixer = self.hyena.flops(OPERATOR_KINDS[block], length, self.width)
        return add_parts(mixer, self.mlp.flops(length, self.width))

    def build(self, context: ContextParallel = SINGLE_RANK) -> Stack:
        """The stack, freshly initialised."""
        return Stack(self, context)


def global_stack(config: Config) -> tuple[str, StackConfig] | None:
    """The blocks of a model that read whole windows.

    Args:
        config: of a model.

    Returns:
        Their key and configuration; None for a model that reads windows in several stacks.
    """
    for key in ("global_model", "stack"):
        if key in type(config).model_fields:
            return key, getattr(config, key)
    return None


class Stack(nn.Module):
    """Blocks one after the other, and a final norm."""

    def __init__(self, config: StackConfig, context: ContextParallel = SINGLE_RANK) -> None:
        super().__init__()
        self.config = config
        activations = config.mlp.activations(config.blocks)
        self.blocks = nn.ModuleList(
            Block(name, activation, config, context)
            for name, activation in zip(config.blocks, activations, strict=True)
        )
        self.norm = config.norm.build(config.width) if config.final_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Runs all blocks.

        Args:
            x: [B, L, M]; any L, and each position is computed from itself and those before it.

        Returns:
            [B, L, M].
        """
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
