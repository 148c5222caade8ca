"""Where the windows of a run come from: a single dataset, or a mixture of sources of shards."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from hyena_blt_savanna.data.batches import EvaluationWindows, Samples, TrainingSamples
from hyena_blt_savanna.data.corpus.source import is_source
from hyena_blt_savanna.data.entropy_model_description import EntropyModelDescription
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.manifest import AnnotationManifest, manifest_path, read_annotation_manifest, read_manifest
from hyena_blt_savanna.data.mixture import MixturePart, MixtureSamples, MixtureSourceConfig
from hyena_blt_savanna.data.order import keyed_integer, order_key
from hyena_blt_savanna.data.shards import OpenShards, ShardWindows
from hyena_blt_savanna.data.sources import Source, find_source
from hyena_blt_savanna.data.windows import FoundWindow, WindowCutter
from hyena_blt_savanna.training.data_config import DataSourceConfig

logger = logging.getLogger(__name__)

CutBy: TypeAlias = tuple[dict[str, Any], EntropyModelDescription | None] | None

_SEEDS = 1 << 62


class HeldOutWindows(Protocol):
    """Windows of a validation stream, by their index."""

    @property
    def window_bases(self) -> int:
        """Bases in which a window's patches start."""

    def __len__(self) -> int: ...

    def find(self, index: int) -> FoundWindow:
        """A window, with its patches known and its bases still to be read."""


class RunSources(Protocol):
    """All that a run reads."""

    @property
    def place(self) -> str:
        """Where it lies, for messages."""

    @property
    def patcher_folder(self) -> Path:
        """Where the patcher is looked for that cut it."""

    def cut_by(self) -> CutBy:
        """Rule and entropy model that the patches were cut by; None where each base is a patch."""

    @property
    def mean_patch_bases(self) -> float:
        """Of what is trained on; 1 where each base is a patch."""

    def samples(self, seed: int, cutter: WindowCutter | None, with_entropies: bool) -> Samples:
        """What is trained on; see `TrainingSamples`."""

    def held_out(self, window_bases: int) -> dict[str, HeldOutWindows]:
        """What is validated on, by the name of the source; empty where nothing was held out."""

    @property
    def weights(self) -> Mapping[str, float]:
        """What the loss of each source counts in that of all."""

    def describe(self) -> dict[str, Any]:
        """The digest of the training data, and the fold of them that is left out."""


def find_sources(config: DataSourceConfig) -> RunSources:
    """What a run reads, as far as manifests know it.

    Raises:
        DataError: a source is missing, can't be read, or was cut by another patcher than the others.
    """
    if config.sources is not None:
        return Mixture(config, config.sources)
    assert config.folder is not None
    if not is_source(config.folder):
        return Dataset(config, config.folder)
    if config.left_out is not None:
        raise DataError(
            f"{config.folder} is a source of shards, and data.left_out is a stretch of a single dataset: leave it out"
        )
    return Mixture(config, [MixtureSourceConfig(path=config.folder, weight=1.0)])


@dataclass(frozen=True)
class Dataset:
    """A single dataset.

    Attributes:
        config: how it is read.
        folder: holds its splits.
    """

    config: DataSourceConfig
    folder: Path

    @property
    def place(self) -> str:
        """Where it lies."""
        return str(self.folder)

    @property
    def patcher_folder(self) -> Path:
        """Where its patcher lies."""
        return self.folder / f"{self.config.annotation}.patcher"

    def cut_by(self) -> CutBy:
        """See `RunSources.cut_by`."""
        found = self._annotation()
        return None if found is None else (found.rule, found.entropy_model)

    @property
    def mean_patch_bases(self) -> float:
        """See `RunSources.mean_patch_bases`."""
        found = self._annotation()
        return 1.0 if found is None else found.statistics["forward"].mean_bases

    def _annotation(self) -> AnnotationManifest | None:
        name = self.config.annotation
        return None if name is None else read_annotation_manifest(self.folder / "train", name)

    def samples(self, seed: int, cutter: WindowCutter | None, with_entropies: bool) -> Samples:
        """See `RunSources.samples`."""
        config = self.config
        return TrainingSamples(
            self.folder / "train",
            config.annotation,
            config.strands,
            seed,
            config.repeat_weight,
            config.window_patches,
            config.left_out,
            cutter,
            with_entropies,
        )

    def held_out(self, window_bases: int) -> dict[str, HeldOutWindows]:
        """See `RunSources.held_out`."""
        prefix = self.folder / "validation"
        if not manifest_path(prefix).is_file():
            return {}
        return {self.folder.name: EvaluationWindows(prefix, self.config.annotation, "forward", window_bases)}

    @property
    def weights(self) -> Mapping[str, float]:
        """All of it."""
        return {self.folder.name: 1.0}

    def describe(self) -> dict[str, Any]:
        """See `RunSources.describe`."""
        left_out = self.config.left_out
        return {
            "data_sha256": read_manifest(self.folder / "train").data_sha256,
            "left_out": left_out.to_dict() if left_out else None,
        }


