import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import hyena_blt_savanna
from hyena_blt_savanna.evaluation import native_checkpoint
from hyena_blt_savanna.evaluation.native_checkpoint import MANIFEST, WEIGHTS, find_native, save_pretrained
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel, PretrainedError
from hyena_blt_savanna.evaluation.scoring import NoPatcherError
from hyena_blt_savanna.evaluation.sealed_folder import seal
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import PatchRuleError, StaticRule

SEQUENCE = "ACGTTGCANNGATTACA" * 6


@pytest.fixture
def saved(tmp_path: Path, model_of) -> Path:
    model_of("budget").save(tmp_path / "native")
    return tmp_path / "native"


def reseal(folder: Path, **changes) -> None:
    about = json.loads((folder / MANIFEST).read_text())
    seal(folder, {**about, **changes})


def test_loaded_model_equals_the_saved_one(tmp_path: Path, model: HyenaBLTModel) -> None:
    model.window_bases = 4096
    model.trained_on = {"data_sha256": "ab", "left_out": None}
    model.save(tmp_path / "native")
    loaded = hyena_blt_savanna.HyenaBLTModel.load_from_checkpoint(str(tmp_path / "native"))
    assert loaded.config == model.config
    assert loaded.window_bases == 4096
    assert loaded.trained_on == model.trained_on
    stored = load_file(tmp_path / "native" / WEIGHTS)
    stored.pop("head.weight", None)  # tied
    assert loaded.num_parameters == sum(tensor.numel() for tensor in stored.values())
    np.testing.assert_array_equal(loaded.score(SEQUENCE).log_likelihoods, model.score(SEQUENCE).log_likelihoods)
    assert loaded.generate("ACG", 24) == model.generate("ACG", 24)


def test_weights_that_share_memory_and_other_dtypes_are_saved(tmp_path: Path, model_of) -> None:
    model = model_of("isotropic")
    weights = {name: tensor.bfloat16() for name, tensor in model.module.state_dict().items()}
    # A tied weight has two names and one memory; a view is a part of a larger one.
    assert weights.keys() >= {"embedding.weight", "head.weight"}
    weights["head.weight"] = weights["embedding.weight"]
    name = next(name for name in weights if name.startswith("stack."))
    weights[name] = torch.stack([weights[name]] * 2, -1)[..., 0]
    save_pretrained(tmp_path / "native", weights, model.config, None)
    loaded = HyenaBLTModel.load_from_checkpoint(tmp_path / "native")
    for name, tensor in loaded.module.state_dict().items():
        torch.testing.assert_close(tensor, weights[name].float(), rtol=0, atol=0)


def test_loading_leaves_the_generator_alone(saved: Path) -> None:
    state = torch.get_rng_state()
    HyenaBLTModel.load_from_checkpoint(saved)
    assert torch.equal(state, torch.get_rng_state())


