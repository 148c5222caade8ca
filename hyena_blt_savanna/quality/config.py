"""What is compared: genomes, contenders, budgets, and the search for a learning rate."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from hyena_blt_savanna.config import Config, ConfigError, merge
from hyena_blt_savanna.data.splits import SplitConfig
from hyena_blt_savanna.patching.annotation_config import AnnotationConfig

CONTENDERS = "contenders"


class NeuralChoice(Config):
    """A neural entropy model, trained out of fold on the genome that it cuts."""

    recipe: list[str] = Field(min_length=1)
    """Files and key=value of launch/entropy_model.sh."""
    folds: int = Field(2, ge=2)
    """Models that leave a stretch of the training data out."""


class AnnotationChoice(Config):
    """Patch boundaries that a contender is trained and scored with."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the annotation; contenders that share a name share the boundaries."""
    recipe: list[str] | None = None
    """Files and key=value of tools/annotate_patches.py, without data and name."""
    permute: str | None = None
    """Another annotation, of whose lengths this one is a random permutation; in place of recipe."""
    seed: int = 0
    """Of the permutation."""
    neural: NeuralChoice | None = None
    """What launch/entropy_model.sh does; in place of recipe."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if [self.recipe, self.permute, self.neural].count(None) != 2:
            raise ValueError("give one of recipe, permute and neural")
        return self

    def tree(self) -> dict[str, Any]:
        """How these boundaries come about, as plain values."""
        if self.permute is not None:
            return {"name": self.name, "permute": self.permute, "seed": self.seed}
        if self.neural is not None:
            return {"name": self.name, "neural": merge(self.neural.recipe), "folds": self.neural.folds}
        return {"name": self.name, "recipe": merge(self.recipe or [])}

    def to_annotation_config(self, data: Path) -> AnnotationConfig:
        """What tools/annotate_patches.py would be told.

        Args:
            data: folder of the dataset.

        Raises:
            ConfigError: the recipe has mistakes.
        """
        assert self.recipe is not None
        return AnnotationConfig.load([*self.recipe, f"data={json.dumps(str(data))}", f"name={self.name}"])


class ContenderConfig(Config):
    """A model with its patches, trained as all others are."""

    title: str
    """What the table calls it."""
    recipe: list[str] = Field(min_length=1)
    """Files and key=value of launch/train.sh, after those of the benchmark: the model, and what else differs."""
    annotation: AnnotationChoice | None = None
    """Its patches; null for a model that reads none."""
    multiples: list[PositiveFloat] | None = None
    """Budgets, in units of budget_flops, in place of its groups' and the benchmark's."""
    rate_from: str | None = None
    """Takes the learning rate that was chosen for this other contender; null searches for its own."""


class GenomeConfig(Config):
    """A genome and its held-out stretches."""

    fasta: Path | None = None
    """A FASTA file; null: the genome of that name in configs/data/genomes.yaml is fetched."""
    split: SplitConfig = SplitConfig(by="stretch", validation=0.02, test=0.1)
    """How it is divided."""
    lines: dict[str, float] = Field(default_factory=dict)
    """What others have reported, in bits per base, by what the table calls it."""


class GroupConfig(Config):
    """Contenders that are trained with the same seeds on the same genomes."""

    title: str
    """What the table calls it."""
    contenders: list[str] = Field(min_length=1)
    """Names of files in the folder `contenders` beside the benchmark's."""
    seeds: list[int] = Field(min_length=1)
    """Of the final trainings; the search takes the first."""
    genomes: list[str] | None = None
    """Names of genomes; null for all."""
    multiples: list[PositiveFloat] | None = None
    """Budgets of this group's final trainings, in units of budget_flops; null for the benchmark's."""
    against: str | None = None
    """The contender whose bits the table subtracts from theirs; null: the baseline."""


class HeldOutConfig(Config):
    """Which held-out windows are scored."""

    validation_bases: PositiveInt = 131_072
    """About so many bases for the curves and for the choice of rates."""
    test_bases: PositiveInt = 262_144
    """About so many bases for the figures of the table."""
    duplicate_bases: PositiveInt = 100
    """A window that shares a stretch of so many bases with the training data, on either strand, is left out."""
    skipped_bases: int = Field(64, ge=0)
    """Bases at a window's start that nobody's test figure counts: a patch may reach over it."""


class QualityConfig(Config):
    """A benchmark of quality at equal compute."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    """The results go to docs/results/NAME."""
    budget_flops: PositiveFloat
    """C: operations of one training, the entropy model's included."""
    multiples: list[PositiveFloat] = Field([1.0], min_length=1)
    """Budgets of the final trainings, in units of budget_flops; all seeds but the first take the first one alone."""
    rates: list[PositiveFloat] = Field(min_length=1)
    """Learning rates that are tried for each contender."""
    rates_beyond: NonNegativeInt = 3
    """How many more are tried, one after the other, while the best rate is the lowest or the highest tried."""
    search_share: float = Field(0.25, gt=0, le=1)
    """Budget of a trial of the search, in units of budget_flops."""
    search_genome: str | None = None
    """Rates are chosen on this genome for all; null: on each genome for itself."""
    recipe: list[str] = Field(min_length=1)
    """Files and key=value of launch/train.sh that all contenders share."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Warm-up, as a share of the steps."""
    validations: PositiveInt = 8
    """Points of a training's curve."""
    checkpoints: PositiveInt = 8
    """Places of a training where it may be stopped."""
    genomes: dict[str, GenomeConfig] = Field(min_length=1)
    """By name."""
    groups: list[GroupConfig] = Field(min_length=1)
    """In the order in which they are trained."""
    held_out: HeldOutConfig = HeldOutConfig()
    """What is scored."""
    baseline: str
    """The contender that all others are compared with."""
    drawn: list[str] | None = None
    """Contenders in the pictures; null: those of the first group."""
    pairs: list[tuple[str, str]] = Field(default_factory=list)
    """Further contenders to compare: the first with the second."""
    ngram_orders: list[PositiveInt] = Field([8, 10, 11, 12, 13, 14])
    """Orders of the count model whose best one, on the validation stretch, is drawn as a line; empty for none."""

    @field_validator("rates", "multiples")
    @classmethod
    def _differ(cls, values: list[float]) -> list[float]:
        if len(set(values)) != len(values):
            raise ValueError("the same number comes twice")
        return values

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        known = set(self.genomes)
        wanted = {name for group in self.groups for name in group.genomes or []}
        wanted |= {self.search_genome} if self.search_genome else set()
        if wanted - known:
            raise ValueError(
                f"no genome named {', '.join(sorted(wanted - known))} in genomes: there are {', '.join(sorted(known))}"
            )
        named = {self.baseline, *(self.drawn or []), *(name for pair in self.pairs for name in pair)}
        named |= {group.against for group in self.groups if group.against is not None}
        missing = named - {name for group in self.groups for name in group.contenders}
        if missing:
            raise ValueError(
                f"baseline, drawn, pairs and against name {', '.join(sorted(missing))}, which no group has: add it "
                "to one"
            )
        return self


