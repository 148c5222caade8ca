"""Savanna's checkpoints, against weights and logits recorded from Savanna itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hyena_blt_savanna.conversion import savanna
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights
from hyena_blt_savanna.evaluation.tensor_files import lazy
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.testing.foreign_checkpoints import write_savanna

ASKED_FOR = (
    "rms_norm_epsilon=1e-6",
    "parallel_glu_activation_default=null",
    "interleave_projections=true",
    "hyena_mr_len=128",
    "pos_emb=rotary",
)
# SAVANNA's tools/7b/conversion/params.py: the dimension that tensor parallelism cuts; all else is on every rank.
CUT = {
    0: r"word_embeddings|dense_projection|short_conv_weight|conv_bias|filter\.(h|decay|gamma|R|p)$|mlp\.w[12]",
    1: r"mixer\.dense\.weight|mlp\.w3",
}


def logits(weights: ModelWeights, tokens: Tensor) -> Tensor:
    model = weights.config.build()  # type: ignore[attr-defined]
    model.load_state_dict({name: tensor.load() for name, tensor in weights.tensors.items()})
    with torch.inference_mode():
        return model(tokens)


def agree(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).abs().max() / theirs.abs().max()) <= 1e-5


def cut(name: str, tensor: Tensor, num_ranks: int, contiguous_thirds: bool = False) -> list[Tensor]:
    for dim, pattern in CUT.items():
        if re.search(pattern, name):
            if contiguous_thirds and re.search(r"dense_projection|hyena_proj_conv", name):
                thirds = [third.chunk(num_ranks) for third in tensor.chunk(3)]
                return [torch.cat([third[rank] for third in thirds]) for rank in range(num_ranks)]
            return [part.clone() for part in tensor.chunk(num_ranks, dim)]
    return [tensor] * num_ranks


def ranks_of(module: dict[str, Tensor], num_ranks: int, attention: str = "sequential.5.", **options: Any) -> list[Any]:
    parts = {
        name: cut(name, tensor, num_ranks, **({} if name.startswith(attention) else options))
        for name, tensor in module.items()
    }
    return [{name: part[rank] for name, part in parts.items()} for rank in range(num_ranks)]


def test_logits_are_savannas(savanna_folder: Path, backbone: dict[str, Tensor]) -> None:
    weights = savanna.read(savanna_folder)
    assert agree(logits(weights, backbone["tokens"]), backbone["logits"])
    assert weights.window_bases == 256
    assert weights.notes == ("taps of hyena_mr beyond the first 128, which are never read, were left out",)


def test_the_architecture_is_inferred_as_far_as_it_can_be(
    tmp_path: Path, savanna_folder: Path, savanna_module: dict[str, Tensor]
) -> None:
    bare = write_savanna(tmp_path / "bare", [savanna_module], None)
    with pytest.raises(ConversionError) as error:
        savanna.read(bare)
    asked = [line.split("=")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert asked == [
        given.split("=")[0] for given in sorted(ASKED_FOR, key=lambda given: asked.index(given.split("=")[0]))
    ]
    inferred = savanna.read(bare, ASKED_FOR)
    assert inferred.config == savanna.read(savanna_folder).config
    assert inferred.window_bases == 256
    with pytest.raises(
        ConversionError, match=r"don't tell 1 thing\(s\)[\s\S]*rotary_emb_scaling_factor=... such as 128"
    ):
        savanna.read(bare, [*ASKED_FOR, "pos_emb=rotary_linear_scaled"])


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_are_put_together(
    tmp_path: Path,
    num_ranks: int,
    savanna_folder: Path,
    savanna_module: dict[str, Tensor],
    savanna_settings: dict[str, Any],
) -> None:
    modules = ranks_of(savanna_module, num_ranks)
    folder = write_savanna(tmp_path / "ranks", modules, {**savanna_settings, "model_parallel_size": num_ranks})
    one, several = savanna.read(savanna_folder), savanna.read(folder)
    assert several.config == one.config
    assert all(torch.equal(several.tensors[name].load(), tensor.load()) for name, tensor in one.tensors.items())
    modules[1]["sequential.3.mixer.dense.bias"] = modules[1]["sequential.3.mixer.dense.bias"] + 1
    broken = savanna.read(write_savanna(folder, modules, None))
    with pytest.raises(ConversionError, match=r"sequential.3.mixer.dense.bias of rank 1 is not that of rank 0"):
        broken.tensors["stack.blocks.1.mixer.out_projection.bias"].load()
    for change in (lambda rank: None, lambda rank: {"sequential.3.mixer.dense.bias": torch.zeros(64).bfloat16()}):
        for rank in (0, 1):
            changed = [dict(module) for module in modules]
            del changed[rank]["sequential.3.mixer.dense.bias"]
            changed[rank] |= change(rank) or {}
            with pytest.raises(ConversionError, match=r"sequential.3.mixer.dense.bias is not on all ranks, or has"):
                savanna.read(write_savanna(folder, changed, None))


def test_ranks_whose_thirds_lie_one_after_the_other(
    tmp_path: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    settings = {**savanna_settings, "interleave_projections": False}
    one = savanna.read(write_savanna(tmp_path / "one", [savanna_module], settings))
    modules = ranks_of(savanna_module, 2, contiguous_thirds=True)
    two = savanna.read(write_savanna(tmp_path / "two", modules, settings))
    assert isinstance(two.config, IsotropicConfig)
    assert not two.config.stack.hyena.interleaved_projection
    assert all(torch.equal(two.tensors[name].load(), tensor.load()) for name, tensor in one.tensors.items())


def test_what_is_written_is_what_savanna_saves(
    tmp_path: Path, savanna_folder: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    weights = savanna.read(savanna_folder)
    out = tmp_path / "out"
    out.mkdir()
    assert savanna.write(weights, out) == []
    folder = out / (out / "latest").read_text()
    module = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert set(module) == set(savanna_module)
    for name, theirs in savanna_module.items():
        ours = module[name]
        # Savanna's fast kernel for the projections' convolution, which its production runs used, has no middle axis.
        assert ours.shape == (theirs[:, 0].shape if "hyena_proj_conv" in name else theirs.shape), name
        if "post_attention" in name or "outer_mlp" in name:
            assert torch.equal(ours, torch.ones(64))  # never read
        elif name.endswith("filter.h"):
            assert torch.equal(ours[:, :128], theirs[:, :128])
            assert not ours[:, 128:].any()
        elif name.endswith("filter.decay"):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        else:
            assert torch.equal(ours.reshape(theirs.shape), theirs), name
    written = yaml.safe_load((folder / "configs" / "model.yml").read_text())
    plain = {key.replace("-", "_"): value for key, value in written.items()}
    plain["operator_config"] = [name for names, times in plain["operator_config"] for name in names * times]
    differing = {key for key, value in plain.items() if savanna_settings.get(key, value) != value}
    assert differing == {"fast_conv_proj"}
    again = savanna.read(out)
    assert again.config == weights.config
    assert all(torch.equal(again.tensors[name].load(), tensor.load()) for name, tensor in weights.tensors.items())


CONFIGS = {
    "defaults": {"width": 24, "num_heads": 2, "blocks": ["hyena_se", "attention"]},
    "all": {
        "width": 24,
        "num_heads": 2,
        "blocks": ["attention", "hyena_li", "hyena_mr", "hyena_se"],
        "hyena": {"mr_taps": 5, "mr_groups": 4, "mr_decay": "strong", "mr_decay_length": 100, "mr_decay_repeats": 2,
                  "se_taps": 4, "se_groups": 3, "li_groups": 6, "li_order": 3, "featurizer_taps": 2},
        "attention": {"rotary": {"base": 1e11, "position_scale": 128}},
        "mlp": {"width": 80, "activation": "silu"},
        "norm": {"epsilon": 1e-5, "epsilon_inside_root": False},
    },
    "no decay": {"width": 8, "blocks": ["hyena_mr"], "hyena": {"mr_decay": "none", "mr_taps": 128}},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_there_and_back_gives_the_same_model(tmp_path: Path, name: str) -> None:
    config = IsotropicConfig.parse({"stack": CONFIGS[name], "head": "untied" if name == "all" else "tied"})
    torch.manual_seed(0)
    state = config.build().bfloat16().state_dict()
    weights = ModelWeights(config, {key: lazy(tensor) for key, tensor in state.items()}, window_bases=300)
    savanna.write(weights, tmp_path)
    back = savanna.read(tmp_path)
    assert back.config == config
    assert back.window_bases == 300
    assert list(back.tensors) == list(state)
    for key, tensor in state.items():
        loaded = back.tensors[key].load()
        assert loaded.dtype == tensor.dtype
        assert torch.equal(loaded, tensor), key


def test_norms_of_transformer_engine(tmp_path: Path, savanna_module: dict[str, Tensor], savanna_settings: Any) -> None:
    module: dict[str, Any] = {
        re.sub(r"(layernorm|sequential\.7\.norm)\.scale", r"\1.weight", name): tensor
        for name, tensor in savanna_module.items()
    }
    module |= {f"sequential.{layer}.mixer.dense._extra_state": b"fp8" for layer in (2, 3)}
    weights = savanna.read(write_savanna(tmp_path, [module], {**savanna_settings, "use_fp8_norm": True}))
    assert isinstance(weights.config, IsotropicConfig)
    assert weights.config.stack.norm.epsilon_inside_root
    assert "2 entries of TransformerEngine's fp8 state (_extra_state) were left out" in weights.notes
    (tmp_path / "out").mkdir()
    savanna.write(weights, tmp_path / "out")
    written = torch.load(tmp_path / "out" / "global_step0" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert {name for name in written if "norm" in name} == {name for name in module if "norm" in name}


def test_a_decay_grid_of_an_earlier_window_is_kept(
    tmp_path: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    # Savanna's tools for a longer context fill grid and taps up with zeros.
    module = dict(savanna_module)
    for ending in ("h", "decay"):
        name = f"sequential.3.mixer.mixer.filter.{ending}"
        module[name] = torch.nn.functional.pad(module[name][:, :128], (0, 900 - 128))
    settings = {**savanna_settings, "seq_length": 900}
    weights = savanna.read(write_savanna(tmp_path, [module], settings))
    assert isinstance(weights.config, IsotropicConfig)
    assert weights.config.stack.hyena.mr_decay_length == 256
    assert weights.window_bases == 900
    assert any(
        "the decay grid of hyena_mr is that of a window of 256 bases, not of 900" in note for note in weights.notes
    )
    stored = module["sequential.3.mixer.mixer.filter.decay"][:, :128]
    assert torch.equal(weights.tensors["stack.blocks.1.mixer.operator.decay"].load(), stored)
    module["sequential.3.mixer.mixer.filter.decay"] = torch.rand(16, 900)
    weights = savanna.read(write_savanna(tmp_path, [module], settings))
    assert "the decay grid of hyena_mr follows none of the presets, and is kept as it is stored" in weights.notes


def test_padded_mlps_are_kept(
    tmp_path: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    pad = torch.nn.functional.pad
    module = {
        name: pad(tensor, (0, 0, 0, 16)) if re.search(r"mlp\.w[12]", name) else
        pad(tensor, (0, 16)) if "mlp.w3" in name else tensor
        for name, tensor in savanna_module.items()
    }  # fmt: skip
    padded = savanna.read(write_savanna(tmp_path / "a", [module], {**savanna_settings, "pad_mlp_weights": True}))
    assert isinstance(padded.config, IsotropicConfig)
    assert padded.config.stack.mlp.width == 192
    with pytest.raises(
        ConversionError, match=r"12 weight\(s\) don't fit.*\n.*w1.weight has shape \[192, 64\] instead of \[176"
    ):
        savanna.read(write_savanna(tmp_path / "b", [module], savanna_settings))


def test_all_differences_are_listed(
    tmp_path: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    module: dict[str, Any] = dict(savanna_module)
    module["sequential.2.mlp.w1.wieght"] = module.pop("sequential.2.mlp.w1.weight")
    module["sequential.3.mixer.mixer.conv_bias"] = torch.zeros(63)
    module["sequential.4.mixer.hyena_proj_conv.short_conv_weight"] = torch.zeros(3)
    module["surplus"] = torch.zeros(1)
    with pytest.raises(ConversionError) as error:
        savanna.read(write_savanna(tmp_path / "a", [module], savanna_settings), ["hyena_filter_order=8"])
    text = str(error.value)
    assert "sequential.2.mlp.w1.weight is missing; nearest that is there: sequential.2.mlp.w1.wieght" in text
    assert "surplus is no weight of this model" in text
    assert "sequential.3.mixer.mixer.conv_bias has shape [63] instead of [64]" in text
    assert "short_conv_weight has shape [3] instead of [192, 3]" in text
    assert "sequential.4.mixer.mixer.filter.gamma has shape [64, 16] instead of [64, 8]" in text
    module["surplus"] = "text"
    with pytest.raises(ConversionError, match="these weights are no tensors: surplus"):
        savanna.read(write_savanna(tmp_path / "a", [module], savanna_settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_cgcg": True}, r"use_cgcg is True; only False is converted"),
        ({"pos_emb": "rotary_ntk_scaled"}, r"pos_emb is 'rotary_ntk_scaled'; only 'rotary' or 'rotary_linear_scaled'"),
        ({"pre_mlp_norm": None}, r"pre_mlp_norm is None; only True"),
        ({"hyena_filter_cls": "implicit"}, r"hyena_filter_cls is 'implicit'; only 'implicit_modal'"),
        ({"activation": "relu"}, r"activation is 'relu'; only 'gelu'"),
        (
            {"parallel_glu_activation_default": "mish"},
            r"parallel_glu_activation_default is 'mish'; what is converted: null",
        ),
        ({"operator_config": [[["hyena_v2"], 4]]}, r"operator_config has hyena_v2; what is converted: hyena_se"),
        ({"gating_act": "silu"}, r"gating_act is 'silu'; only 'identity'"),
        ({"operator_config": 4}, r"operator_config is 4; it must be a list like"),
        ({"operator_config": [[["hyena"], "some"]]}, r"operator_config is .*; it must be a list like"),
        ({"num_layers": "4", "hidden_size": True}, r"whole numbers above 0: num_layers: '4', hidden_size: True"),
        ({"operator_config": [[["hyena_se", "hyena"], 1]]}, r"operator_config has 2 blocks and num_layers is 4"),
        ({"num_attention_heads": 3}, r"num_heads = 3 does not cut width = 64"),
    ],
)
def test_other_models_are_refused(
    savanna_folder: Path, changes: dict[str, Any], message: str, savanna_settings: Any
) -> None:
    (savanna_folder / "configs" / "model.yml").write_text(yaml.safe_dump({**savanna_settings, **changes}))
    with pytest.raises(ConversionError, match=message):
        savanna.read(savanna_folder)


def test_keys_with_hyphens_and_patterns_of_operators(savanna_folder: Path, savanna_settings: dict[str, Any]) -> None:
    plain = savanna.read(savanna_folder).config
    settings = {key.replace("_", "-"): value for key, value in savanna_settings.items()}
    settings["operator-config"] = [[["hyena_se", "hyena_mr"], 1], [["hyena", "flash_te"], 1]]
    (savanna_folder / "configs" / "model.yml").write_text(yaml.safe_dump(settings))
    assert savanna.read(savanna_folder).config == plain
    del settings["operator-config"]
    (savanna_folder / "configs" / "model.yml").write_text(yaml.safe_dump(settings))
    assert savanna.read(savanna_folder).config == plain  # told by the weights


def test_yaml_files_are_read_as_loosely_as_upstream_reads_them(savanna_folder: Path) -> None:
    plain = savanna.read(savanna_folder).config
    path = savanna_folder / "configs" / "model.yml"
    # The published configurations have keys twice, which Savanna takes the last of, and flow mappings.
    path.write_text("short_conv_L: 9\n" + path.read_text())
    assert savanna.read(savanna_folder).config == plain
    more = savanna_folder / "more.yml"
    with pytest.raises(ConversionError, match=r"more.yml: no such file"):
        savanna.read(savanna_folder, [str(more)])
    more.write_text("{'rms_norm_epsilon': 1e-5, 'seq_length': 300}")
    weights = savanna.read(savanna_folder, [str(more), "seq-length=500"])
    assert isinstance(weights.config, IsotropicConfig)
    assert weights.config.stack.norm.epsilon == 1e-5
    assert weights.window_bases == 500
    for text, message in (("[1]", "must hold a mapping"), ("{", "not a YAML file")):
        more.write_text(text)
        with pytest.raises(ConversionError, match=message):
            savanna.read(savanna_folder, [str(more)])
    with pytest.raises(ConversionError, match="a value that is not YAML"):
        savanna.read(savanna_folder, ["rotary_emb_base=[1"])


def test_missing_ranks_mixed_steps_and_other_layouts(
    tmp_path: Path, savanna_module: Any, savanna_settings: Any
) -> None:
    modules = ranks_of(savanna_module, 4)
    save = tmp_path / "save"
    folder = write_savanna(save / "global_step7", modules, savanna_settings)
    (folder / "mp_rank_02_model_states.pt").unlink()
    with pytest.raises(ConversionError, match=r"lacks mp_rank_02_model_states.pt of 4 ranks"):
        savanna.read(save)
    (folder / "mp_rank_03_model_states.pt").unlink()
    with pytest.raises(ConversionError, match=r"lacks mp_rank_02_model_states.pt, mp_rank_03_model_states.pt of 4"):
        savanna.read(folder / "mp_rank_00_model_states.pt")
    write_savanna(folder, modules, None)
    torch.save({"module": modules[1], "iteration": 8}, folder / "mp_rank_01_model_states.pt")
    with pytest.raises(ConversionError, match=r"different global steps .*_01_model_states.pt: 8"):
        savanna.read(folder)
    torch.save({"weights": 1}, folder / "mp_rank_01_model_states.pt")
    with pytest.raises(ConversionError, match=r"mp_rank_01_model_states.pt has no entry 'module'"):
        savanna.read(folder)
    (save / "global_step8").mkdir()
    with pytest.raises(
        ConversionError, match=r"several checkpoints \(global_step7, global_step8\) and no file 'latest'"
    ):
        savanna.read(save)
    for name, called in (("global_step9\n", "global_step9"), ("", "nothing"), (".", r"\."), ("../save", "../save")):
        (save / "latest").write_text(name)
        with pytest.raises(ConversionError, match=rf"latest names {called}, which is not there"):
            savanna.read(save)
    with pytest.raises(ConversionError, match="no such folder"):
        savanna.read(tmp_path / "nowhere")
    with pytest.raises(ConversionError, match=r"global_step8 has no mp_rank_00_model_states.pt"):
        savanna.read(save / "global_step8")
    (save / "global_step8" / "layer_00-model_00-model_states.pt").touch()
    with pytest.raises(ConversionError, match="pipeline stages or ZeRO 3"):
        savanna.read(save / "global_step8")


def test_what_savanna_has_no_place_for(tmp_path: Path) -> None:
    def write(**tree: Any) -> list[str]:
        config = IsotropicConfig.parse({"stack": {"width": 8, "num_heads": 2, "blocks": ["attention"]}, **tree})
        state = {name: lazy(tensor) for name, tensor in config.build().state_dict().items()}
        return savanna.write(ModelWeights(config, state), tmp_path)

    with pytest.raises(
        ConversionError, match=r"Savanna has no place for tables of k-mers \(kmers\); for a head of the scored"
    ):
        write(kmers={"sizes": [2]}, head="scored")
    stack = {"width": 8, "num_heads": 2, "blocks": ["attention", "hyena_implicit"], "final_norm": False}
    with pytest.raises(ConversionError, match=r"blocks of kind hyena_implicit .*; for a stack without a final norm"):
        write(stack=stack)
    with pytest.raises(ConversionError, match="attention within a window"):
        write(stack={"width": 8, "blocks": ["attention"], "attention": {"window": 5}})
    with pytest.raises(ConversionError, match=r"stack.mlp.width 16 is less than 8/3 of the width 8"):
        write(stack={"width": 8, "blocks": ["hyena_se"], "mlp": {"width": 16}})
    notes = write(stack={"width": 8, "blocks": ["hyena_se"], "hyena": {"output_bias": False}})
    assert notes == ["1 output projections without a bias have one of zeros"]


def test_a_head_of_its_own_is_cut_by_columns_or_rows(
    tmp_path: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    head = torch.randn(512, 64)
    settings = {**savanna_settings, "no_weight_tying": True}
    for dim in (0, 1):
        modules = ranks_of(savanna_module, 2)
        for rank, part in enumerate(head.chunk(2, dim)):
            modules[rank]["sequential.8.final_linear.weight"] = part.clone()
        weights = savanna.read(write_savanna(tmp_path / str(dim), modules, settings))
        assert torch.equal(weights.tensors["head.weight"].load(), head)
    (tmp_path / "out").mkdir()
    savanna.write(weights, tmp_path / "out")
    written = yaml.safe_load((tmp_path / "out" / "global_step0" / "configs" / "model.yml").read_text())
    # Savanna asserts so when it builds the head; its default is "row".
    assert written["output_layer_parallelism"] == "column"


def test_the_stored_frequencies_are_taken_before_the_configuration(
    tmp_path: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    # Savanna's buffers are loaded with the weights, whatever base it is configured for.
    name, settings = "sequential.5.mixer.rotary_emb.inv_freq", {**savanna_settings, "rotary_emb_base": 5000}
    weights = savanna.read(write_savanna(tmp_path / "a", [savanna_module], settings))
    assert isinstance(weights.config, IsotropicConfig)
    assert weights.config.stack.attention.rotary.base == 10_000
    assert (
        "the rotary base is 10000, that of the stored frequencies, and not 5000 of the configuration" in weights.notes
    )
    # Of rounded frequencies, two digits of the base are left.
    rounded = {**savanna_module, name: savanna_module[name].bfloat16()}
    weights = savanna.read(write_savanna(tmp_path / "b", [rounded], None), ASKED_FOR)
    assert isinstance(weights.config, IsotropicConfig)
    assert weights.config.stack.attention.rotary.base == 10_000
    several = {**savanna_module, "sequential.9.mixer.rotary_emb.inv_freq": torch.ones(8)}
    with pytest.raises(ConversionError, match=r"sequential.5.*, sequential.9.mixer.rotary_emb.inv_freq are not the sa"):
        savanna.read(write_savanna(tmp_path / "c", [several], settings))


def test_short_filters_without_a_middle_axis(
    savanna_folder: Path, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    # So Savanna's fast kernel for them (fast_conv_mixer) has them.
    name, ours = "sequential.2.mixer.mixer.short_conv.short_conv_weight", "stack.blocks.0.mixer.operator.taps"
    before = savanna.read(savanna_folder).tensors[ours].load()
    module = {**savanna_module, name: savanna_module[name][:, 0]}
    assert torch.equal(
        savanna.read(write_savanna(savanna_folder, [module], savanna_settings)).tensors[ours].load(), before
    )


@pytest.mark.parametrize("size", [(), (3,)])
@pytest.mark.parametrize(
    "ending", ["word_embeddings.weight", "mlp.w1.weight", "mlp.w3.weight", "filter.h", "filter.decay", "filter.gamma"]
)
def test_weights_of_other_dimensions_are_listed(
    tmp_path: Path, size: Any, ending: str, savanna_module: dict[str, Tensor], savanna_settings: dict[str, Any]
) -> None:
    name = next(name for name in savanna_module if name.endswith(ending))
    modules = ranks_of(savanna_module, 2)
    for module in modules:
        module[name] = torch.zeros(size)
        module["elsewhere.mixer.surplus"] = torch.zeros(2, 2)
    with pytest.raises(ConversionError) as error:
        savanna.read(write_savanna(tmp_path, modules, savanna_settings, args=None))
    assert f"{name} has shape" in str(error.value)
    assert "elsewhere.mixer.surplus is no weight of this model" in str(error.value)
