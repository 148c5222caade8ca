"""The patcher: an entropy model and a rule, carried with the data and with every checkpoint.

FOLDER/patcher.yaml                 rule, and the entropy model's kind, digest and context
FOLDER/entropy_model.safetensors    left out for a rule that reads no entropies
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from numpy.typing import NDArray

from hyena_blt_savanna.config import Config, ConfigError, merge
from hyena_blt_savanna.data.entropy_model_description import EntropyModelDescription
from hyena_blt_savanna.data.whole_files import write_whole
from hyena_blt_savanna.nucleotides import BASES, END_OF_DOCUMENT, IUPAC, JOIN_MARKS, TAG_MARK, Bytes
from hyena_blt_savanna.patching.adaptive import AdaptiveConfig, AdaptiveModel
from hyena_blt_savanna.patching.calibration import Calibration
from hyena_blt_savanna.patching.cutting import PatchCutter
from hyena_blt_savanna.patching.entropy_models import (
    EntropyModel,
    EntropyModelError,
    EntropyStepper,
    kind_of,
    load_entropy_model,
    read_about,
    save_entropy_model,
)
from hyena_blt_savanna.patching.marks import IN_TAG, PLACE, states_before
from hyena_blt_savanna.patching.rules import BudgetRule, PatchRule, PatchRuleConfig, PatchRuleError

FORMAT_VERSION = 1
PATCHER_FILE = "patcher.yaml"
MODEL_FILE = "entropy_model.safetensors"

Sequence = str | bytes | Bytes
_ALLOWED = frozenset(
    (BASES + IUPAC).upper() + (BASES + IUPAC).lower() + bytes([END_OF_DOCUMENT, TAG_MARK, *JOIN_MARKS])
)


class SequenceError(ValueError):
    """A sequence that is none: the message names the letter and its position."""


class PatcherDescription(Config):
    """patcher.yaml."""

    format_version: int = FORMAT_VERSION
    rule: PatchRule
    entropy_model: EntropyModelDescription | None = None
    calibration: Calibration | None = None
    """What was found where the rule was calibrated; None where its limit was given."""


class Patcher:
    """Cuts sequences into patches.

    Args:
        entropy_model: None for a rule that reads no entropies.
        rule: a calibrated rule.
        calibration: what was found when its limit was.
        about: what else is to be known of the entropy model, such as what it was trained on.

    Raises:
        PatchRuleError: the rule has not been calibrated, or it reads entropies and there is no model.
    """

    def __init__(
        self,
        entropy_model: EntropyModel | None,
        rule: PatchRuleConfig,
        calibration: Calibration | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        if rule.needs_entropies and entropy_model is None:
            raise PatchRuleError(f"rule {rule.kind!r} reads entropies: give an entropy model, or use static or byte")
        PatchCutter(rule)
        self.entropy_model = entropy_model
        self.rule = rule
        self.calibration = calibration
        self.about = about or {}

    def scaled(self, factor: float) -> Patcher:
        """The patcher whose rule has its limit times a factor: for longer patches, or shorter ones below 1."""
        return Patcher(self.entropy_model, self.rule.scaled(factor), about=self.about)

    def compute_entropy(self, sequence: Sequence) -> NDArray[np.float32]:
        """Entropy of each base given the bases before it.

        Args:
            sequence: bases as text, bytes or uint8 [L], either case; IUPAC codes, tags and marks are allowed.

        Returns:
            float32 [L], nats.

        Raises:
            SequenceError: the sequence is empty, of another type, or has a letter that is none of these.
            PatchRuleError: there is no entropy model.
        """
        if self.entropy_model is None:
            raise PatchRuleError(f"a patcher of rule {self.rule.kind!r} has no entropy model")
        return self.entropy_model.entropies(as_bases(sequence))

    def segment_sequence(self, sequence: Sequence) -> NDArray[np.int32]:
        """Lengths of the patches of a sequence.

        Args:
            sequence: as in `compute_entropy`.

        Returns:
            int32 [P], in bases; they sum to L.

        Raises:
            SequenceError: as in `compute_entropy`.
        """
        bases = as_bases(sequence)
        cutter = PatchCutter(self.rule)
        entropies = self.entropy_model.entropies(bases) if self.entropy_model is not None else None
        return np.concatenate([cutter.cut(bases, entropies), cutter.finish()])

    def stepper(self) -> PatchStepper:
        """Finds boundaries while a sequence is being made."""
        return PatchStepper(self)

    def describe(self) -> PatcherDescription:
        """What patcher.yaml says."""
        model = self.entropy_model
        description = None
        if model is not None:
            description = EntropyModelDescription(
                kind=kind_of(model), digest=model.digest, context_bases=model.context_bases
            )
        return PatcherDescription(rule=self.rule, entropy_model=description, calibration=self.calibration)

    def save(self, folder: Path) -> None:
        """Writes the patcher; patcher.yaml comes last, so a folder without it is unfinished.

        Raises:
            DiskFullError: the disk is full.
        """
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PATCHER_FILE).unlink(missing_ok=True)
        if self.entropy_model is not None:
            save_entropy_model(self.entropy_model, folder / MODEL_FILE, self.about)
        write_whole(folder / PATCHER_FILE, yaml.safe_dump(self.describe().to_dict(), sort_keys=False).encode())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads a patcher.

        Raises:
            ConfigError: patcher.yaml is missing or can't be understood.
            EntropyModelError: the model is missing, damaged or another one, or the version is another.
        """
        folder = Path(folder)
        if not (folder / PATCHER_FILE).is_file():
            raise ConfigError(
                f"{folder / PATCHER_FILE}: no such file; give the folder of a patcher, which "
                "tools/annotate_patches.py leaves beside the data (NAME.patcher) and a checkpoint holds (patcher)"
            )
        tree = merge([folder / PATCHER_FILE])
        version = tree.get("format_version")
        if version != FORMAT_VERSION:
            raise EntropyModelError(
                f"{folder / PATCHER_FILE}: format_version {version}; this code reads {FORMAT_VERSION}: annotate again"
            )
        description = PatcherDescription.parse(tree, str(folder / PATCHER_FILE))
        wanted = description.entropy_model
        if wanted is None:
            return cls(None, description.rule, description.calibration)
        model = load_entropy_model(folder / MODEL_FILE)
        if model.digest != wanted.digest:
            raise EntropyModelError(
                f"{folder / MODEL_FILE}: digest {model.digest[:12]}, but {PATCHER_FILE} was written for "
                f"{wanted.digest[:12]}: copy both files from one place"
            )
        return cls(model, description.rule, description.calibration, read_about(folder / MODEL_FILE))