class Benchmark:
    """A benchmark with its contenders, as their files say.

    Args:
        config: of the benchmark.
        contenders: by name.
    """

    def __init__(self, config: QualityConfig, contenders: dict[str, ContenderConfig]) -> None:
        self.config = config
        self.contenders = contenders
        self.annotations = _collect_annotations(contenders)
        for name, contender in contenders.items():
            other = contender.rate_from
            if other is not None and (other not in contenders or contenders[other].rate_from is not None):
                raise ConfigError(
                    f"{name}: rate_from is {other!r}, and must name a contender of a group that searches for its own"
                )

    @classmethod
    def load(cls, path: Path, overrides: list[str] | None = None) -> Self:
        """Reads a benchmark's file and those of its contenders.

        Args:
            path: of the benchmark.
            overrides: key=value.

        Raises:
            ConfigError: a file is missing or has mistakes.
        """
        config = QualityConfig.load([path, *(overrides or [])])
        folder = path.parent / CONTENDERS
        names = dict.fromkeys(name for group in config.groups for name in group.contenders)
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        contenders = {}
        for name in names:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known) or 'none'}"
                raise ConfigError(
                    f"{path}: a group names contender {name}, and {folder / name}.yaml is missing; {hint}"
                )
            contenders[name] = ContenderConfig.load([folder / f"{name}.yaml"])
        return cls(config, contenders)

    @property
    def drawn(self) -> list[str]:
        """Contenders in the pictures."""
        return self.config.drawn if self.config.drawn is not None else self.config.groups[0].contenders

    @property
    def trained_genomes(self) -> list[str]:
        """Genomes that a group is trained on."""
        return [name for name in self.config.genomes if any(name in self.genomes_of(g) for g in self.config.groups)]

    def groups(self, contender: str, genome: str) -> list[GroupConfig]:
        """Groups that train this contender on this genome."""
        return [g for g in self.config.groups if contender in g.contenders and genome in self.genomes_of(g)]

    def seeds(self, contender: str, genome: str) -> list[int]:
        """Seeds of all groups that train this contender on this genome."""
        return list(dict.fromkeys(seed for group in self.groups(contender, genome) for seed in group.seeds))

    def multiples(self, contender: str, group: GroupConfig) -> list[float]:
        """Budgets of a contender's final trainings in a group, in units of budget_flops."""
        return self.contenders[contender].multiples or group.multiples or self.config.multiples

    def genomes_of(self, group: GroupConfig) -> list[str]:
        """Genomes that a group is trained on."""
        return group.genomes if group.genomes is not None else list(self.config.genomes)

    def tree(self, contender: str) -> dict[str, Any]:
        """The training configuration as the files say: what all share, then what is this contender's.

        Raises:
            ConfigError: a file is missing, or is no YAML.
        """
        return merge([*self.config.recipe, *self.contenders[contender].recipe])

    def annotation_tree(self, contender: str) -> Any:
        """How a contender's patches come about, as plain values; of a permutation, its source too."""
        choice = self.contenders[contender].annotation
        if choice is None:
            return None
        chain = [choice] if choice.permute is None else [choice, self.annotations[choice.permute]]
        return [link.tree() for link in chain]


def digest_of(tree: Any) -> str:
    """A short digest of plain values: equal for equal values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def flatten(tree: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys and their values; lists are values."""
    if not isinstance(tree, dict):
        return {key: tree}
    return {name: value for part, below in tree.items() for name, value in _below(key, part, below)}


def _below(key: str, part: str, tree: Any) -> Iterator[tuple[str, Any]]:
    yield from flatten(tree, f"{key}.{part}" if key else str(part)).items()


def _collect_annotations(contenders: dict[str, ContenderConfig]) -> dict[str, AnnotationChoice]:
    choices: dict[str, AnnotationChoice] = {}
    for name, contender in contenders.items():
        choice = contender.annotation
        if choice is None:
            continue
        if choices.setdefault(choice.name, choice) != choice:
            raise ConfigError(
                f"{name}: annotation {choice.name!r} is made in another way than another contender's of that name: "
                "give it a name of its own"
            )
    for choice in choices.values():
        if choice.permute is not None and (
            choice.permute not in choices or choices[choice.permute].permute is not None
        ):
            raise ConfigError(
                f"annotation {choice.name!r} permutes {choice.permute!r}, which is the annotation of no contender: "
                "add a contender that is trained on it to a group"
            )
    return choices
