"""The configuration of a training run: everything that `launch/train.sh` reads."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hyena_blt_savanna.config import Config, ConfigError
from hyena_blt_savanna.evaluation.native_checkpoint import patch_places
from hyena_blt_savanna.model.convolution import BackendChoice
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig, Objective
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.stack import global_stack
from hyena_blt_savanna.parallel.mesh import ParallelConfig
from hyena_blt_savanna.training.bad_steps import BadStepsConfig
from hyena_blt_savanna.training.checkpoints import CheckpointConfig
from hyena_blt_savanna.training.data_config import DataSourceConfig
from hyena_blt_savanna.training.engine import Precision
from hyena_blt_savanna.training.fp8_gate import Fp8Config
from hyena_blt_savanna.training.metrics import LoggingConfig
from hyena_blt_savanna.training.model_config import ModelConfig, with_activation_checkpointing
from hyena_blt_savanna.training.optimizer import OptimizerConfig
from hyena_blt_savanna.training.schedule import (
    ScheduleConfig,
    StageConfig,
    StageRotaryConfig,
    place_of,
)
from hyena_blt_savanna.training.universal import UNREADABLE
from hyena_blt_savanna.training.validation import ValidationConfig

OWNED_DEEPSPEED_KEYS = {
    "train_batch_size": "training.stages: batch_windows",
    "train_micro_batch_size_per_gpu": "training.stages: micro_batch_windows",
    "gradient_accumulation_steps": "training.stages: batch_windows / (ranks * micro_batch_windows)",
    "managed_gradient_accumulation": "training.stages: micro_batch_windows",
    "optimizer": "training.optimizer",
    "scheduler": "training.schedule",
    "gradient_clipping": "training.gradient_clipping",
    "fp16": "training.precision",
    "bf16": "training.precision",
    "amp": "training.precision",
    "torch_autocast": "training.precision",
    "data_types": "training.precision",
    "activation_checkpointing": "training.activation_checkpointing",
    "steps_per_print": "training.logging.every_steps",
    "curriculum_learning": "training.stages",
    "data_efficiency": "training.stages",
    "gradient_allreduce_op": "nothing: the loss is divided by the scored weight of all ranks",
    "prescale_gradients": "nothing: the loss is divided by the scored weight of all ranks",
    "gradient_predivide_factor": "nothing: the loss is divided by the scored weight of all ranks",
}
"""Keys of DeepSpeed's configuration that follow from ours, and from which."""

_LEAST_STAGE = {"offload_optimizer": 1, "offload_param": 3}
"""The stage of ZeRO from which on DeepSpeed offloads what a key names."""

_MONITORS = ("tensorboard", "csv_monitor", "wandb", "comet")


