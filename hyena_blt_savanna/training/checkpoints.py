"""Checkpoints: written aside, sealed by a manifest with checksums, renamed; resumed from only when the seal holds.

States are copied into the host's memory; a thread of each rank writes them while training goes on.

checkpoints/step_00000100/
    deepspeed/             DeepSpeed's own files: weights and optimizer, by rank
    random_states/         of each group of ranks that share windows: as many as there are data ranks
    native/                consolidated weights, as evaluation and other tools read them
    config.yaml            of the run
    fp8.pt                 what delayed scales follow, of a training in FP8 that has them
    state.json             step, stage, sums of the unfinished logging interval, ranks, versions, numerics of FP8
    manifest.json          size and SHA-256 of every file above; written last
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import NonNegativeInt, PositiveInt

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.data.whole_files import PARTIAL_SUFFIX, write_whole
from hyena_blt_savanna.evaluation.sealed_folder import SealError, verify, write_seal
from hyena_blt_savanna.training.background_writing import BackgroundWriting, WriteFolder
from hyena_blt_savanna.training.engine import Totals, TrainingEngine
from hyena_blt_savanna.training.host_copies import Write, copy_states, copy_to_host
from hyena_blt_savanna.training.model_config import differing_models
from hyena_blt_savanna.training.ranks import Ranks, on_first_rank
from hyena_blt_savanna.training.training_state import CheckpointError, TrainingState, restore
from hyena_blt_savanna.training.universal import (
    CONFIG,
    DEEPSPEED,
    FORMAT_VERSION,
    FP8_STATE,
    RANDOM_STATES,
    STATE,
    is_universal,
    read_state,
    read_training_state,
    trained_in,
)

logger = logging.getLogger(__name__)

NativeWriter = Callable[[Path, dict[str, torch.Tensor], int, dict[str, Any] | None], None]

_DELETED = ".deleted"
_LISTED_ERRORS = 4


class CheckpointConfig(Config):
    """When checkpoints are written, and which are kept."""

    every_steps: PositiveInt = 1000
    """Steps between checkpoints; the last step always has one."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of this many steps are kept for good; 0 keeps none of them."""
    in_background: bool = True
    """Training goes on as soon as the states are copied into the host's memory; false waits until they are written."""
    local_folder: Path | None = None
    """A folder on a fast disk of each node, where files are written before they are copied into the run folder; null:
    they are written there at once."""


