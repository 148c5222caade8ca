"""A global model of Savanna's own blocks, inside our hybrid."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hyena_blt_savanna.model.hyena_blt import HyenaBLT, HyenaBLTConfig
from hyena_blt_savanna.parallel.context import SINGLE_RANK, ContextParallel
from hyena_blt_savanna.parallel.group_context import GroupContext
from hyena_blt_savanna.savanna_plugin.checkout import SavannaError, import_savanna
from hyena_blt_savanna.savanna_plugin.zigzag import from_zigzag, to_zigzag


class SavannaStack(nn.Module):
    """Savanna's ParallelBlocks and final norm over patches; in the place of our Stack.

    Savanna's blocks take sequences of one length, their seq_length: they assert it, and the modal filter keeps the
    time grid of the first length that it meets. So patches are padded to `window_patches` positions.

    Args:
        global_config: Savanna's; a copy of it, with this length, is what the blocks see.
        window_patches: positions of the global model, over all context ranks.
        skip_init: what conv_bias starts from; Savanna leaves it as the memory was.
        context: the ranks that hold slices of the same windows.
    """

    def __init__(
        self, global_config: Any, window_patches: int, skip_init: float, context: ContextParallel = SINGLE_RANK
    ) -> None:
        super().__init__()
        backbone, norms = (
            import_savanna("savanna.model.backbone"),
            import_savanna("savanna.model.operators.local.norms"),
        )
        init, output_init = import_savanna("savanna.model.init_functions").get_init_methods(global_config)
        # A copy: building blocks also changes the activation that it names.
        self.config = copy.copy(global_config)
        self.config.seq_length = window_patches
        self.context = context
        self.num_checkpointed = global_config.checkpoint_num_layers if global_config.checkpoint_activations else 0
        self.blocks = nn.ModuleList(
            backbone.ParallelBlock(
                global_config=self.config,
                attention_mask_func=backbone.gpt2_attention_mask_func,
                init_method=init,
                output_layer_init_method=output_init,
                layer_number=index,
                rotary="rotary" in self.config.pos_emb,
            )
            for index in range(self.config.num_layers)
        )
        norm, epsilon = norms.get_norm(self.config)
        self.norm = norm(self.config.hidden_size, eps=epsilon)
        rows = import_savanna("savanna.mpu").RowParallelLinear
        for name, parameter in self.named_parameters():
            if name.endswith("conv_bias"):
                nn.init.constant_(parameter, skip_init)
        for module in self.modules():
            if isinstance(module, rows):
                # It takes a view of its input, which Hyena's is not where there are several windows.
                module.register_forward_pre_hook(_contiguous)
        self.register_load_state_dict_pre_hook(_fit_featurizers)

    def forward(self, x: Tensor) -> Tensor:
        """Runs all blocks.

        Args:
            x: [B, P, M]; P is at most the length of this rank's slice.

        Returns:
            [B, P, M].
        """
        length = self.config.seq_length // self.context.num_ranks
        num_patches = x.shape[1]
        if num_patches > length:
            raise SavannaError(
                f"a window has {num_patches * self.context.num_ranks} patches, the byte in front included, and "
                f"hyena-blt.window_patches is {self.config.seq_length}: raise it"
            )
        x = functional.pad(x, (0, 0, 0, length - num_patches))
        if isinstance(self.context, GroupContext):
            # Padding would lie between the slices.
            assert num_patches == length, "batches for context ranks are padded to window_patches"
            return from_zigzag(self._run(to_zigzag(x, self.context.group)), self.context.group)
        return self._run(x)[:, :num_patches]

    def _run(self, x: Tensor) -> Tensor:
        step = self.num_checkpointed or len(self.blocks)
        for first in range(0, len(self.blocks), step):
            blocks = nn.Sequential(*self.blocks[first : first + step])
            keeps_inputs_only = self.num_checkpointed and self.training
            x = checkpoint(blocks, x, use_reentrant=False) if keeps_inputs_only else blocks(x)
        return self.norm(x)


def _fit_featurizers(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Weights of causal_conv1d are [3 M, 3], those of torch's convolution [3 M, 1, 3]: either is loaded into either."""
    for name, parameter in module.named_parameters():
        stored = state.get(prefix + name)
        if name.endswith("hyena_proj_conv.short_conv_weight") and stored is not None:
            state[prefix + name] = stored.reshape(len(stored), *parameter.shape[1:])


def _contiguous(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].contiguous(), *arguments[1:])


def with_savanna_blocks(config: HyenaBLTConfig, stack: SavannaStack, context: ContextParallel) -> HyenaBLT:
    """A fresh hybrid around a global model of Savanna's.

    Args:
        config: of the hybrid.
        stack: as its global model.
        context: the ranks that hold slices of the same windows.
    """
    # One block of ours is built, to be thrown away, instead of all of them.
    small = config.global_model.model_copy(update={"blocks": ["hyena_se"]})
    model = config.model_copy(update={"global_model": small}).build(context)
    model.config = config
    model.global_model = stack  # type: ignore[assignment]
    return model


def build_context() -> ContextParallel:
    """What our layers exchange through, over Savanna's own group of context ranks."""
    mpu = import_savanna("savanna.mpu")
    if mpu.get_sequence_parallel_world_size() == 1:
        return SINGLE_RANK
    group = mpu.get_sequence_parallel_group()
    assert isinstance(group, dist.ProcessGroup)
    return GroupContext(group)


def own_device() -> torch.device:
    """Where this rank computes."""
    return torch.device(torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