class PatchStepper:
    """Reads a stream base by base and says, before a base is known, whether it starts a patch."""

    def __init__(self, patcher: Patcher) -> None:
        self._cutter = PatchCutter(patcher.rule)
        model = patcher.entropy_model
        self._entropies: EntropyStepper | None = model.stepper() if model is not None else None
        self._find_next()

    @property
    def next_entropy_nats(self) -> float:
        """Entropy of the next base; 0 without an entropy model."""
        return self._next_entropy_nats

    @property
    def next_starts_patch(self) -> bool:
        """Whether the next base starts a patch; true before the first one."""
        return self._next_starts_patch

    def push(self, base: int) -> bool:
        """Reads a base, given as its byte; returns whether the one after it starts a patch."""
        self._cutter.push(base, self._next_entropy_nats)
        if self._entropies is not None:
            self._entropies.push(base)
        self._find_next()
        return self._next_starts_patch

    def read(self, bases: Bytes) -> NDArray[np.int32]:
        """Reads the next bases, of either case, at once.

        Args:
            bases: uint8 [L].

        Returns:
            int32 [P]: lengths of the patches that end with one of these bases.
        """
        # The cutter tells of a patch's end at the next base.
        known = int(self._next_starts_patch and self._cutter.num_unfinished_bases > 0)
        ended = self._cutter.cut(bases, None if self._entropies is None else self._entropies.read(bases))
        self._find_next()
        if len(bases) and self._next_starts_patch:
            ended = np.append(ended, np.int32(self._cutter.num_unfinished_bases))
        return ended[known:] if len(bases) else ended

    def copy(self) -> PatchStepper:
        """Another reader of the same stream, at the same place: what one reads, the other does not know."""
        twin = copy.copy(self)
        twin._cutter = copy.copy(self._cutter)
        twin._entropies = None if self._entropies is None else self._entropies.copy()
        return twin

    def _find_next(self) -> None:
        self._next_entropy_nats = self._entropies.next_entropy_nats if self._entropies is not None else 0.0
        self._next_starts_patch = self._cutter.next_starts_patch(self._next_entropy_nats)


