"""Conversions between formats, as the tool makes them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from hyena_blt_savanna.conversion import agreement, convert, into_hybrid, torch_files, vortex
from hyena_blt_savanna.conversion.agreement import compare, fixed_bases, logits_of
from hyena_blt_savanna.conversion.convert import Conversion, detect_format
from hyena_blt_savanna.conversion.native import read as read_native_weights
from hyena_blt_savanna.conversion.savanna_hybrid_weights import hybrid_to_savanna
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights
from hyena_blt_savanna.conversion.window import with_window
from hyena_blt_savanna.evaluation.native_checkpoint import read_native, save_pretrained
from hyena_blt_savanna.evaluation.sealed_folder import MANIFEST, verify
from hyena_blt_savanna.evaluation.tensor_files import LazyTensor, lazy
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.model.kmer_tokens import KmerTokensConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import StaticRule
from hyena_blt_savanna.training.first_weights import check_patterns, freeze
from hyena_blt_savanna.training.run_config import RunConfig

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"
QUICKSTART = Path(__file__).parents[2] / "configs" / "model" / "quickstart.yaml"


def run(source: Path, target: Path, to: str, source_format: str = "auto", **options: Any) -> dict[str, Any]:
    return convert.convert(Conversion(source, target, source_format, to, **options))


@pytest.fixture
def native(tmp_path: Path, savanna_folder: Path) -> Path:
    run(savanna_folder, tmp_path / "native", "native")
    return tmp_path / "native"


@pytest.fixture(scope="session")
def hybrid_weights() -> ModelWeights:
    config = HyenaBLTConfig.parse(
        {
            "local_width": 12,
            "max_patch_bases": 8,
            "kmers": {"sizes": [2]},
            "global_model": {"width": 16, "blocks": ["hyena_se"]},
        }
    )
    torch.manual_seed(0)
    module = config.build()
    torch.nn.init.normal_(module.decoder.head.weight)  # type: ignore[arg-type]
    state = {name: lazy(tensor) for name, tensor in module.state_dict().items()}
    return ModelWeights(config, state, Patcher(None, StaticRule(patch_bases=4, max_patch_bases=8)), 4096)


@pytest.fixture
def hybrid(tmp_path: Path, hybrid_weights: ModelWeights) -> Path:
    tensors, config = hybrid_weights.tensors, hybrid_weights.config
    save_pretrained(tmp_path / "hybrid", tensors, config, hybrid_weights.patcher, 4096, {"left_out": None})
    return tmp_path / "hybrid"


def test_each_format_into_each(
    tmp_path: Path, savanna_folder: Path, vortex_folder: Path, native: Path, backbone: dict[str, Tensor]
) -> None:
    sources = {"savanna": savanna_folder, "vortex": vortex_folder, "native": native}
    for source_format, source in sources.items():
        assert detect_format(source) == source_format
        for to in ("native", "savanna", "vortex"):
            target = tmp_path / f"{source_format}-{to}"
            result = run(source, target, to)
            assert (result["from"], result["to"], result["kind"]) == (source_format, to, "isotropic")
            # An independent look at what came out, besides the tool's own: Savanna's logits.
            assert detect_format(target) == to
            run(target, tmp_path / "again", "native")
            logits = read_native(tmp_path / "again").module(backbone["tokens"])
            assert float((logits - backbone["logits"]).abs().max() / backbone["logits"].abs().max()) <= 1e-5
            shutil.rmtree(tmp_path / "again")
            verify(target)
            said = json.loads((target / MANIFEST).read_text())["conversion"]
            assert said["check"] == result["check"]
            assert said["notes"] == result["notes"]
            assert result["check"]["num_bases"] == 512
            assert result["check"]["largest_difference"] <= 1e-5 * result["check"]["largest_logit"]


def test_native_to_savanna_to_native_gives_identical_bytes(tmp_path: Path, native: Path) -> None:
    run(native, tmp_path / "savanna", "savanna")
    run(tmp_path / "savanna", tmp_path / "back", "native")
    for name in ("model.safetensors", "config.yaml"):
        assert (tmp_path / "back" / name).read_bytes() == (native / name).read_bytes()


def test_the_check_finds_a_wrong_weight(tmp_path: Path, native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torch = torch_files.write_torch

    def swapped(path: Path, tree: dict[str, Any]) -> None:
        names = ("sequential.2.mlp.w1.weight", "sequential.2.mlp.w2.weight")
        first, second = (tree["module"][name] for name in names)
        write_torch(path, {**tree, "module": {**tree["module"], names[0]: second, names[1]: first}})

    monkeypatch.setattr("hyena_blt_savanna.conversion.savanna.write_torch", swapped)
    with pytest.raises(ConversionError, match=r"the target's logits differ from the source's by up to .*--no-check"):
        run(native, tmp_path / "out", "savanna")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["native", "savanna_source"]
    assert run(native, tmp_path / "out", "savanna", check=False)["check"] is None
    with pytest.raises(ConversionError, match="differ"):
        compare(torch.ones(1, 2, 3), torch.full((1, 2, 3), torch.nan))


def test_logits_are_computed_layer_by_layer(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, peak = {}, [0]
    give = agreement._set

    def watched(part: torch.nn.Module, name: str, tensor: Tensor) -> None:
        given[part, name] = 0 if tensor.is_meta else tensor.nbytes
        peak[0] = max(peak[0], sum(given.values()))
        give(part, name, tensor)

    monkeypatch.setattr(agreement, "_set", watched)
    module = read_native(native).module
    bases = torch.from_numpy(fixed_bases().astype("int64"))[None]
    assert set(fixed_bases().tolist()) == set(b"ACGT")
    held: list[int] = []

    def counted(tensor: Tensor) -> LazyTensor:
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: held.append(tensor.nbytes) or tensor.clone())  # type: ignore[func-returns-value]

    tensors = {name: counted(tensor) for name, tensor in module.state_dict().items()}
    config = IsotropicConfig.load([native / "config.yaml"])
    torch.testing.assert_close(logits_of(ModelWeights(config, tensors)), module(bases), rtol=0, atol=1e-5)
    assert peak == [tensors["embedding.weight"].num_bytes]
    # Each weight once; the embedding is the head too.
    assert sum(held) == sum(tensor.num_bytes for tensor in tensors.values())


def test_memory_stays_that_of_a_tensor(tmp_path: Path, native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are loaded at once, in each direction; all weights together have 1.1 MB, the largest one 131 kB."""
    alive: dict[int, int] = {}
    peak = [0]
    load = LazyTensor.__getattribute__

    def watched(self: LazyTensor, name: str) -> Any:
        found = load(self, name)
        if name != "load":
            return found

        def counting() -> Tensor:
            tensor = found()
            key = id(tensor)
            alive[key] = tensor.nbytes
            weakref.finalize(tensor, alive.pop, key, None)
            peak[0] = max(peak[0], sum(alive.values()))
            return tensor

        return counting

    monkeypatch.setattr(LazyTensor, "__getattribute__", watched)
    source, largest = native, 512 * 64 * 4
    for number, to in enumerate(("savanna", "native", "vortex", "native")):
        target = tmp_path / str(number)
        run(source, target, to, check=False)
        source = target
    assert 0 < peak[0] <= 3 * largest


