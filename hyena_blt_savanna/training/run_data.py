"""The data of a training run: which windows, how they are cut, and what of it a checkpoint carries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hyena_blt_savanna.data.batches import Batch, BatchLoader, read_batch
from hyena_blt_savanna.data.errors import DataError
from hyena_blt_savanna.data.slices import read_slices
from hyena_blt_savanna.data.windows import FoundWindow
from hyena_blt_savanna.evaluation.native_checkpoint import patch_places, save_pretrained
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.parallel.mesh import Mesh
from hyena_blt_savanna.patching.augmentation import AugmentedCutter
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.training.checkpoints import NativeWriter
from hyena_blt_savanna.training.engine import Totals, TrainingEngine
from hyena_blt_savanna.training.ranks import Ranks
from hyena_blt_savanna.training.run_sources import HeldOutWindows, find_sources
from hyena_blt_savanna.training.schedule import total_steps
from hyena_blt_savanna.training.validation import Validation, spread, validate

if TYPE_CHECKING:
    from hyena_blt_savanna.training.run_config import RunConfig

logger = logging.getLogger(__name__)


class RunData:
    """The data of a run, as one rank reads them.

    Args:
        config: of the run.
        ranks: this process among all; how they share windows is each stage's matter.

    Raises:
        DataError: the data or the boundaries are missing, broken, too short for a stage, or don't belong together; a
            patch is longer than the model has places for; or a validation window is named that is not there.
    """

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        self._config = config
        self._ranks = ranks
        self._sources = find_sources(config.data)
        self._patcher = self._load_patcher()
        self._samples = self._sources.samples(config.seed, self._cutter(), self._needs_entropies())
        self._check_places()
        for index, stage in enumerate(config.training.stages):
            num_data = self._mesh(index).num_data
            for part in stage.parts:
                self._samples.check_share(part.window_bases, num_data, part.micro_batch(num_data))
            self._check_slices(index)
        self._validation = self._open_validation()

    @contextmanager
    def open_stage(self, stage: int, start_step: int) -> Iterator[Iterator[Batch]]:
        """This rank's micro batches of a stage, from a step on, in windows as long as that step's."""
        stages = self._config.training.stages
        part, part_step = stages[stage].part_at(start_step)
        steps_before, num_steps = total_steps(stages[:stage]) + start_step - part_step, total_steps(stages)
        # Windows of each length have an order of their own.
        is_warmup = part.window_bases < stages[stage].window_bases
        mesh = self._mesh(stage)
        with BatchLoader(
            self._samples,
            f"{stage}: {part.window_bases}" if is_warmup else stage,
            part.window_bases,
            part.batch_windows,
            mesh.data,
            mesh.num_data,
            part.micro_batch(mesh.num_data),
            part_step,
            progress_of=lambda step: (steps_before + step) / num_steps,
            batch_of=lambda windows: self._batch_of(windows, mesh, self._config.data.repeat_weight),
        ) as loader:
            yield iter(loader)

    def validator(self, engine: TrainingEngine, num_windows: int | None = None) -> Callable[[int], Validation] | None:
        """What scores the validation windows of a stage, if the run validates; they are cut as stored.

        Args:
            engine: of the model, on the mesh of the stages that it will be asked for.
            num_windows: about so many of each source, evenly spread over them; None: all.
        """
        settings = self._config.training.validation
        if settings is None:
            return None
        micro_batch_windows = settings.micro_batch_windows
        mesh = engine.ranks.mesh

        def score(stage: int) -> Validation:
            def totals_of(windows: HeldOutWindows, indices: Sequence[int]) -> Totals:
                places = spread(len(indices), num_windows or len(indices))
                return validate(
                    engine,
                    [indices[place] for place in places],
                    micro_batch_windows or self._config.training.stages[stage].micro_batch(mesh.num_data),
                    lambda chosen: self._batch_of([windows.find(index) for index in chosen], mesh, repeat_weight=1.0),
                )

            by_source = {name: totals_of(*chosen) for name, chosen in self._validation[stage].items()}
            return Validation(by_source, self._sources.weights)

        return score

    def native_writer(self) -> NativeWriter:
        """What writes consolidated weights, with the patcher that cut the data and what they were trained on."""
        trained_on = self._sources.describe()

        def write(
            folder: Path, weights: dict[str, torch.Tensor], num_steps: int, trained_in: dict[str, Any] | None = None
        ) -> None:
            model, longest = self._config.trained(num_steps)
            save_pretrained(folder, weights, model, self._patcher, longest, trained_on, trained_in)

        return write

    def _open_validation(self) -> list[dict[str, tuple[HeldOutWindows, Sequence[int]]]]:
        """By stage and source: the validation stream in windows, and the indices of those that are scored."""
        settings = self._config.training.validation
        if settings is None:
            return []
        opened = []
        for stage in self._config.training.stages:
            found = self._sources.held_out(settings.window_bases or stage.window_bases)
            if not found:
                raise DataError(
                    f"{self._sources.place}: no validation part (validation.manifest.json, or that split of a source): "
                    "prepare more data or a larger split.validation, or set training.validation=null"
                )
            opened.append({name: (windows, self._chosen(windows, len(found))) for name, windows in found.items()})
        return opened

    def _chosen(self, windows: HeldOutWindows, num_sources: int) -> Sequence[int]:
        settings = self._config.training.validation
        assert settings is not None
        if settings.windows is None:
            if settings.num_bases is None:
                return range(len(windows))
            return spread(len(windows), max(1, settings.num_bases // num_sources // windows.window_bases))
        last_window = max(settings.windows)
        if last_window >= len(windows):
            raise DataError(
                f"training.validation.windows names window {last_window}, and {self._sources.place} has {len(windows)} "
                f"of {windows.window_bases:,} bases to validate on, counted from 0: leave it out"
            )
        return settings.windows

    def _mesh(self, stage: int) -> Mesh:
        return self._ranks.with_context(self._config.num_context(stage)).mesh

    def _batch_of(self, windows: Sequence[FoundWindow], mesh: Mesh, repeat_weight: float) -> Batch:
        """Windows side by side, or this rank's slices of those that it has with the other context ranks."""
        if mesh.num_context == 1:
            return read_batch(windows, repeat_weight)
        model = self._config.model
        assert isinstance(model, HyenaBLTConfig | IsotropicConfig)
        return read_slices(windows, repeat_weight, mesh.context, mesh.num_context, model.num_left_patches)

    def _check_places(self) -> None:
        places, longest = patch_places(self._config.model), self._samples.longest_patch_bases
        if places is not None and longest > places[1]:
            key, num_bases = places
            raise DataError(
                f"{self._sources.place} is cut into patches of up to {longest} bases, and the model has places "
                f"for {num_bases}: set model.{key} to {longest}, or cut shorter patches (rule.max_patch_bases, "
                "data.cuts.blind_patch_bases)"
            )

    def _check_slices(self, index: int) -> None:
        """Refuses a stage whose windows may have fewer patches than there are ranks to share them."""
        stage, source, longest = (
            self._config.training.stages[index],
            self._config.data,
            self._samples.longest_patch_bases,
        )
        num_context, key = self._config.num_context(index), self._config.context_key(index)
        if source.window_patches is not None and source.window_patches < num_context:
            raise DataError(
                f"data.window_patches {source.window_patches} leaves fewer patches than there are ranks to share a "
                f"window ({key} {num_context}): take {key} of at most {source.window_patches}, or window_patches of at "
                f"least {num_context}"
            )
        fewest = stage.first_window_bases // longest
        if fewest < num_context:
            raise DataError(
                f"training.stages.{index}.{stage.first_window_key} {stage.first_window_bases:,} may be as few as "
                f"{fewest} patches of {longest:,} bases in {self._sources.place}, and {key} {num_context} ranks share "
                f"them: take {key} of at most {fewest}, or windows of at least {num_context * longest:,} bases"
            )

    def _cutter(self) -> AugmentedCutter | None:
        cuts = self._config.data.cuts
        if cuts is None:
            return None
        if self._patcher is None:
            raise DataError(
                f"{self._sources.patcher_folder}: no such folder, and data.cuts multiplies the limit of the rule in "
                "it: annotate the data, or leave data.cuts out"
            )
        return AugmentedCutter(cuts, self._patcher.rule)

    def _needs_entropies(self) -> bool:
        """Whether the model learns the entropies of bases; the autoencoder has no losses besides its own."""
        config = self._config
        learns = config.model.kind == "hyena_blt" and config.model.auxiliary.entropy > 0
        return learns and config.training.objective == "next_base"

    def _load_patcher(self) -> Patcher | None:
        if patch_places(self._config.model) is None:
            return None
        folder = self._sources.patcher_folder
        if not folder.is_dir():
            if self._ranks.is_first:
                logger.warning("%s: no such folder; the checkpoints can't find boundaries in new sequences", folder)
            return None
        patcher = Patcher.load(folder)
        found = patcher.describe()
        if self._sources.cut_by() != (found.rule.to_dict(), found.entropy_model):
            raise DataError(
                f"{folder} is not the patcher that cut {self._sources.place}: the annotation was not finished; "
                "annotate the data again (tools/annotate_patches.py)"
            )
        return patcher
