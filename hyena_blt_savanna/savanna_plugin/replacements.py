"""What is put in the place of other code's names for a while, and put back."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any, Self

_ABSENT = object()


class Replacements:
    """Sets attributes, entries and whatever else can be undone; as a context manager it undoes all, last one first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: object, name: str, value: Any) -> None:
        """Gives an object or a module another attribute.

        Args:
            owner: its own attribute is replaced, not one of its class.
            name: of the attribute; it may not have been there.
            value: in its place.
        """
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        self.call_back(lambda: delattr(owner, name) if before is _ABSENT else setattr(owner, name, before))

    def set_item(self, mapping: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Gives a mapping another entry."""
        before = mapping.get(key, _ABSENT)
        mapping[key] = value

        def undo() -> None:
            if before is _ABSENT:
                mapping.pop(key, None)
            else:
                mapping[key] = before

        self.call_back(undo)

    def call_back(self, undo: Callable[[], None]) -> None:
        """Calls a function when all is undone."""
        self._undo.append(undo)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            self._undo.pop()()