def test_blocks_become_the_global_model_of_a_hybrid(tmp_path: Path, native: Path) -> None:
    config = {
        "model": {"local_width": 16, "kmers": {"sizes": [2, 3]}, "global_model": {"activation_checkpointing": True}}
    }
    (tmp_path / "hybrid.yaml").write_text(yaml.safe_dump(config))
    given = (str(tmp_path / "hybrid.yaml"), "model.max_patch_bases=8")
    target = tmp_path / "blt"
    result = run(native, target, "native", into="hyena_blt", hybrid=given)
    assert result["kind"] == "hyena_blt"
    assert result["check"]["largest_logit"] > 1  # of the blocks, between the source's embedding and head
    assert any("embedding.weight, head.weight of the isotropic model stay behind" in note for note in result["notes"])
    verify(target)
    built = read_native(target)
    assert isinstance(built.config, HyenaBLTConfig)
    assert (built.config.local_width, built.config.max_patch_bases) == (16, 8)
    before = load_file(native / "model.safetensors")
    after = built.module.state_dict()
    for name, tensor in before.items():
        if name.startswith("stack."):
            assert torch.equal(after[name.replace("stack.", "global_model.", 1)], tensor)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())


def test_the_hybrids_trainings_are_configured(tmp_path: Path, native: Path) -> None:
    target = tmp_path / "blt"
    run(native, target, "native", into="hyena_blt")
    quickstart = yaml.safe_load(QUICKSTART.read_text())["model"]
    assert {
        key: value for key, value in quickstart.items() if key not in ("kind", "global_model")
    } == into_hybrid.LOCAL_MODULES
    more = ["data.folder=somewhere", "training.stages=[{steps: 1, window_bases: 512, batch_windows: 1}]"]
    local, everything = (
        RunConfig.load([target / name, *more]) for name in (into_hybrid.TRAIN_LOCAL, into_hybrid.TRAIN_ALL)
    )
    assert local.start_from == target
    assert everything.start_from == local.run
    module = read_native(target).module.requires_grad_(True)
    assert local.model == everything.model == read_native(target).config
    check_patterns(module, local.training.frozen)
    freeze(module, local.training.frozen)
    trained = {name.split(".")[0] for name, weight in module.named_parameters() if weight.requires_grad}
    assert trained == {"encoder", "decoder"}
    assert everything.training.frozen == []


