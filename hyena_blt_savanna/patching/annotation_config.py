"""How data are cut into patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.patching.calibration import CalibrationTarget
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import BudgetRule, PatchRule
from hyena_blt_savanna.patching.stored_models import StoredModelConfig


class AnnotationConfig(Config):
    """How a dataset is cut into patches."""

    data: Path
    """Folder of the dataset: train, and validation and test where there are any; or of a source."""
    name: str = Field("patches", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the annotation: the files are SPLIT.NAME.bin and so on, the patcher is NAME.patcher."""
    entropy_model: Annotated[NgramConfig | StoredModelConfig, Field(discriminator="kind")] | None = NgramConfig()
    """What to fit, or a stored model (see `stored_models`); null for a rule that reads no entropies."""
    rule: PatchRule = BudgetRule(kind="budget")
    """Its limit is null where `calibrate_to` is given."""
    patcher: Path | None = None
    """Folder of a patcher that was made on other data, such as a checkpoint's: in place of entropy_model and rule."""
    calibrate_to: CalibrationTarget | None = None
    """What patches of new sequence should be like; null: the rule, or the patcher, has its limit already."""
    folds: int = Field(8, ge=2)
    """Stretches of the training stream that are each read with a model of the others."""
    both_strands: bool = True
    """Whether the reverse strand is cut too; false for RNA."""
    calibration_bases: int = Field(4_000_000, ge=1000)
    """Bases of the training stream, spread evenly, that the rule is calibrated on."""
    fit_bases: int = Field(200_000_000, ge=1000)
    """Bases of a source's training shards, spread evenly, that the entropy model is fitted on; of a dataset that is no
    source it is fitted on all."""
    store_entropies: bool = False
    """Whether the entropies are stored beside the boundaries, 2 bytes a base and strand: for data.cuts in training."""

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        if self.patcher is not None:
            given = sorted({"entropy_model", "rule"} & self.model_fields_set)
            if given:
                raise ValueError(f"patcher brings entropy model and rule: leave {' and '.join(given)} out")
            return self
        if self.rule.needs_entropies and self.entropy_model is None:
            raise ValueError(f"rule {self.rule.kind!r} reads entropies: set entropy_model, or use static or byte")
        if not self.rule.needs_entropies:
            if self.calibrate_to is not None:
                raise ValueError(
                    f"the rule {self.rule.kind} is not calibrated: set calibrate_to to null, and the length in rule"
                )
        elif (self.calibrate_to is None) == (self.rule.limit_nats is None):
            raise ValueError(
                f"give rule {self.rule.kind!r} either a limit in nats or calibrate_to to find one, and not both"
            )
        if self.store_entropies and self.entropy_model is None:
            raise ValueError("store_entropies needs an entropy model: set entropy_model")
        return self

    def settings(self) -> dict[str, Any]:
        """What decides the boundaries of one stream, beside the data."""
        return {key: value for key, value in self.to_dict().items() if key not in ("data", "name", "fit_bases")}

    def read_from_files(self) -> dict[str, Any]:
        """What the settings name by a path only, and what may be another by now."""
        if self.patcher is not None:
            return {"patcher": Patcher.load(self.patcher).describe().to_dict()}
        if isinstance(self.entropy_model, StoredModelConfig):
            return {"entropy_model_digests": self.entropy_model.digests()}
        return {}