DEFAULT_PATCHER = Patcher(AdaptiveModel(AdaptiveConfig()), BudgetRule(budget_nats=11.1))
"""For a sequence without a fitted patcher: learns as it reads; 8 bases a patch where nothing can be foreseen."""


def compute_entropy(sequence: Sequence, patcher: Patcher | str | Path | None = None) -> NDArray[np.float32]:
    """Entropy of each base given the bases before it.

    Args:
        sequence: bases as text, bytes or uint8 [L], either case; IUPAC codes, tags and marks are allowed.
        patcher: a patcher or the folder of one; None: a model that learns from the sequence as it reads it.

    Returns:
        float32 [L], nats.

    Raises:
        SequenceError: the sequence is empty, of another type, or has a letter that is none of these.
    """
    return _patcher(patcher).compute_entropy(sequence)


def segment_sequence(sequence: Sequence, patcher: Patcher | str | Path | None = None) -> NDArray[np.int32]:
    """Lengths of the patches of a sequence.

    Args:
        sequence: as in `compute_entropy`.
        patcher: as in `compute_entropy`; None cuts by a budget, 8 bases a patch where nothing can be foreseen.

    Returns:
        int32 [P], in bases; they sum to L.

    Raises:
        SequenceError: as in `compute_entropy`.
    """
    return _patcher(patcher).segment_sequence(sequence)


def _patcher(given: Patcher | str | Path | None) -> Patcher:
    if given is None:
        return DEFAULT_PATCHER
    return given if isinstance(given, Patcher) else Patcher.load(given)


def as_bases(sequence: Sequence) -> Bytes:
    """A sequence as uint8 [L], checked.

    Raises:
        SequenceError: the sequence is empty, of another type, or has a letter outside the alphabet.
    """
    if isinstance(sequence, str):
        try:
            bases = np.frombuffer(sequence.encode("ascii"), dtype=np.uint8)
        except UnicodeEncodeError as error:
            raise _bad_letter(sequence[error.start], error.start) from None
    elif isinstance(sequence, bytes | bytearray):
        bases = np.frombuffer(bytes(sequence), dtype=np.uint8)
    elif isinstance(sequence, np.ndarray) and sequence.dtype == np.uint8 and sequence.ndim == 1:
        bases = sequence
    else:
        given = (
            f"{sequence.dtype} {list(sequence.shape)}" if isinstance(sequence, np.ndarray) else type(sequence).__name__
        )
        raise SequenceError(f"a sequence is text, bytes or a uint8 array of one axis, not {given}")
    if not len(bases):
        raise SequenceError("the sequence is empty: give at least one base")
    unknown = ~_IS_ALLOWED[bases]
    if unknown.any():
        # Any letter may stand in a tag.
        unknown &= states_before(bases) & PLACE != IN_TAG
        if unknown.any():
            position = int(unknown.argmax())
            raise _bad_letter(chr(bases[position]), position)
    return bases


_IS_ALLOWED = np.isin(np.arange(256), sorted(_ALLOWED))


def _bad_letter(letter: str, position: int) -> SequenceError:
    return SequenceError(
        f"letter {letter!r} at position {position} (counted from 0) is no nucleotide: "
        "allowed are A C G T, the IUPAC codes R Y S W K M B D H V N, tags |...| and the marks @ and #"
        + ("; write T for U" if letter in "Uu" else "")
    )