def test_hybrids_that_do_not_fit(tmp_path: Path, native: Path, hybrid: Path) -> None:
    def into(source: Path = native, **options: Any) -> None:
        run(source, tmp_path / "out", options.pop("to", "native"), into=options.pop("into", "hyena_blt"), **options)

    with pytest.raises(
        ConversionError, match=r"global model of --config: [\s\S]*mlp.gate.weight has shape \[176, 64\] instead"
    ):
        into(hybrid=("global_model.mlp.round_up_to=1",))
    with pytest.raises(ConversionError, match="local_widht: unknown key; did you mean 'local_width'"):
        into(hybrid=("local_widht=3",))
    with pytest.raises(ConversionError, match="model must be a mapping"):
        into(hybrid=("model=3",))
    with pytest.raises(ConversionError, match="an isotropic model, and this one is of kind hyena_blt"):
        into(source=hybrid)
    with pytest.raises(ConversionError, match="--into mamba: choose from hyena_blt"):
        into(into="mamba")
    with pytest.raises(ConversionError, match="--into hyena_blt writes a native checkpoint"):
        into(to="vortex")
    with pytest.raises(ConversionError, match="--config describes the model of --into"):
        into(into=None, hybrid=("local_width=3",))
    assert not (tmp_path / "out").exists()


def test_a_longer_window(tmp_path: Path, native: Path) -> None:
    result = run(native, tmp_path / "savanna", "savanna", window_bases=1024)
    assert result["notes"] == [
        "attention: rotary positions are divided by 4 (before: 1), because the window is 1,024 bases and was 256",
        "hyena_mr: the decay keeps the rates of 256 bases; where Savanna stores its grid, it and the taps are "
        "filled up to 1,024",
        "hyena_li: filters are sums of exponentials and go on; where Savanna stores their times, it is 0 to 1,023",
    ]
    folder = tmp_path / "savanna" / "global_step0"
    module = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert torch.equal(module["sequential.4.mixer.mixer.filter.t"], torch.arange(1024.0)[None, None])
    for ending, first in (("h", "operator.taps"), ("decay", "operator.decay")):
        tensor = module[f"sequential.3.mixer.mixer.filter.{ending}"]
        assert tensor.shape == (16, 1024)
        assert torch.equal(tensor[:, :128], load_file(native / "model.safetensors")[f"stack.blocks.1.mixer.{first}"])
    settings = yaml.safe_load((folder / "configs" / "model.yml").read_text())
    assert (settings["seq_length"], settings["pos_emb"], settings["rotary_emb_scaling_factor"]) == (
        1024,
        "rotary_linear_scaled",
        4,
    )
    back = run(tmp_path / "savanna", tmp_path / "back", "native", window_bases=512)
    assert back["window_bases"] == 512
    assert "attention: rotary positions stay; 512 bases are no more than were trained on" in back["notes"]
    config = IsotropicConfig.load([tmp_path / "back" / "config.yaml"])
    assert config.stack.attention.rotary.position_scale == 4
    assert config.stack.hyena.mr_decay_length == 256


