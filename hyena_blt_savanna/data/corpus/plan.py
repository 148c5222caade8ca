"""What a source is made from, and the plan that follows from it: shards, their names, and a digest of it all."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.corpus.alphabets import ALPHABETS, Alphabet, AlphabetName
from hyena_blt_savanna.data.corpus.cleaning import CleaningConfig
from hyena_blt_savanna.data.corpus.fastq import QualityRule
from hyena_blt_savanna.data.corpus.inputs import CorpusInput, find_inputs
from hyena_blt_savanna.data.corpus.records import Reading
from hyena_blt_savanna.data.corpus.source_splits import SourceSplitConfig
from hyena_blt_savanna.data.splits import SPLIT_NAMES, SplitName

_WORK = "work"


class SourceConfig(Config):
    """How a source is made."""

    source: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The source's name."""
    inputs: list[str] = Field(min_length=1)
    """Paths, or patterns such as FOLDER/**/*.jsonl.gz: FASTA, FASTQ, rows of JSON, archives (tar) of these, each plain
    or gzipped; parts x.fasta.gz.aa, .ab, ... are put together."""
    output: Path
    """The source's folder."""
    alphabet: AlphabetName = "dna"
    """dna; rna, which is written in the letters of DNA and has no reverse strand; or protein."""
    split: SourceSplitConfig = SourceSplitConfig()
    """How records are divided."""
    cleaning: CleaningConfig = CleaningConfig()
    """What becomes of letters, runs of N, short records, duplicates and tags."""
    quality: QualityRule = QualityRule()
    """What becomes of bases of low quality (FASTQ)."""
    text_key: str = "text"
    """Key of the sequence in rows of JSON."""
    shuffle: bool = True
    """Whether the documents of the whole source are shuffled; else each input is written in its order, into shards of
    its own."""
    seed: int = Field(default=0, ge=0)
    """Draws the order, and which records keep their tags."""
    shard_bases: int = Field(default=1_000_000_000, ge=1)
    """About how many bases a shard has."""
    max_bad_records: int = Field(default=0, ge=0)
    """Records that may be left out because they can't be read, over all inputs; one more is an error."""

    @model_validator(mode="after")
    def _check_duplicates(self) -> Self:
        if self.cleaning.duplicates == "drop" and not self.shuffle:
            raise ValueError(
                "cleaning.duplicates: drop needs shuffle: true, where documents with the same letters come together"
            )
        return self

    def plan(self) -> SourcePlan:
        """Finds the inputs, and says what becomes of them.

        Raises:
            InputError: an input is missing, or of an unknown kind.
            DataError: a list of names can't be read.
        """
        self.split.open()
        return SourcePlan(self, find_inputs(self.inputs))


@dataclass(frozen=True)
class SourcePlan:
    """A source that is to be made.

    Attributes:
        config: how.
        inputs: from what, by name.
    """

    config: SourceConfig
    inputs: list[CorpusInput]

    @property
    def output(self) -> Path:
        """The source's folder."""
        return self.config.output

    @property
    def work(self) -> Path:
        """Where files lie that are gone when the source is complete."""
        return self.config.output / _WORK

    @property
    def alphabet(self) -> Alphabet:
        """The letters that there may be."""
        return ALPHABETS[self.config.alphabet]

    @property
    def reading(self) -> Reading:
        """How inputs are read."""
        return Reading(self.config.text_key, self.config.quality)

    @cached_property
    def settings(self) -> dict[str, object]:
        """All settings that decide the source's bytes, without the places of files."""
        settings = self.config.to_dict()
        for key in ("inputs", "output", "max_bad_records"):
            del settings[key]
        for key in ("validation_names", "test_names"):
            path = getattr(self.config.split, key)
            settings["split"][key] = None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
        return settings

    @cached_property
    def settings_sha256(self) -> str:
        """Digest of the settings, and of the inputs' names and sizes."""
        inputs = [(given.name, given.num_bytes) for given in self.inputs]
        return hashlib.sha256(json.dumps([self.settings, inputs], sort_keys=True).encode()).hexdigest()

    @cached_property
    def num_buckets(self) -> dict[SplitName, int]:
        """Shards that each split is cut into, where documents are shuffled."""
        bases: defaultdict[SplitName, float] = defaultdict(float)
        for given in self.inputs:
            for split, share in self.config.split.shares(given).items():
                bases[split] += share * given.num_bases
        return {name: max(1, math.ceil(bases[name] / self.config.shard_bases)) for name in SPLIT_NAMES if name in bases}

    def newest(self, given: CorpusInput | None = None) -> float:
        """When an input, or the last of all of them, was modified, in seconds since 1970."""
        inputs = self.inputs if given is None else [given]
        return max(path.stat().st_mtime for found in inputs for path in found.paths)

    def shard_prefix(self, split: SplitName, number: int, of_input: int | None = None) -> Path:
        """Path of a shard without suffix: SPLIT-NUMBER, or SPLIT-INPUT-NUMBER where it holds one input only."""
        middle = "" if of_input is None else f"{of_input:05d}-"
        return self.output / f"{split}-{middle}{number:05d}"

    def work_prefix(self, given: CorpusInput, split: SplitName) -> Path:
        """Path without suffix of what is kept of an input's split meanwhile."""
        return self.work / f"{given.name}.{split}"

    def report_path(self, given: CorpusInput) -> Path:
        """What is known of an input that was read."""
        return self.work / f"{given.name}.json"
