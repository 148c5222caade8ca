"""Files of a checkpoint that a thread writes, to a disk of the node first if there is one."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hyena_blt_savanna.evaluation.sealed_folder import describe_file
from hyena_blt_savanna.training.host_copies import Write

WriteFolder = Callable[[Path], None]
"""Writes files into a folder that it makes."""


class BackgroundWriting:
    """One rank's share of a checkpoint on its way to the disk.

    Args:
        step: of the checkpoint.
        target: folder that the files go into; other ranks write into it too.
        files: what writes each, by its name below the folder.
        folders: what writes whole folders, likewise; no other rank writes into these.
        local: folder on a disk of this node, where the files are written first; None: they go to the target at once.
    """

    def __init__(
        self,
        step: int,
        target: Path,
        files: Mapping[str, Write],
        folders: Mapping[str, WriteFolder],
        local: Path | None = None,
    ) -> None:
        self.step = step
        self.target = target
        self._files = dict(files)
        self._folders = dict(folders)
        self._local = local
        self._entries: dict[str, dict[str, Any]] = {}
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"checkpoint of step {step}", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        """Whether the thread has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Returns when the thread has ended."""
        self._thread.join()

    def outcome(self) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Size and checksum of each file by its name, and what went wrong, if something did; waits for the thread."""
        self.wait()
        return self._entries, None if self._error is None else str(self._error) or repr(self._error)

    def _run(self) -> None:
        try:
            names = self._write(self._local or self.target)
            for name in names:
                if self._local is not None:
                    (self.target / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self._local / name, self.target / name)
                self._entries[name] = describe_file(self.target / name)
        except Exception as error:
            # Told by the thread that asks for the outcome.
            self._error = error
        finally:
            # The copies in memory are not wanted any more, whoever still holds this object.
            self._files.clear()
            self._folders.clear()
            if self._local is not None:
                shutil.rmtree(self._local, ignore_errors=True)

    def _write(self, folder: Path) -> list[str]:
        names = []
        while self._files:
            name, write = self._files.popitem()
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write(folder / name)
            names.append(name)
        for name, write_folder in self._folders.items():
            write_folder(folder / name)
            found = (path for path in (folder / name).rglob("*") if path.is_file())
            names += [path.relative_to(folder).as_posix() for path in found]
        return names