def test_windows_of_other_models(tmp_path: Path, hybrid: Path) -> None:
    result = run(hybrid, tmp_path / "out", "native", window_bases=9000)
    assert (result["window_bases"], result["kind"]) == (9000, "hyena_blt")
    with pytest.raises(ConversionError, match="window_bases is 0"):
        run(hybrid, tmp_path / "b", "native", window_bases=0)
    tree = {"stack": {"width": 8, "blocks": ["attention", "hyena_implicit"]}}
    config = IsotropicConfig.parse(tree)
    save_pretrained(tmp_path / "c", config.build().state_dict(), config, None)
    with pytest.raises(ConversionError, match="doesn't say which window it was trained on"):
        run(tmp_path / "c", tmp_path / "b", "native", window_bases=512)
    save_pretrained(tmp_path / "c", config.build().state_dict(), config, None, window_bases=512)
    notes = run(tmp_path / "c", tmp_path / "d", "native", window_bases=1024)["notes"]
    assert "hyena_implicit: the time of the filters still runs from 0 to 1 over 8,192" in notes
    words = KmerTokensConfig.parse({"global_model": {"width": 8, "blocks": ["hyena_se"]}})
    with pytest.raises(ConversionError, match="this one is of kind kmer_tokens"):
        with_window(ModelWeights(words, {}), 512)


def test_hybrids_go_to_savanna_and_back(tmp_path: Path, hybrid: Path) -> None:
    result = run(hybrid, tmp_path / "savanna", "savanna")
    assert "hyena-blt.window_patches is" in result["notes"][-1]
    back = run(tmp_path / "savanna", tmp_path / "back", "native")
    assert back["from"] == "savanna"
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (hybrid / "model.safetensors").read_bytes()
    # Its own YAML tells what the weights alone don't.
    (tmp_path / "savanna" / "global_step0" / "configs" / "model.yml").unlink()
    with pytest.raises(ConversionError, match="give the YAML file that it was trained with, which has the block"):
        run(tmp_path / "savanna", tmp_path / "out", "native")


def test_hybrids_with_parts_of_our_own_stay_native(hybrid: Path) -> None:
    config = read_native(hybrid).config.to_dict()
    config["global_model"] |= {"blocks": ["attention"], "attention": {"window": 32}}
    with pytest.raises(ConversionError, match="Savanna has no place for attention within a window"):
        hybrid_to_savanna(ModelWeights(HyenaBLTConfig.parse(config), {}))


def test_hybrids_stay_native(tmp_path: Path, hybrid: Path) -> None:
    result = run(hybrid, tmp_path / "copy", "native")
    assert result["check"]["largest_logit"] > 0
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (hybrid / "model.safetensors").read_bytes()
    assert read_native(tmp_path / "copy").trained_on == {"left_out": None}
    with pytest.raises(ConversionError, match="Vortex holds isotropic models, and this one is of kind hyena_blt"):
        run(hybrid, tmp_path / "out", "vortex")


def test_exports_are_checked_too(tmp_path: Path, native: Path, hybrid: Path) -> None:
    pytest.importorskip("transformers")
    for source in (native, hybrid):
        result = run(source, tmp_path / f"{source.name}-exported", "transformers")
        assert result["check"]["largest_difference"] <= 1e-5 * result["check"]["largest_logit"]
        assert "conversion" in json.loads((tmp_path / f"{source.name}-exported" / MANIFEST).read_text())


