"""What DeepSpeed would write, copied into the host's memory, so that it can be written while training goes on."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Write = Callable[[Path], None]
"""Writes one file, whose folder is there."""


def copy_states(deepspeed: Any, tag: str) -> dict[str, Write]:
    """Copies of this rank's weights and optimizer states, as they are now. Every rank calls.

    Args:
        deepspeed: its engine.
        tag: the folder that the files lie in.

    Returns:
        Names of DeepSpeed's files, and what writes each; to be called once, in any thread.
    """
    collector = _Collector(deepspeed.checkpoint_engine)
    deepspeed.checkpoint_engine = collector
    # Beside its states, DeepSpeed writes scripts and what it has offloaded to a disk; folders, too.
    aside = Path(tempfile.mkdtemp(prefix="checkpoint-"))
    try:
        deepspeed.save_checkpoint(str(aside), tag=tag, save_latest=False)
    finally:
        deepspeed.checkpoint_engine = collector.inner
    written = [path for path in aside.rglob("*") if path.is_file()]
    files: dict[str, Write] = {path.relative_to(aside).as_posix(): _move(path, aside) for path in written}
    if not written:
        shutil.rmtree(aside)
    for path, state in collector.states:
        files[path.relative_to(aside).as_posix()] = _save(collector.inner, state)
    return files


def copy_to_host(states: Any) -> Any:
    """The same tree, with copies of its tensors on the CPU."""
    if isinstance(states, torch.Tensor):
        # A view is copied without the rest of its storage, which torch.save would write too.
        return states.detach().to("cpu", copy=True)
    if isinstance(states, dict):
        copied = copy.copy(states)
        copied.update((key, copy_to_host(value)) for key, value in states.items())
        return copied
    # Not torch.Size, of which torch's own trees would make a plain tuple.
    return type(states)(map(copy_to_host, states)) if type(states) in (list, tuple) else states


class _Collector:
    """Stands in for DeepSpeed's checkpoint engine, and keeps copies of what it is given to write."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.states: list[tuple[Path, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def preserves_storage_sharing(self) -> bool:
        """DeepSpeed need not clone tensors before they are given to `save`: they are copied anyway."""
        return False

    def save(self, state_dict: Any, path: str) -> None:
        self.states.append((Path(path), copy_to_host(state_dict)))


def _save(inner: Any, state: Any) -> Write:
    return lambda path: inner.save(state, str(path))


def _move(source: Path, aside: Path) -> Write:
    def move(path: Path) -> None:
        shutil.copyfile(source, path)
        source.unlink()
        if not any(left.is_file() for left in aside.rglob("*")):
            shutil.rmtree(aside)

    return move