def test_package_imports_without_torch() -> None:
    script = (
        "import sys, hyena_blt_savanna; assert 'torch' not in sys.modules; "
        "assert 'HyenaBLTModel' in dir(hyena_blt_savanna); assert not hasattr(hyena_blt_savanna, 'HyenaBTLModel')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(hyena_blt_savanna.__file__).parents[1])


def test_training_checkpoints_and_run_folders_are_found(tmp_path: Path, saved: Path) -> None:
    run = tmp_path / "run"
    for step in ("step_00000009", "step_00000010", "step_00000100"):
        shutil.copytree(saved, run / "checkpoints" / step / "native")
    (run / "checkpoints" / "step_00000200.partial" / "native").mkdir(parents=True)
    newest = run / "checkpoints" / "step_00000100"
    assert find_native(newest) == newest / "native"
    assert find_native(run) == newest / "native"
    assert find_native(run / "checkpoints") == newest / "native"
    (newest / "native" / WEIGHTS).write_bytes(b"cut")
    assert find_native(run) == run / "checkpoints" / "step_00000010" / "native"
    # What was asked for by name is not exchanged for another.
    with pytest.raises(PretrainedError, match=r"model.safetensors has 3 bytes instead of"):
        HyenaBLTModel.load_from_checkpoint(newest)
    for step in ("step_00000009", "step_00000010"):
        (run / "checkpoints" / step / "native" / MANIFEST).unlink()
    with pytest.raises(PretrainedError, match=r"holds no whole checkpoint: .*has 3 bytes.*no manifest.json"):
        find_native(run)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(PretrainedError, match="nowhere does not exist: give the folder"):
        HyenaBLTModel.load_from_checkpoint(tmp_path / "nowhere")
    with pytest.raises(PretrainedError, match=r"config.yaml is a file: give the folder"):
        HyenaBLTModel.load_from_checkpoint(saved / "config.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PretrainedError, match=r"empty holds no whole checkpoint: neither model.safetensors"):
        HyenaBLTModel.load_from_checkpoint(tmp_path / "empty")


def test_changed_files_are_noticed(saved: Path) -> None:
    weights = bytearray((saved / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (saved / WEIGHTS).write_bytes(weights)
    with pytest.raises(PretrainedError, match=r"model.safetensors has changed"):
        HyenaBLTModel.load_from_checkpoint(saved)
    (saved / "patcher" / "patcher.yaml").unlink()
    with pytest.raises(PretrainedError, match=r"lacks patcher/patcher.yaml"):
        HyenaBLTModel.load_from_checkpoint(saved)
    (saved / MANIFEST).write_text("{")
    with pytest.raises(PretrainedError, match=r"manifest.json is broken"):
        HyenaBLTModel.load_from_checkpoint(saved)
    (saved / MANIFEST).unlink()
    with pytest.raises(PretrainedError, match=r"has no manifest.json"):
        HyenaBLTModel.load_from_checkpoint(saved)


def test_other_formats_and_versions_are_refused(saved: Path) -> None:
    reseal(saved, format_version=99)
    with pytest.raises(PretrainedError, match="format_version 99, and this program reads 1"):
        HyenaBLTModel.load_from_checkpoint(saved)
    reseal(saved, format="other", format_version=1)
    with pytest.raises(PretrainedError, match="says format 'other'"):
        HyenaBLTModel.load_from_checkpoint(saved)


def test_a_checkpoint_of_another_model_is_refused(saved: Path) -> None:
    config = yaml.safe_load((saved / "config.yaml").read_text())
    name = "gated_convolution"

    def load_with(**changes) -> None:
        (saved / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
        reseal(saved)
        HyenaBLTModel.load_from_checkpoint(saved)

    with pytest.raises(PretrainedError, match="no model of kind 'mamba'; known: hyena_blt, isotropic"):
        load_with(kind="mamba")
    with pytest.raises(PretrainedError, match=r"local_widht: unknown key; did you mean 'local_width'"):
        load_with(local_widht=3)
    with pytest.raises(PretrainedError, match=r"decoder\.blocks\.0\.norm\.weight has shape \[12\] instead of \[20\]"):
        load_with(local_width=20)
    with pytest.raises(
        PretrainedError, match=r"decoder.blocks.2.narrow.weight is missing; nearest that is there: encoder"
    ) as error:
        load_with(decoder={**config["decoder"], "blocks": [name] * 3}, encoder={**config["encoder"], "blocks": []})
    assert "encoder.blocks.0.narrow.weight is no weight of this model; nearest: decoder.blocks.2" in str(error.value)
    with pytest.raises(PretrainedError, match=r"is missing.*\n  and 19 more$"):
        load_with(decoder={**config["decoder"], "blocks": [name] * 11})


def test_a_patcher_of_longer_patches_is_refused(tmp_path: Path, model_of) -> None:
    model = model_of("static")
    model.patcher = Patcher(None, StaticRule(patch_bases=4, max_patch_bases=9))
    with pytest.raises(PretrainedError, match="patches of up to 9 bases, and the model has places for 8"):
        model.save(tmp_path / "native")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_whose_patcher_is_of_longer_patches_is_refused(saved: Path) -> None:
    path = saved / "patcher" / "patcher.yaml"
    path.write_text(path.read_text().replace("max_patch_bases: 8", "max_patch_bases: 12"))
    reseal(saved)
    with pytest.raises(PretrainedError, match="patches of up to 12 bases, and the model has places for 8"):
        HyenaBLTModel.load_from_checkpoint(saved)


def test_broken_patcher_and_weights_behind_a_whole_manifest(saved: Path) -> None:
    (saved / "patcher" / "patcher.yaml").write_text("format_version: 99")
    reseal(saved)
    with pytest.raises(PretrainedError, match=r"patcher.yaml: format_version 99"):
        HyenaBLTModel.load_from_checkpoint(saved)
    (saved / WEIGHTS).write_bytes(b"no weights")
    reseal(saved)
    with pytest.raises(PretrainedError, match=r"model.safetensors can't be read"):
        HyenaBLTModel.load_from_checkpoint(saved)


def test_nothing_is_left_when_writing_fails(saved: Path, model_of, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(path.name for path in saved.parent.iterdir())
    whole = (saved / WEIGHTS).read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native_checkpoint, "seal", fail)
    with pytest.raises(
        PretrainedError, match=r"could not be written: .*No space left on device.*nothing of it is left"
    ):
        model_of("static").save(saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == before
    assert (saved / WEIGHTS).read_bytes() == whole


def test_saving_again_replaces(saved: Path, model_of) -> None:
    model_of("isotropic").save(saved)
    assert HyenaBLTModel.load_from_checkpoint(saved).patcher is None
    assert [path.name for path in saved.parent.iterdir()] == ["native"]


def test_the_same_weights_on_other_patches(model_of) -> None:
    model = model_of("budget")
    sequence = "".join("ACGT"[i * i % 7 % 4] for i in range(400))
    for factor in (0.5, 2.0):
        other = model.with_patches(factor)
        assert other.module is model.module
        lengths = Patcher(model.patcher.entropy_model, model.patcher.rule.scaled(factor)).segment_sequence(sequence)
        assert other.patcher.segment_sequence(sequence).tolist() == lengths.tolist()
        assert other.score(sequence).total != model.score(sequence).total
    with pytest.raises(NoPatcherError, match="no patches to make longer or shorter"):
        model_of("isotropic").with_patches(2.0)
    with pytest.raises(PatchRuleError, match="factor"):
        model.with_patches(-1.0)