def test_what_is_asked_for_makes_no_sense(tmp_path: Path, native: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConversionError, match="--from megatron: there is no such format; choose from native"):
        run(native, out, "native", "megatron")
    with pytest.raises(ConversionError, match=r"--to deepspeed: .*; to train on with DeepSpeed, convert to native"):
        run(native, out, "deepspeed")
    with pytest.raises(ConversionError, match=r"a=1: native holds its configuration; leave this out"):
        run(native, out, "native", settings=("a=1",))
    with pytest.raises(
        ConversionError, match="nothing else can change: convert to native for --into or --window-bases"
    ):
        run(native, out, "deepspeed", "deepspeed", window_bases=512)
    with pytest.raises(ConversionError, match="out lies in the source: give a target beside it"):
        run(native, native / "out", "vortex")
    with pytest.raises(ConversionError, match="nowhere: no such file or folder"):
        run(tmp_path / "nowhere", out, "native")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match="is of no known format: give --from native, deepspeed, savanna"):
        run(tmp_path / "empty", out, "native")
    (tmp_path / "empty" / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    assert detect_format(tmp_path / "empty") == "deepspeed"
    assert run(native, tmp_path / "made" / "below", "native")["to"] == "native"


def test_a_target_that_is_there_is_not_touched(tmp_path: Path, native: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run(native, out, "vortex", check=False)
    before = sorted(path.name for path in out.iterdir())
    with pytest.raises(ConversionError, match="out is there already: give another target, or remove it first"):
        run(native, out, "savanna")
    assert sorted(path.name for path in out.iterdir()) == before
    with pytest.raises(ConversionError, match="is there already"):
        run(native, out / "model.pt", "savanna")


def test_nothing_is_left_of_a_target_that_fails(tmp_path: Path, native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in tmp_path.iterdir())
    for module, to in (("savanna", "savanna"), ("vortex", "vortex")):
        monkeypatch.setattr(f"hyena_blt_savanna.conversion.{module}.write_torch", full)
        with pytest.raises(ConversionError, match=r"could not be written: .*No space left .*; nothing of it is left"):
            run(native, tmp_path / "out", to)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_target_that_is_a_link_is_written_where_it_points_to(tmp_path: Path, native: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "empty").mkdir()
    for name, place in (("dangling", "none yet"), ("linked", "empty")):
        link = tmp_path / name
        link.symlink_to(tmp_path / "elsewhere" / place)
        run(native, link, "vortex")
        assert link.is_symlink()
        verify(tmp_path / "elsewhere" / place)
    assert sorted(file.name for file in (tmp_path / "elsewhere").iterdir()) == ["empty", "none yet"]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_norms_that_change_the_logits_too_much_are_named(tmp_path: Path) -> None:
    stack = {"width": 16, "blocks": ["hyena_se"], "norm": {"epsilon": 1e-2, "epsilon_inside_root": True}}
    config = IsotropicConfig.parse({"stack": stack})
    torch.manual_seed(0)
    tensors = {name: lazy(tensor) for name, tensor in config.build().state_dict().items()}
    save_pretrained(tmp_path / "native", tensors, config, None, 512)
    with pytest.raises(
        ConversionError, match=r"vortex adds epsilon outside the root .*: this alone changes its logits"
    ):
        run(tmp_path / "native", tmp_path / "vortex", "vortex")
    assert not (tmp_path / "vortex").exists()
    run(tmp_path / "native", tmp_path / "vortex", "vortex", check=False)


def test_weights_that_are_wrong_are_not_put_down_to_norms(
    tmp_path: Path, native: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = read_native_weights(native)
    assert isinstance(weights.config, IsotropicConfig)
    norm = weights.config.stack.norm.model_copy(update={"epsilon_inside_root": True})
    config = weights.config.model_copy(update={"stack": weights.config.stack.model_copy(update={"norm": norm})})
    save_pretrained(tmp_path / "inside", weights.tensors, config, None, 256)
    to_vortex = vortex.to_vortex

    def wrong(weights: ModelWeights) -> dict[str, LazyTensor]:
        state = to_vortex(weights)
        return {**state, "norm.scale": state["norm.scale"].map(lambda scale: 1.5 * scale)}

    monkeypatch.setattr(vortex, "to_vortex", wrong)
    with pytest.raises(ConversionError, match="the conversion is wrong"):
        run(tmp_path / "inside", tmp_path / "vortex", "vortex")


def test_broken_native_checkpoints(tmp_path: Path, native: Path) -> None:
    config = yaml.safe_load((native / "config.yaml").read_text())
    config["stack"]["mlp"]["width"] = 180
    module = read_native(native).module
    save_pretrained(tmp_path / "other", module.state_dict(), IsotropicConfig.parse(config), None)
    with pytest.raises(ConversionError, match=r"12 weight\(s\) don't fit the configuration"):
        run(tmp_path / "other", tmp_path / "out", "savanna")
    with (native / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r"model.safetensors has 1,000 bytes instead of"):
        run(native, tmp_path / "out", "savanna", "native")


def test_the_tool(
    tmp_path: Path, savanna_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(savanna_folder / "configs")
    specification = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
    assert specification is not None
    assert specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    asked = ["tool", "--to", "vortex", str(savanna_folder), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", asked)
    assert tool.main() == 1
    printed = capsys.readouterr()
    assert "the weights alone don't tell 5 thing(s)" in printed.err
    assert printed.out == ""
    keys = ["rms_norm_epsilon=1e-6", "parallel_glu_activation_default=null", "interleave_projections=true"]
    monkeypatch.setattr(sys, "argv", [*asked, *keys, "--no-check", "hyena_mr_len=128", "pos_emb=rotary"])
    assert tool.main() == 0
    assert json.loads(capsys.readouterr().out)["check"] is None
    assert (tmp_path / "out" / "model.yml").exists()