@dataclass
class Progress:
    """How far a run is: what a checkpoint knows besides weights, optimizer and random states.

    Attributes:
        step: finished optimizer steps.
        seconds: spent training so far, over all starts.
        bases: read so far by all ranks.
        interval: this logging interval's sums so far, over all ranks.
        interval_steps: steps in these sums.
        interval_seconds: spent in these steps.
        recent_losses: nats a base of the latest steps that were learned from, where spikes are looked for.
        num_bad_steps: steps that were not learned from, one after the other, up to here.
        fp8_gap: what the gate of a training in FP8 found last; see `fp8_gate.Gap`.
    """

    step: int = 0
    seconds: float = 0.0
    bases: float = 0.0
    interval: Totals = field(default_factory=Totals)
    interval_steps: int = 0
    interval_seconds: float = 0.0
    recent_losses: list[float] = field(default_factory=list)
    num_bad_steps: int = 0
    fp8_gap: dict[str, Any] | None = None


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run.

    Attributes:
        folder: RUN/checkpoints.
        config: when to write and what to keep.
        run_config: the run's whole configuration, as plain values.
        ranks: this process among all.
        save_native: writes consolidated weights into a folder, given the steps that they were trained for, and how
            they were multiplied if that was in FP8; called on the first rank, in a thread.
    """

    folder: Path
    config: CheckpointConfig
    run_config: dict[str, Any]
    ranks: Ranks
    save_native: NativeWriter | None = None

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.folder / f"step_{step:08d}"

    def save(self, engine: TrainingEngine, progress: Progress) -> Path:
        """Writes a checkpoint, whole or not at all, then removes those that are not kept. Every rank calls.

        Raises:
            CheckpointError: it can't be written; earlier checkpoints are untouched.
        """
        return self.finish(self.begin(engine, progress))

    def begin(self, engine: TrainingEngine, progress: Progress) -> BackgroundWriting:
        """Copies all states into the host's memory, from where a thread of each rank writes them. Every rank calls."""
        target = self._partial(progress.step)
        if self.ranks.is_first:
            _remove(target)
        # All ranks wait for each other in there, so that none writes into the folder before it is empty.
        files = copy_states(engine.deepspeed, DEEPSPEED)
        mesh = self.ranks.mesh
        if mesh.context == 0:
            states = _random_states(self.ranks.device)
            files[f"{RANDOM_STATES}/rank_{mesh.data:05d}.pt"] = lambda path: torch.save(states, path)
        folders: dict[str, WriteFolder] = {}
        weights = engine.consolidated_weights() if self.save_native else {}
        if self.ranks.is_first:
            files |= self._about(engine, progress)
            write_native = self.save_native
            if write_native is not None:
                # The progress goes on while the thread writes.
                num_steps = progress.step
                numerics = trained_in(engine.fp8.numerics if engine.fp8 else None, progress.fp8_gap)
                folders["native"] = lambda folder: write_native(folder, weights, num_steps, numerics)
        local = self.config.local_folder
        if local is not None:
            local = local / f"{target.name}.{uuid.uuid4().hex}"
        return BackgroundWriting(progress.step, target, files, folders, local)

    def finish(self, writing: BackgroundWriting) -> Path:
        """Seals a checkpoint when all ranks have written their part. Every rank calls, and waits for the others.

        Returns:
            Its folder.

        Raises:
            CheckpointError: a rank could not write; nothing is left of it, and earlier checkpoints are untouched.
        """
        final = self.path(writing.step)
        outcomes = self.ranks.gather(writing.outcome())
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(outcomes) if error is not None]
        try:
            if errors:
                raise CheckpointError("; ".join(errors[:_LISTED_ERRORS]))
            entries = {name: entry for part, _ in outcomes for name, entry in part.items()}
            on_first_rank(self.ranks, lambda: self._seal(writing.target, final, entries))
        except (OSError, ValueError) as error:
            free = shutil.disk_usage(self.folder).free
            if self.ranks.is_first:
                _remove(writing.target)
            raise CheckpointError(
                f"{final}: the checkpoint could not be written: {error} ({free:,} bytes are free there); nothing of it "
                "is left, and earlier checkpoints are whole"
            ) from error
        return final

    def find_newest(self) -> Path | None:
        """The newest checkpoint whose manifest verifies; broken ones are named in warnings. Every rank calls.

        Returns:
            Its folder, or None.
        """
        newest: Path | None = None
        if self.ranks.is_first:
            for leftover in [*self.folder.glob(f"step_*{PARTIAL_SUFFIX}"), *self.folder.glob(f".*{_DELETED}")]:
                _remove(leftover)
            newest = find_newest_whole(self.folder)
        return self.ranks.gather(newest)[0]

    def progress_of(self, path: Path) -> Progress:
        """How far a run is that goes on from a checkpoint.

        Raises:
            CheckpointError: it is of another model.
        """
        self._check_belongs(path, self._config_of(path))
        progress = read_state(path)["progress"]
        return Progress(**{**progress, "interval": Totals(**progress["interval"])})

    def load(self, engine: TrainingEngine, path: Path) -> Progress:
        """Restores a checkpoint that `find_newest` or `save` gave. Every rank calls.

        Whatever number of ranks and ZeRO stage it was written with. DeepSpeed's files are cut by rank and read by
        DeepSpeed where the cut is the same; elsewhere the first rank puts them together and shares them out anew.

        Raises:
            CheckpointError: it is of another model or another FP8, or its files don't belong together.
        """
        progress = self.progress_of(path)
        state = read_state(path)
        self._check_fp8(engine, path, state)
        if not is_universal(path) and self._has_same_cut(engine, state, self._config_of(path)):
            engine.deepspeed.load_checkpoint(str(path), tag=DEEPSPEED)
        else:
            self._reshard(engine, path)
            logger.info(
                "%s: written by %d rank(s) under ZeRO %d, shared out anew among %d under ZeRO %d",
                path,
                state["num_ranks"],
                state["zero_stage"],
                self.ranks.num_ranks,
                engine.zero_stage,
            )
        self._restore_random_states(path / RANDOM_STATES, progress.step)
        self._restore_fp8(engine, path, state)
        return progress

    def _config_of(self, path: Path) -> dict[str, Any]:
        return dict(yaml.safe_load((path / CONFIG).read_text()))

    def _check_belongs(self, path: Path, saved: Mapping[str, Any]) -> None:
        differing = differing_models(saved.get("model"), self.run_config.get("model"))
        if differing:
            raise CheckpointError(
                f"{path} is a checkpoint of another model:\n"
                + "\n".join(f"  {line}" for line in differing)
                + "\nrestore these keys, or choose another run folder"
            )
        for section, key, default in (("training", "objective", "next_base"), ("data", "left_out", None)):
            was, now = (tree.get(section, {}).get(key, default) for tree in (saved, self.run_config))
            if was != now:
                raise CheckpointError(
                    f"{path} was trained with {section}.{key} {was}, and this run has {now}: go on with the former, or "
                    f"choose another run folder and start_from={path}"
                )

    def _has_same_cut(self, engine: TrainingEngine, state: Mapping[str, Any], saved: Mapping[str, Any]) -> bool:
        """Whether DeepSpeed can read its own files.

        It knows parameters by their places among the trained ones, cuts them as its block says, and takes weight decay
        and the like from the files and not from the run.
        """
        names = list(engine.optimizer_names)
        return (
            state["zero_stage"] == engine.zero_stage
            # Without ZeRO, any rank's files serve all.
            and (state["num_ranks"] == self.ranks.num_ranks or not engine.zero_stage)
            and state.get("optimizer_names", names) == names
            and _settings_in_files(saved) == _settings_in_files(self.run_config)
        )

    def _check_fp8(self, engine: TrainingEngine, path: Path, state: Mapping[str, Any]) -> None:
        """Refuses one FP8 after another; between FP8 and anything wider the way is open, and told."""
        was, now = state.get("fp8"), engine.fp8.numerics if engine.fp8 else None
        if was is None or now is None:
            if was != now:
                gap = state["progress"].get("fp8_gap")
                logger.warning(
                    "%s was trained in %s, and the run goes on in %s%s",
                    path,
                    f"FP8 ({_as_text(was)})" if was else "fp32 or bf16",
                    f"FP8 ({_as_text(now)})" if now else engine.precision,
                    f"; at step {gap['step']}, FP8 and bf16 were {gap['difference_bits']:.4f} bits per base apart"
                    if gap
                    else "",
                )
            return
        if {**was, "version": None} != {**now, "version": None}:
            raise CheckpointError(
                f"{path} was trained in FP8 with {_as_text(was)}, and this run has {_as_text(now)}: give training.fp8 "
                "the former, go on in bf16 (training.precision=bf16 training.fp8=null), or choose another run folder "
                f"and start_from={path}"
            )
        if was["version"] != now["version"]:
            logger.warning("%s was trained in FP8 with %s, and this is %s", path, _as_text(was), now["version"])

    def _restore_fp8(self, engine: TrainingEngine, path: Path, state: Mapping[str, Any]) -> None:
        if engine.fp8 is None:
            return
        file, has_same_version = path / FP8_STATE, state.get("fp8") == engine.fp8.numerics
        # Libraries change what they keep from version to version.
        is_read = file.exists() and (has_same_version or engine.fp8.numerics["backend"] == "torch")
        engine.fp8.load_state(torch.load(file, weights_only=True) if is_read else {})

    def _reshard(self, engine: TrainingEngine, path: Path) -> None:
        read: list[TrainingState] = []
        on_first_rank(self.ranks, lambda: read.append(read_training_state(path)))
        restore(engine, read[0] if read else None, str(path))

    def _partial(self, step: int) -> Path:
        final = self.path(step)
        return final.with_name(final.name + PARTIAL_SUFFIX)

    def _about(self, engine: TrainingEngine, progress: Progress) -> dict[str, Write]:
        """The files that say what the others are; as things stand now."""
        state = {
            "format_version": FORMAT_VERSION,
            "progress": asdict(progress),
            "num_ranks": self.ranks.num_ranks,
            "zero_stage": engine.zero_stage,
            "optimizer_names": engine.optimizer_names,
            "tied_names": engine.tied_names,
            "versions": {name: version(name) for name in ("torch", "deepspeed", "numpy")},
        }
        if engine.fp8:
            state["fp8"] = engine.fp8.numerics
        texts = {
            STATE: json.dumps(state, indent=1).encode(),
            CONFIG: yaml.safe_dump(self.run_config, sort_keys=False).encode(),
        }
        files: dict[str, Write] = {name: partial(_write_text, text=text) for name, text in texts.items()}
        scales = copy_to_host(engine.fp8.state()) if engine.fp8 else {}
        if scales:
            files[FP8_STATE] = lambda path: torch.save(scales, path)
        return files

    def _seal(self, partial_folder: Path, final: Path, entries: dict[str, dict[str, Any]]) -> None:
        write_seal(partial_folder, {"format_version": FORMAT_VERSION}, entries)
        if final.exists():
            _set_aside(final)
        partial_folder.replace(final)
        _sync(self.folder)
        self._retain()

    def _retain(self) -> None:
        steps = sorted(_steps(self.folder))
        kept = set(steps[-self.config.keep_last :])
        if self.config.keep_every:
            kept |= {step for step in steps if step % self.config.keep_every == 0}
        for step in steps:
            if step not in kept:
                _set_aside(self.path(step))

    def _restore_random_states(self, folder: Path, step: int) -> None:
        # Ranks that share windows draw the same numbers, on whatever mesh the checkpoint was written.
        data_rank = self.ranks.mesh.data
        path = folder / f"rank_{data_rank:05d}.pt"
        if not path.exists():
            logger.warning("%s: a rank more than there were; its random states follow from rank and step", path)
            _seed_all(int(np.random.SeedSequence([step, data_rank]).generate_state(1)[0]))
            return
        states = torch.load(path, weights_only=True)
        torch.set_rng_state(states["torch"])
        if "device" in states and self.ranks.device.type != "cpu":
            torch.get_device_module(self.ranks.device).set_rng_state(states["device"], self.ranks.device)
        algorithm, keys, *rest = states["numpy"]
        np.random.set_state((algorithm, keys.numpy(), *rest))
        kind, internal, gauss = states["python"]
        random.setstate((kind, tuple(internal), gauss))