class Mixture:
    """Several sources, each with its weight.

    Args:
        config: how they are read.
        sources: which.

    Raises:
        DataError: one is missing, can't be read, or was cut by another patcher than the first.
    """

    def __init__(self, config: DataSourceConfig, sources: Sequence[MixtureSourceConfig]) -> None:
        self._config = config
        self._found: dict[str, Source] = {one.name: find_source(one.path, config.annotation) for one in sources}
        self.weights: Mapping[str, float] = {one.name: one.weight for one in sources}
        first = next(iter(self._found.values()))
        self.place = str(first.path) if len(self._found) == 1 else f"the sources {', '.join(self._found)}"
        self.patcher_folder = first.folder / f"{config.annotation}.patcher"
        for source in self._found.values():
            if source.cut_by != first.cut_by:
                raise DataError(
                    f"{source.path} was cut into {config.annotation} by another patcher than {first.path}, and a model "
                    f"has one: annotate it again with patcher={self.patcher_folder}, in place of entropy_model and rule"
                )

    def cut_by(self) -> CutBy:
        """See `RunSources.cut_by`."""
        return next(iter(self._found.values())).cut_by

    @property
    def mean_patch_bases(self) -> float:
        """See `RunSources.mean_patch_bases`: the bases of a window over its patches."""
        num_patches = sum(weight / self._found[name].mean_patch_bases for name, weight in self.weights.items())
        return sum(self.weights.values()) / num_patches

    def samples(self, seed: int, cutter: WindowCutter | None, with_entropies: bool) -> Samples:
        """See `RunSources.samples`."""
        config = self._config
        needs_entropies = with_entropies or (cutter is not None and cutter.needs_entropies)
        opened = OpenShards(entropies_in_windows=with_entropies if needs_entropies else None)
        parts = [
            MixturePart(
                self.weights[name],
                TrainingSamples(
                    source.train,
                    config.annotation,
                    source.strands(config.strands),
                    # Of its own: neither place nor company of a source decides the order of its windows.
                    keyed_integer(_SEEDS, order_key(seed, name)),
                    config.repeat_weight,
                    config.window_patches,
                    cutter=cutter,
                    opened=opened,
                ),
            )
            for name, source in self._found.items()
            if self.weights[name]
        ]
        return MixtureSamples(parts, seed)

    def held_out(self, window_bases: int) -> dict[str, HeldOutWindows]:
        """See `RunSources.held_out`."""
        opened = OpenShards()
        return {
            name: ShardWindows(source.validation, window_bases, opened)
            for name, source in self._found.items()
            if source.validation is not None
        }

    def describe(self) -> dict[str, Any]:
        """See `RunSources.describe`."""
        digests = {name: source.data_sha256 for name, source in self._found.items() if self.weights[name]}
        [*all_digests] = digests.values()
        return {
            "data_sha256": all_digests[0]
            if len(all_digests) == 1
            else hashlib.sha256("".join(all_digests).encode()).hexdigest(),
            "left_out": None,
            "sources": {
                name: {"data_sha256": digest, "weight": self.weights[name]} for name, digest in digests.items()
            },
        }
