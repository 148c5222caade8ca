"""Files of tensors, against those that the safetensors package writes and reads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hyena_blt_savanna.data import whole_files
from hyena_blt_savanna.data.errors import DiskFullError
from hyena_blt_savanna.evaluation.native_checkpoint import read_native, save_pretrained
from hyena_blt_savanna.evaluation.tensor_files import (
    LazyTensor,
    TensorFileError,
    has_safetensors,
    lazy,
    read_safetensors,
    write_safetensors,
)

TENSORS = {
    "b": torch.randn(3, 4),
    "a": torch.randn(5).bfloat16(),
    "n": torch.arange(3),
    "none": torch.zeros(0, 3),
    "number": torch.tensor(2.5),
    'é"x': torch.tensor([True]),
    "turned": torch.randn(4, 6).t(),
}


def lazily(tensors: dict[str, torch.Tensor]) -> dict[str, LazyTensor]:
    return {name: lazy(tensor) for name, tensor in tensors.items()}


def test_one_file_is_that_of_the_safetensors_package(tmp_path: Path) -> None:
    assert write_safetensors(tmp_path, lazily(TENSORS)) == ["model.safetensors"]
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    for name, tensor in read_safetensors(tmp_path).items():
        assert tensor.shape == TENSORS[name].shape
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor.load(), TENSORS[name])


def test_shards_are_those_of_hugging_faces_index(tmp_path: Path) -> None:
    assert not has_safetensors(tmp_path)
    names = write_safetensors(tmp_path, lazily(TENSORS), shard_bytes=60)
    assert names == [*(f"model-{i:05d}-of-00003.safetensors" for i in range(1, 4)), "model.safetensors.index.json"]
    assert has_safetensors(tmp_path)
    index = json.loads((tmp_path / names[-1]).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    for file in names[:-1]:
        held = load_file(tmp_path / file)
        assert {name for name, shard in index["weight_map"].items() if shard == file} == set(held)
        assert sum(tensor.nbytes for tensor in held.values()) <= 60 or len(held) == 1
    read = read_safetensors(tmp_path)
    assert list(read) == list(TENSORS)
    assert all(torch.equal(tensor.load(), TENSORS[name]) for name, tensor in read.items())


def test_a_change_is_made_when_the_tensor_is_loaded() -> None:
    loads = []

    def load() -> torch.Tensor:
        loads.append(1)
        return torch.arange(6).float()

    changed = LazyTensor((6,), torch.float32, load).map(lambda x: x.reshape(2, 3).to(torch.bfloat16).t())
    assert (changed.shape, changed.dtype, changed.num_bytes, loads) == ((3, 2), torch.bfloat16, 12, [])
    assert torch.equal(changed.load().float(), torch.tensor([[0.0, 3], [1, 4], [2, 5]]))
    assert loads == [1]


def test_what_is_cut_off_or_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match=r"model.safetensors can't be read: FileNotFound"):
        read_safetensors(tmp_path)
    write_safetensors(tmp_path, lazily({"a": torch.ones(4)}))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    late = read_safetensors(tmp_path)["a"]
    path.write_bytes(whole[:-3])
    with pytest.raises(
        TensorFileError, match=rf"it has {len(whole) - 3:,} bytes instead of {len(whole):,}; copy it again"
    ):
        read_safetensors(tmp_path)
    with pytest.raises(TensorFileError, match="is cut off: 3 bytes are missing"):
        late.load()
    path.unlink()
    with pytest.raises(TensorFileError, match=r"model.safetensors can't be read: .*No such file"):
        late.load()
    for cut in (b"", whole[:20], b"{}" * 20):
        path.write_bytes(cut)
        with pytest.raises(TensorFileError, match="no safetensors file, or cut off in its header"):
            read_safetensors(tmp_path)
    for text in (b'{"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}', b"[1, 2]"):
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
        with pytest.raises(TensorFileError, match=r"can't be read: .*copy it again"):
            read_safetensors(tmp_path)
    path.write_bytes(whole.replace(b"[4]", b"[3]"))
    with pytest.raises(TensorFileError, match="places and shapes disagree for a"):
        read_safetensors(tmp_path)


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path: Path) -> None:
    *shards, index = write_safetensors(tmp_path, lazily(TENSORS), shard_bytes=60)
    text = (tmp_path / index).read_text()
    (tmp_path / index).write_text(text.replace('"b"', '"c"'))
    with pytest.raises(TensorFileError, match=r"is not the shard .* lists: c is missing.*b is no weight"):
        read_safetensors(tmp_path)
    (tmp_path / index).write_text("{}")
    with pytest.raises(TensorFileError, match=r"index.json can't be read"):
        read_safetensors(tmp_path)
    (tmp_path / index).write_text(text)
    (tmp_path / shards[1]).unlink()
    with pytest.raises(TensorFileError, match=r"model-00002-of-00003.safetensors can't be read"):
        read_safetensors(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: whole_files.WholeFile, data: object) -> None:
        with self._reporting(0):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(whole_files.WholeFile, "write", full)
    with pytest.raises(DiskFullError, match="no space left"):
        write_safetensors(tmp_path, lazily(TENSORS))
    assert list(tmp_path.iterdir()) == []


def test_a_native_checkpoint_in_shards(tmp_path: Path, model_of) -> None:
    model = model_of("isotropic")
    save_pretrained(tmp_path / "native", model.module.state_dict(), model.config, None, shard_bytes=20_000)
    assert len(list((tmp_path / "native").glob("model-*.safetensors"))) > 2
    read = read_native(tmp_path / "native").module.state_dict()
    assert all(torch.equal(tensor, read[name]) for name, tensor in model.module.state_dict().items())
