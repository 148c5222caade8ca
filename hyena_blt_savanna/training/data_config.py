"""What a run is trained on: one dataset, or a mixture of sources."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.folds import LeftOut
from hyena_blt_savanna.data.mixture import MixtureSourceConfig, check_sources
from hyena_blt_savanna.patching.augmentation import CutsConfig


class DataSourceConfig(Config):
    """What is trained on."""

    folder: Path | None = None
    """Holds train.bin, validation.bin and their boundaries, as tools/prepare_genomes.py and tools/annotate_patches.py
    leave them; or is a source of shards."""
    sources: list[MixtureSourceConfig] | None = Field(None, min_length=1)
    """Several of them, each with its weight, in place of `folder`; all are cut by the same patcher."""
    annotation: str | None = "patches"
    """Name of the patch boundaries; null: none are read, for a model of single bases."""
    strands: Literal["both", "forward"] = "both"
    """Whether the reverse strand is trained on too, where there is one."""
    repeat_weight: NonNegativeFloat = 1.0
    """Weight of repeat-masked bases in the loss."""
    window_patches: PositiveInt | None = None
    """More patches than this are cut off a training window; null never cuts."""
    cuts: CutsConfig | None = None
    """Training windows are cut anew, into other patches than the stored ones; null: they are read as stored."""
    left_out: LeftOut | None = None
    """A stretch of the training stream that is not trained on, on neither strand; null: all of it is."""

    @field_validator("sources")
    @classmethod
    def _check_sources(cls, sources: list[MixtureSourceConfig] | None) -> list[MixtureSourceConfig] | None:
        if sources is not None:
            check_sources(sources)
        return sources

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.folder is None and self.sources is None:
            raise ValueError("nothing to train on: set folder, or sources")
        if self.folder is not None and self.sources is not None:
            raise ValueError("folder and sources both say what is trained on: set one of them, and the other to null")
        if self.sources is not None and self.left_out is not None:
            raise ValueError("left_out is a stretch of a single dataset: set folder in place of sources")
        return self

    @model_validator(mode="after")
    def _check_cuts(self) -> Self:
        if self.cuts is not None and self.annotation is None:
            raise ValueError("cuts changes the patches of an annotation: set annotation, or leave cuts out")
        return self