def find_newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint in a folder of checkpoints whose manifest verifies.

    Every newer one that does not is named in a warning that says why.
    """
    for step in sorted(_steps(folder), reverse=True):
        path = folder / f"step_{step:08d}"
        try:
            verify(path)
        except SealError as error:
            logger.warning("%s; the checkpoint before it is tried", error)
            continue
        return path
    return None


def _as_text(numerics: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in numerics.items())


def _settings_in_files(run_config: Mapping[str, Any]) -> tuple[Any, Any]:
    """What DeepSpeed's files follow from: how ZeRO cuts, and the optimizer but for its rate, which each step sets."""
    optimizer = run_config.get("training", {}).get("optimizer", {})
    kept = {key: value for key, value in optimizer.items() if key != "lr"}
    return run_config.get("deepspeed", {}).get("zero_optimization"), kept


def _write_text(path: Path, text: bytes) -> None:
    write_whole(path, text)


def _steps(folder: Path) -> Iterator[int]:
    for path in folder.glob("step_*"):
        digits = path.name.removeprefix("step_")
        if digits.isdigit():
            yield int(digits)


def _set_aside(path: Path) -> None:
    # Renamed first: a removal that is cut short must not leave what looks like a checkpoint.
    aside = path.with_name(f".{path.name}{_DELETED}")
    _remove(aside)
    path.replace(aside)
    _remove(aside)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _random_states(device: torch.device) -> dict[str, Any]:
    algorithm, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "torch": torch.get_rng_state(),
        "numpy": (algorithm, torch.from_numpy(np.asarray(keys).copy()), *rest),
        "python": random.getstate(),
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states
