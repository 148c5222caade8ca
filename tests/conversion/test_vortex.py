"""The inference layout of Evo 2, against what upstream's converter made and Vortex computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hyena_blt_savanna.conversion import savanna
from hyena_blt_savanna.conversion.vortex import read, write
from hyena_blt_savanna.conversion.weights import ConversionError, ModelWeights
from hyena_blt_savanna.evaluation.tensor_files import lazy
from hyena_blt_savanna.model.isotropic import IsotropicConfig


def logits(weights: ModelWeights, tokens: Tensor) -> Tensor:
    model = weights.config.build()  # type: ignore[attr-defined]
    model.load_state_dict({name: tensor.load() for name, tensor in weights.tensors.items()})
    with torch.inference_mode():
        return model(tokens)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_logits_are_vortexs(vortex_folder: Path, vortex: dict[str, Tensor]) -> None:
    weights = read(vortex_folder)
    assert relative_error(logits(weights, vortex["tokens"]), vortex["logits"]) <= 1e-5
    assert weights.window_bases == 2048
    assert weights.notes == ("3 entries of TransformerEngine's fp8 state (_extra_state) were left out",)
    assert isinstance(weights.config, IsotropicConfig)
    assert weights.config.stack.hyena.mr_decay == "none"


def test_what_is_written_is_what_upstreams_converter_writes(
    tmp_path: Path, savanna_folder: Path, vortex_state: dict[str, Tensor], vortex_settings: dict[str, Any]
) -> None:
    (tmp_path / "out").mkdir()
    assert write(savanna.read(savanna_folder), tmp_path / "out") == [
        "hyena_mr: the decay (weak over 256 bases) is multiplied into the 128 taps (filter.h)",
        "hyena_li: log_rate and log_step are merged into poles (filter.log_poles)",
    ]
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    # Its converter lets a buffer of Savanna's through, which Vortex ignores.
    assert set(vortex_state) - set(state) == {"blocks.2.mixer.mixer.filter.t"}
    assert not set(state) - set(vortex_state)
    for name, tensor in state.items():
        assert tensor.shape == vortex_state[name].shape, name
        assert relative_error(tensor, vortex_state[name]) <= 1e-6, name
    written = yaml.safe_load((tmp_path / "out" / "model.yml").read_text())
    said = {key: value for key, value in vortex_settings.items() if not key.endswith("dtype")}
    differing = {key for key, value in said.items() if written.get(key) != value}
    assert differing == {"model_name", "max_seqlen", "use_flash_attn"}


def test_there_and_back_gives_the_same_logits(
    tmp_path: Path, savanna_folder: Path, backbone: dict[str, Tensor]
) -> None:
    weights = savanna.read(savanna_folder)
    write(weights, tmp_path)
    back = read(tmp_path / "model.pt")
    before, after = logits(weights, backbone["tokens"]), logits(back, backbone["tokens"])
    assert relative_error(after, before) <= 1e-5
    assert back.window_bases == 256
    (tmp_path / "again").mkdir()
    assert write(back, tmp_path / "again") == [
        "hyena_li: log_rate and log_step are merged into poles (filter.log_poles)"
    ]
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path, tmp_path / "again"))
    assert all(relative_error(second[name], tensor) <= 1e-6 for name, tensor in first.items())


CONFIGS = {
    "shared filters": {"width": 12, "blocks": ["hyena_se", "hyena_li", "hyena_mr"],
                       "hyena": {"li_groups": 4, "mr_groups": 3, "se_groups": 2, "interleaved_projection": True,
                                 "mr_decay_length": 300},
                       "mlp": {"activation": "gelu_until_long"}, "norm": {"epsilon_inside_root": False}},
    "no biases": {"width": 12, "num_heads": 2, "blocks": ["attention", "hyena_se"], "hyena": {"output_bias": False},
                  "attention": {"output_bias": False, "rotary": {"base": 1e11, "position_scale": 128}},
                  "mlp": {"activation": "silu", "width": 20}, "norm": {"epsilon_inside_root": False}},
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_other_models_there_and_back(tmp_path: Path, name: str) -> None:
    head = "untied" if name == "no biases" else "tied"
    config = IsotropicConfig.parse({"stack": CONFIGS[name], "head": head})
    torch.manual_seed(0)
    state = config.build().state_dict()
    weights = ModelWeights(config, {key: lazy(tensor) for key, tensor in state.items()}, trained_on={"left_out": None})
    notes = write(weights, tmp_path)
    assert "the digest of the training data (trained_on)" in notes
    assert ("hyena_li: each of the 4 filters is repeated for its channels (li_groups)" in notes) == (head == "tied")
    back = read(tmp_path)
    tokens = torch.randint(0, 512, (1, 200))
    assert relative_error(logits(back, tokens), logits(weights, tokens)) <= 1e-5
    if name == "no biases":
        assert back.config == config


def test_norms_lose_where_epsilon_stands(tmp_path: Path) -> None:
    config = IsotropicConfig.parse({"stack": {"width": 8, "blocks": ["hyena_se"]}})
    weights = ModelWeights(config, {name: lazy(tensor) for name, tensor in config.build().state_dict().items()})
    assert any("epsilon outside the root (norm.epsilon_inside_root)" in note for note in write(weights, tmp_path))


def test_the_stored_frequencies_are_taken_before_the_configuration(
    tmp_path: Path, vortex_state: dict[str, Tensor], vortex_settings: dict[str, Any]
) -> None:
    # evo2-7b-1m.yml says 10000 where the weights were trained with 1e11.
    exponents = torch.arange(0, 16, 2) / 16
    name = "blocks.3.inner_mha_cls.rotary_emb.inv_freq"
    (tmp_path / "tiny.yml").write_text(yaml.safe_dump(vortex_settings))
    note = "the rotary base is 1e+11, that of the stored frequencies, and not 10000 of the configuration"
    # Vortex makes its buffers fp32 before it loads, so that rounded frequencies are taken too.
    for dtype in (torch.float32, torch.bfloat16):
        for base in (1e11, 1e4):
            torch.save({**vortex_state, name: (base**-exponents).to(dtype)}, tmp_path / "tiny.pt")
            weights = read(tmp_path)
            assert isinstance(weights.config, IsotropicConfig)
            assert weights.config.stack.attention.rotary.base == base
            assert (note in weights.notes) == (base == 1e11)
    scaled = read(tmp_path, ["use_interpolated_rotary_pos_emb=true", "rotary_emb_scaling_factor=128"]).config
    assert isinstance(scaled, IsotropicConfig)
    assert scaled.stack.attention.rotary.position_scale == 128


def test_weights_that_do_not_fit(vortex_folder: Path, vortex_state: dict[str, Tensor]) -> None:
    state = dict(vortex_state)
    state["blocks.2.filter.log_pole"] = state.pop("blocks.2.filter.log_poles")
    state["blocks.1.filter.h"] = state["blocks.1.filter.h"][:, :, :64]
    torch.save(state, vortex_folder / "tiny.pt")
    with pytest.raises(ConversionError) as error:
        read(vortex_folder)
    text = str(error.value)
    assert "blocks.2.filter.log_poles is missing; nearest that is there: blocks.2.filter.log_pole" in text
    assert "blocks.1.filter.h has shape [16, 1, 64] instead of [16, 1, 128]" in text
    torch.save({"module": vortex_state}, vortex_folder / "tiny.pt")
    read(vortex_folder)
    torch.save({**vortex_state, "blocks.2.filter.log_poles": torch.ones(64, 16, 1)}, vortex_folder / "tiny.pt")
    with pytest.raises(ConversionError, match=r"blocks.2.filter.log_poles has values above 0"):
        read(vortex_folder).tensors["stack.blocks.2.mixer.operator.log_step"].load()
    torch.save({"a": 1}, vortex_folder / "tiny.pt")
    with pytest.raises(ConversionError, match=r"has no embedding_layer.weight"):
        read(vortex_folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("hyena_flip_x1x2=true", "hyena_flip_x1x2 is True; only False is converted"),
        ("short_filter_bias=true", "short_filter_bias is True"),
        ("mlp_activation=relu", "only 'gelu' or 'silu' is converted"),
        ("mlp_activation=silu", "evo2_style_activations with mlp_activation 'silu'"),
        ("hcm_layer_idxs=[1, 2]", "must name each of the 4 layers"),
        ("num_attention_heads=3", "num_heads = 3 does not cut"),
    ],
)
def test_other_configurations_are_refused(vortex_folder: Path, settings: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        read(vortex_folder, [settings])


def test_files_that_are_missing(vortex_folder: Path) -> None:
    settings = (vortex_folder / "tiny.yml").rename(vortex_folder.parent / "given.yml")
    read(vortex_folder / "tiny.pt", [str(settings)])
    with pytest.raises(ConversionError, match=r"its configuration lacks hidden_size, num_layers, .*give the YAML file"):
        read(vortex_folder)
    (vortex_folder / "b.pt").touch()
    with pytest.raises(ConversionError, match=r"should hold one .pt file of weights, and has: b.pt, tiny.pt"):
        read(vortex_folder)


def test_what_vortex_has_no_place_for(tmp_path: Path) -> None:
    def write_stack(**stack: Any) -> None:
        config = IsotropicConfig.parse({"stack": {"width": 8, **stack}})
        state = {name: lazy(tensor) for name, tensor in config.build().state_dict().items()}
        write(ModelWeights(config, state), tmp_path)

    with pytest.raises(
        ConversionError, match=r"mr_taps is 127: Vortex reads filters of less than 128 taps in the other"
    ):
        write_stack(blocks=["hyena_mr"], hyena={"mr_taps": 127})
    with pytest.raises(
        ConversionError, match=r"se_taps is 128: Vortex reads filters of 128 taps and more as hyena_mr's"
    ):
        write_stack(blocks=["hyena_se"], hyena={"se_taps": 128})
    for activation, blocks in (("identity", ["hyena_se"]), ("gelu_until_long", ["hyena_se", "hyena_se", "hyena_mr"])):
        with pytest.raises(ConversionError, match=rf"stack.mlp.activation is {activation}: Vortex has"):
            write_stack(blocks=blocks, mlp={"activation": activation})
    with pytest.raises(ConversionError, match="Vortex has no place for blocks of kind hyena_implicit"):
        write_stack(blocks=["hyena_implicit"])


def test_what_the_configuration_leaves_out_is_what_vortex_takes(
    tmp_path: Path, vortex_state: dict[str, Tensor], vortex_settings: dict[str, Any]
) -> None:
    def settings_without(*keys: str, **changes: Any) -> None:
        kept = {key: value for key, value in vortex_settings.items() if key not in keys}
        (tmp_path / "tiny.yml").write_text(yaml.safe_dump({**kept, **changes}))

    torch.save(vortex_state, tmp_path / "tiny.pt")
    # A key that isn't there is None to Vortex, whose default is written where it has one.
    settings_without("tie_embeddings")
    config = read(tmp_path).config
    assert isinstance(config, IsotropicConfig)
    assert config.head == "untied"
    settings_without("hyena_out_proj_bias")
    with pytest.raises(ConversionError, match=r"out_filter_dense.bias is no weight of this model"):
        read(tmp_path)
    settings_without(column_split=False)
    with pytest.raises(ConversionError, match="column_split is False; only True is converted"):
        read(tmp_path)
    settings_without(long_fir_threshold=64)
    with pytest.raises(ConversionError, match="long_fir_threshold is 64; only None is converted"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "64", "inner_mlp_size": 0}, r"whole numbers above 0: hidden_size: '64', inner_mlp_size: 0"),
        ({"num_layers": None}, "num_layers are empty: give numbers"),
        ({"attn_layer_idxs": 3}, "attn_layer_idxs is 3; it must be a list"),
        ({"attn_layer_idxs": ["3"]}, r"attn_layer_idxs is \['3'\]; it must be a list"),
    ],
)
def test_values_of_another_type_are_named(
    vortex_folder: Path, vortex_settings: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    (vortex_folder / "tiny.yml").write_text(yaml.safe_dump({**vortex_settings, **changes}))
    with pytest.raises(ConversionError, match=message):
        read(vortex_folder)


def test_several_configurations_are_not_mixed(vortex_folder: Path) -> None:
    (vortex_folder / "tiny.yml").rename(vortex_folder / "evo2-7b-1m.yml")
    assert read(vortex_folder).window_bases == 2048
    (vortex_folder / "evo2-7b-8k.yml").write_text("max_seqlen: 8192")
    with pytest.raises(ConversionError, match=r"several YAML files \(evo2-7b-1m.yml, evo2-7b-8k.yml\)"):
        read(vortex_folder)