class TrainingConfig(Config):
    """How a model is trained."""

    stages: list[StageConfig] = Field(min_length=1)
    """Window and batch, stage after stage."""
    objective: Objective = "next_base"
    """autoencoder: local encoder and decoder alone reconstruct each patch; the global model stays as it is."""
    frozen: list[str] = Field(default_factory=list)
    """Patterns of the names of weights that stay as they are, such as global_model.*; * and ? stand for any letters."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over all stages."""
    gradient_clipping: PositiveFloat | None = 1.0
    """Largest norm of all gradients; null does not clip."""
    precision: Precision | Literal["auto"] = "fp32"
    """bf16: matrix products in bfloat16, weights and optimizer in fp32. fp8: likewise, but projections and MLPs of the
    global model in FP8. auto: bf16 where the hardware has it."""
    fp8: Fp8Config | None = None
    """How, with precision fp8; null takes the defaults there."""
    convolution: BackendChoice = "auto"
    """What computes causal convolutions wherever it takes their shapes (model/convolution.py); auto: the fastest."""
    activation_checkpointing: bool = False
    """Keep only each block's input for the backward pass, and compute the rest again."""
    loss_chunk_bases: PositiveInt | None = 16_384
    """Bases of a rank whose logits exist at a time; null: those of a whole micro batch."""
    validation: ValidationConfig | None = ValidationConfig()
    """On held-out windows; null for none."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """When they are written, and which are kept."""
    logging: LoggingConfig = LoggingConfig()
    """When metrics are written."""
    bad_steps: BadStepsConfig = BadStepsConfig()
    """What happens to a step whose loss or gradients are out of line."""
    watchdog_seconds: PositiveFloat | None = 1800.0
    """A run without progress for so long writes down where each rank stands, and ends with exit code 76; longer than
    any step, validation or checkpoint. null: never."""

    @model_validator(mode="before")
    @classmethod
    def _fp8_by_default(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("precision") == "fp8" and tree.get("fp8") is None:
            return {**tree, "fp8": {}}
        return tree

    @model_validator(mode="after")
    def _fp8_fits(self) -> Self:
        if self.fp8 is None:
            return self
        if self.precision != "fp8":
            raise ValueError(
                f"fp8 is read with precision fp8 only, and precision is {self.precision}: use fp8=null, or "
                "precision=fp8"
            )
        if self.validation is None:
            raise ValueError(
                "precision fp8 compares FP8 with bf16 on validation windows at each checkpoint, and validation is "
                "null: give it, or use precision=bf16"
            )
        return self

    @field_validator("stages")
    @classmethod
    def _windows_grow(cls, stages: list[StageConfig]) -> list[StageConfig]:
        for index, (before, stage) in enumerate(pairwise(stages), 1):
            if stage.first_window_bases < before.window_bases:
                raise ValueError(
                    f"stage {index} begins with windows of {stage.first_window_bases:,} bases, and stage {index - 1} "
                    f"ends with {before.window_bases:,}: give it at least {before.window_bases:,}, or put the stages "
                    "in the order of their windows"
                )
        return stages


class RunConfig(Config):
    """A training run."""

    run: Path
    """Folder of the run; a run that is started again on it goes on from its newest checkpoint."""
    seed: int = 0
    """Of the first weights and of the order of the data."""
    start_from: Path | None = None
    """First weights: a checkpoint of the same model, or a run folder; null draws them. Not read when a run goes on."""
    data: DataSourceConfig
    """What is trained on."""
    model: ModelConfig
    """What is trained; `kind` chooses the architecture."""
    training: TrainingConfig
    """How."""
    parallel: ParallelConfig = ParallelConfig()
    """How ranks share the work."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """DeepSpeed's own configuration, such as zero_optimization and monitors; passed through."""

    @field_validator("model", mode="before")
    @classmethod
    def _losses_fit(cls, model: Any) -> Any:
        if isinstance(model, dict) and "auxiliary" in model and model.get("kind", "hyena_blt") != "hyena_blt":
            raise ValueError(
                f"auxiliary losses are for kind hyena_blt, and kind is {model['kind']}: leave model.auxiliary out"
            )
        return model

    @field_validator("deepspeed")
    @classmethod
    def _not_ours(cls, block: dict[str, Any]) -> dict[str, Any]:
        owned = [f"{key} (use {OWNED_DEEPSPEED_KEYS[key]})" for key in block if key in OWNED_DEEPSPEED_KEYS]
        if owned:
            raise ValueError(f"these keys of DeepSpeed follow from other keys here: {', '.join(owned)}")
        zero = block.get("zero_optimization", {})
        stage = zero.get("stage", 0) if isinstance(zero, dict) else None
        if stage not in (0, 1, 2, 3):
            raise ValueError("zero_optimization must be a mapping with a stage of 0, 1, 2 or 3")
        for key in UNREADABLE:
            if zero.get(key):
                raise ValueError(f"no other number of ranks could go on from checkpoints of {key}: leave it out")
        for key, least_stage in _LEAST_STAGE.items():
            offload = zero.get(key)
            # DeepSpeed keeps silent, and offloads nothing.
            if isinstance(offload, dict) and offload.get("device", "none") != "none" and stage < least_stage:
                raise ValueError(
                    f"zero_optimization.{key} does nothing at stage {stage}: set zero_optimization.stage to at least "
                    f"{least_stage}, or leave {key} out"
                )
        return block

    @model_validator(mode="after")
    def _data_fit(self) -> Self:
        source, kind = self.data, self.model.kind
        reads_patches = patch_places(self.model) is not None
        if reads_patches and source.annotation is None:
            raise ValueError(f"data.annotation is null, and model.kind {kind} reads patches: name their boundaries")
        if not reads_patches and source.cuts is not None:
            raise ValueError(f"data.cuts is for a model of patches, and model.kind is {kind}: leave data.cuts out")
        if source.left_out is not None and self.start_from is not None:
            raise ValueError(
                "data.left_out keeps a fold unseen, and start_from may have seen it: leave one of them out"
            )
        validation = self.training.validation
        if source.sources is not None and validation is not None and validation.windows is not None:
            raise ValueError(
                "training.validation.windows counts the windows of one dataset, and data.sources are several: use "
                "training.validation.num_bases"
            )
        return self

    @model_validator(mode="after")
    def _patches_fit(self) -> Self:
        key, longest = patch_places(self.model) or ("", 0)
        for index, stage in enumerate(self.training.stages):
            if stage.first_window_bases < longest:
                raise ValueError(
                    f"training.stages.{index}.{stage.first_window_key} {stage.first_window_bases} is shorter than a "
                    f"patch may be (model.{key} {longest})"
                )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        objective = self.training.objective
        if objective != "next_base" and self.model.kind != "hyena_blt":
            raise ValueError(
                f"training.objective {objective} is for a model of patches (model.kind hyena_blt), and model.kind is "
                f"{self.model.kind}: use training.objective=next_base"
            )
        return self

    @model_validator(mode="after")
    def _fp8_has_layers(self) -> Self:
        fp8, found = self.training.fp8, global_stack(self.model)
        if fp8 is None:
            return self
        if found is None:
            raise ValueError(
                f"training.precision fp8 is for the one stack of blocks that reads whole windows, and model.kind "
                f"{self.model.kind} has several: use training.precision=bf16"
            )
        if self.training.objective != "next_base":
            raise ValueError(
                f"training.precision fp8 is for the global model, which training.objective {self.training.objective} "
                "leaves out: use training.precision=bf16"
            )
        key, stack = found
        num_blocks = len(stack.blocks)
        if 2 * fp8.bf16_blocks >= num_blocks:
            most = (num_blocks - 1) // 2
            raise ValueError(
                f"training.fp8.bf16_blocks {fp8.bf16_blocks} at the start and as many at the end are all of the "
                f"{num_blocks} blocks of model.{key}: use at most {most}"
            )
        return self

    @model_validator(mode="after")
    def _rotary_fits(self) -> Self:
        found = global_stack(self.model)
        for index, stage in enumerate(self.training.stages):
            if stage.rotary == StageRotaryConfig() or (found is not None and found[1].attends_to_all):
                continue
            raise ValueError(
                f"training.stages.{index}.rotary: "
                + (
                    f"model.kind {self.model.kind} has no one stack of blocks that reads whole windows"
                    if found is None
                    else f"no block of model.{found[0]} attends to the whole window"
                )
                + ", so there are no positions to scale: leave rotary out"
            )
        return self

    @model_validator(mode="after")
    def _parallel_fits(self) -> Self:
        for index in range(len(self.training.stages)):
            self.check_context(self.num_context(index), self.context_key(index))
        return self

    def check_context(self, num_ranks: int, key: str) -> None:
        """Refuses numbers of context ranks that the model doesn't allow.

        Args:
            num_ranks: C.
            key: that sets them.

        Raises:
            ValueError: it says why, and what would fit.
        """
        model = self.model
        if num_ranks == 1:
            return
        if not isinstance(model, HyenaBLTConfig | IsotropicConfig):
            raise ValueError(
                f"{key} {num_ranks}: windows are shared among ranks for model.kind hyena_blt and isotropic, "
                f"and model.kind is {model.kind}: use {key}=1"
            )
        if isinstance(model, IsotropicConfig) and self.data.annotation is not None:
            raise ValueError(f"{key} {num_ranks}: slices of single bases are of one length: set data.annotation=null")
        found = global_stack(model)
        assert found is not None
        try:
            found[1].check_context(num_ranks, key)
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def num_context(self, stage: int) -> int:
        """Ranks that hold slices of the same windows in a stage (C)."""
        return self.training.stages[stage].context or self.parallel.context

    def context_key(self, stage: int) -> str:
        """The key that sets them."""
        return "parallel.context" if self.training.stages[stage].context is None else f"training.stages.{stage}.context"

    def model_of(self, stage: int) -> ModelConfig:
        """The model's configuration in a stage: with the stage's rotary positions."""
        changes = self.training.stages[stage].rotary.model_dump(exclude_none=True)
        found = global_stack(self.model)
        if found is None or not changes:
            return self.model
        key, stack = found
        return self.model.model_copy(update={key: stack.with_rotary(**changes)})

    def model_to_build(self, stage: int = 0) -> ModelConfig:
        """`model_of` a stage, with activation checkpointing as the training asks for it."""
        model = self.model_of(stage)
        return with_activation_checkpointing(model) if self.training.activation_checkpointing else model

    def trained(self, num_steps: int) -> tuple[ModelConfig, int]:
        """What some steps leave behind: the model's configuration, and the longest window so far, in bases."""
        stages = self.training.stages
        place = place_of(num_steps - 1, stages)
        part, _ = stages[place.stage].part_at(place.step_in_stage)
        return self.model_of(place.stage), part.window_bases

    def deepspeed_block(self) -> dict[str, Any]:
        """DeepSpeed's block; monitors that name no folder write into the run's."""
        block = dict(self.deepspeed)
        for name in _MONITORS:
            if block.get(name, {}).get("enabled") and not block[name].get("output_path") and name != "wandb":
                block[name] = {**block[name], "output_path": str(self.run / "logs")}
        return block
