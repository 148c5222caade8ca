"""Files of torch.save: read without running them, written one tensor at a time."""

import io
import os
import random
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyena_blt_savanna.conversion import torch_files
from hyena_blt_savanna.conversion.torch_files import read_torch, write_torch
from hyena_blt_savanna.conversion.weights import ConversionError
from hyena_blt_savanna.data.errors import DiskFullError
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, lazy


def test_tensors_of_all_kinds_are_read_from_their_places(tmp_path: Path) -> None:
    base = torch.randn(6, 5)
    plain = {"iteration": 3, "name": "x", "bytes": b"raw", "none": None, "list": [1, {"deep": torch.ones(2)}]}
    tensors = {
        "turned": base.t(),
        "part": base[1:3],
        "column": base[:, 2],
        "weight": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(4).bfloat16(),
        "number": torch.tensor(7),
        "none": torch.zeros(0, 4),
    }
    torch.save({"module": OrderedDict(tensors), **plain, "extra": io.BytesIO(b"fp8")}, tmp_path / "a.pt")
    read = read_torch(tmp_path / "a.pt")
    for name, tensor in tensors.items():
        assert isinstance(read["module"][name], LazyTensor)
        assert torch.equal(read["module"][name].load(), tensor.detach())
    assert read["list"][1]["deep"].load().tolist() == [1, 1]
    assert {name: read[name] for name in ("iteration", "name", "bytes", "none")} == {
        name: plain[name] for name in ("iteration", "name", "bytes", "none")
    }
    assert read["extra"].getvalue() == b"fp8"


def test_random_states_are_no_obstacle(tmp_path: Path) -> None:
    state = {"np": np.random.get_state(), "py": random.getstate(), "scalar": np.float64(2), "args": {"n": np.int64(1)}}
    torch.save({**state, "a": torch.ones(2)}, tmp_path / "a.pt")
    read = read_torch(tmp_path / "a.pt")
    assert read["scalar"] == 2
    assert read["a"].load().tolist() == [1, 1]


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch run",)


def test_code_is_refused_by_name_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2), "evil": Evil(), "half": Fraction(1, 2)}, tmp_path / "a.pt")
    # Other packages may allow classes of their own for the whole process; these two nobody does.
    says = r"a.pt holds fractions.Fraction, posix.system: only tensors, plain values"
    with pytest.raises(ConversionError, match=says):
        read_torch(tmp_path / "a.pt")
    assert not (tmp_path / "run").exists()


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"a.pt: no such file"):
        read_torch(tmp_path / "a.pt")
    torch.save({"a": torch.ones(200)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConversionError, match=r"no file of torch.save .* or it is cut off"):
        read_torch(tmp_path / "a.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ConversionError, match=r"no file of torch\.save"):
        read_torch(tmp_path / "old.pt")
    # The end of the archive is there, and what is before it isn't.
    (tmp_path / "a.pt").write_bytes(whole[:100] + bytes(200) + whole[300:])
    with pytest.raises(ConversionError, match=r"can't be read: .*copy it again"):
        read_torch(tmp_path / "a.pt")


def test_what_is_written_is_what_torch_reads_and_saves(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "number": torch.tensor(7.0),
        "t": torch.ones(2, 3).t(),
    }
    held: list[int] = []

    def counted(tensor: torch.Tensor) -> LazyTensor:
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: held.append(1) or tensor)  # type: ignore[func-returns-value]

    tree = {
        "module": {name: counted(tensor) for name, tensor in tensors.items()},
        "global_steps": 3,
        "args": {"x": None},
    }
    write_torch(tmp_path / "a.pt", tree)
    assert len(held) == len(tensors)
    for mmap in (False, True):
        read = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mmap)
        assert all(torch.equal(read["module"][name], tensor) for name, tensor in tensors.items())
        assert read["global_steps"] == 3
        assert read["args"] == {"x": None}


def test_a_full_disk_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(torch_files.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DiskFullError, match="are free: free some space"):
        write_torch(tmp_path / "a.pt", {"a": lazy(torch.ones(2))})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()

    def fail(*_: object) -> None:
        raise RuntimeError("[enforce fail] unexpected pos")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="unexpected pos"):
        write_torch(tmp_path / "a.pt", {"a": lazy(torch.ones(2))})


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "a.pt")

    def refuse(*args: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConversionError, match=r"a.pt can't be opened: Permission denied"):
        read_torch(tmp_path / "a.pt")
