"""Typed, frozen configuration: YAML files and `key=value` overrides merged into one object.

Each class of the package that can be configured has a `Config` subclass beside it. Files are merged
from left to right, then the overrides; every mistake is reported at once, with dotted keys and the
nearest known name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A configuration that can't be used: the message lists every mistake with its dotted key."""


class Config(BaseModel):
    """Base of every configuration: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def parse(cls, tree: dict[str, Any], where: str = "configuration") -> Self:
        """Validates a tree of plain values.

        Args:
            tree: nested dictionaries, as read from YAML.
            where: what the tree is, for the error message.

        Raises:
            ConfigError: one line for each mistake.
        """
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            lines = [_describe(cls, problem) for problem in error.errors()]
            raise ConfigError(f"{where}: {len(lines)} mistake(s)\n" + "\n".join(lines)) from None

    @classmethod
    def load(cls, sources: Sequence[str | Path]) -> Self:
        """Merges YAML files and `dotted.key=value` overrides, in the order given, and validates.

        Args:
            sources: paths of YAML files, and overrides; an override always beats a file.

        Raises:
            ConfigError: a file is missing or is no YAML mapping, or the merged tree has mistakes.
        """
        return cls.parse(merge(sources), " ".join(str(source) for source in sources) or "configuration")

    def to_dict(self) -> dict[str, Any]:
        """The plain values, ready for YAML or JSON."""
        return self.model_dump(mode="json")

    def save(self, path: Path) -> None:
        """Writes the whole configuration, defaults included, as YAML."""
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False))
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def merge(sources: Sequence[str | Path]) -> dict[str, Any]:
    """Merges YAML files from left to right, then `dotted.key=value` overrides; `stages.1.steps=5` reaches into a list.

    Raises:
        ConfigError: a file or a value is missing, is not YAML, repeats a key, or is no mapping where one must be.
    """
    overrides = [source for source in sources if isinstance(source, str) and _is_override(source)]
    files = [Path(source) for source in sources if source not in overrides]
    trees = [_read_yaml(path) for path in files]
    try:
        merged = OmegaConf.merge({}, *trees)
        for override in overrides:
            _apply(merged, override)
        plain = OmegaConf.to_container(merged, resolve=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"{' '.join(overrides)}: a value that is not YAML: {error}") from error
    except TypeError as error:
        raise ConfigError(
            f"cannot merge {' '.join(map(str, sources))}: {error}; a list is given whole, as in key=[a, b], or by its "
            "places, counted from 0, as in key.0=a"
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"cannot merge {' '.join(map(str, sources))}: {error}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _apply(tree: Any, override: str) -> None:
    key, _, text = override.partition("=")
    # Not as a tree of its own: in one, the places of a list would be keys of a mapping.
    value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
    assert isinstance(value, dict)
    OmegaConf.update(tree, key, value["value"], force_add=True)


def _is_override(source: str) -> bool:
    # A folder or file may have an equals sign in its name.
    return "=" in source and not Path(source).is_file()


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give YAML files and key=value overrides")
    try:
        tree = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a YAML file: {error}") from error
    if not OmegaConf.is_dict(tree):
        raise ConfigError(f"{path}: the file must hold a mapping (key: value), not {type(tree).__name__}")
    return tree


def _describe(root: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(_without_tags(root, location))
    if problem["type"] == "extra_forbidden":
        known = sorted(_fields_at(root, location[:-1]))
        nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known keys: {', '.join(known)}"
        return f"  {key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"  {key}: missing; add this key"
    message = problem["msg"].removeprefix("Value error, ")
    return f"  {key or '(top level)'}: {message} (given: {_shorten(problem.get('input'))})"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _without_tags(root: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys as a user writes them: pydantic puts the `kind` that chose a union's member among them."""
    kept = []
    for depth, part in enumerate(location):
        classes = _classes_at(root, location[:depth])
        is_field = any(part in cls.model_fields for cls in classes)
        kinds = {kind for cls in classes if "kind" in cls.model_fields for kind in get_args(_annotation(cls, "kind"))}
        if is_field or part not in kinds or depth == len(location) - 1:
            kept.append(part)
    return kept


def _fields_at(root: type[BaseModel], location: Sequence[str]) -> set[str]:
    """Names of the fields at a place of the tree; a union contributes the fields of all its members."""
    return {name for cls in _classes_at(root, location) for name in cls.model_fields}


def _classes_at(root: type[BaseModel], location: Sequence[str]) -> list[type[BaseModel]]:
    classes = [root]
    for part in location:
        below = [found for cls in classes if part in cls.model_fields for found in _configs_in(_annotation(cls, part))]
        # A part that names no field is a list index or the tag of a union: it stays on the same level.
        classes = below or classes
    return classes


def _annotation(cls: type[BaseModel], field: str) -> Any:
    return cls.model_fields[field].annotation


def _configs_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _configs_in(argument)
