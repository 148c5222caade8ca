"""Outputs and gradients against values recorded from the public StripedHyena 2 code (tests/golden/stripedhyena2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hyena_blt_savanna.model.blocks import Block, build_mixer
from hyena_blt_savanna.model.decoding import Decoder
from hyena_blt_savanna.model.isotropic import Isotropic, IsotropicConfig
from hyena_blt_savanna.model.operators import HyenaLI, HyenaMR, HyenaSE
from hyena_blt_savanna.model.rotary import rotary_tables
from hyena_blt_savanna.model.stack import StackConfig
from hyena_blt_savanna.testing.context_ranks import ModuleCase, run_cases
from hyena_blt_savanna.testing.ranks import run_ranks

FOLDER = Path(__file__).parents[1] / "golden" / "stripedhyena2"
BLOCK_NAMES = {"hyena_se": "hyena_se", "hyena_mr": "hyena_mr", "hyena": "hyena_li", "flash_v2": "attention"}
OPERATORS = {"hyena_se": HyenaSE, "hyena_mr": HyenaMR, "hyena_li": HyenaLI}
TOLERANCE = 1e-5

# Upstream's name (its end) to ours; a longer ending comes before a shorter one that it contains.
PARAMETER_NAMES = {
    "dense_projection.weight": "in_projection.weight",
    "hyena_proj_conv.short_conv_weight": "featurizer.taps",
    "dense.weight": "out_projection.weight",
    "dense.bias": "out_projection.bias",
    "short_conv.short_conv_weight": "operator.taps",
    "conv_bias": "operator.skip",
    "filter.h": "operator.taps",
    "filter.gamma": "operator.log_step",
    "filter.p": "operator.log_rate",
    "filter.R": "operator.residues",
    "input_layernorm.scale": "mixer_norm.scale",
    "pre_mlp_layernorm.scale": "mlp_norm.scale",
    "mlp.w1.weight": "mlp.gate.weight",
    "mlp.w2.weight": "mlp.up.weight",
    "mlp.w3.weight": "mlp.down.weight",
    "word_embeddings.weight": "embedding.weight",
    "norm.scale": "norm.scale",
}


# Upstream builds these norms and never calls them; the case without gradients does not list them as unused.
UNREAD = ("post_attention_layernorm.scale", "outer_mlp_layernorm.scale")


class Golden:
    """One recorded case: its configuration in our words, its tensors, and its weights under our names."""

    def __init__(self, case: str) -> None:
        self.facts: dict[str, Any] = json.loads((FOLDER / f"{case}.json").read_text())
        self.tensors = load_file(FOLDER / f"{case}.safetensors")
        upstream = self.facts["config"]
        self.config = StackConfig.parse(
            {
                "width": upstream["hidden_size"],
                "num_heads": upstream["num_attention_heads"],
                "blocks": [BLOCK_NAMES[name] for name in upstream["operator_config"]],
                "hyena": {
                    "featurizer_taps": upstream["short_conv_L"],
                    "interleaved_projection": upstream["interleave_projections"],
                    "se_taps": upstream["hyena_se_len"],
                    "se_groups": upstream["num_groups_hyena_short"],
                    "mr_taps": upstream["hyena_mr_len"],
                    "mr_groups": upstream["num_groups_hyena_medium"],
                    "mr_decay": upstream["explicit_filter_decay_preset"],
                    "mr_decay_length": upstream["seq_length"],
                    "li_groups": upstream["num_groups_hyena"],
                    "li_order": upstream["hyena_filter_order"],
                },
                "attention": {
                    "rotary": {
                        "base": upstream["rotary_emb_base"],
                        "position_scale": upstream["rotary_emb_scaling_factor"],
                    }
                },
                "mlp": {
                    "round_up_to": upstream["make_gated_mlp_multiple_of"],
                    "activation": upstream["parallel_glu_activation_default"] or "gelu_until_long",
                },
                "norm": {"epsilon": upstream["rms_norm_epsilon"], "epsilon_inside_root": False},
            }
        )

    def weights(self, prefix: str) -> dict[str, Tensor]:
        """Upstream's weights (prefix `param.`) or gradients (`grad.param.`) under our names, in our tap order."""
        found = {}
        for name, tensor in self.tensors.items():
            unread = name.endswith(UNREAD) or name.removeprefix(prefix) in self.facts["unused_params"]
            if name.startswith(prefix) and not unread:
                found[our_name(name.removeprefix(prefix))] = our_layout(name, tensor, self.config)
        return found

    def check(self, what: str, ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape, what
        error = float((ours - theirs).detach().abs().max() / theirs.abs().max())
        assert error <= TOLERANCE, f"{what}: {error:.2e} of the largest magnitude"

    def check_gradients(self, module: nn.Module) -> None:
        theirs = self.weights("grad.param.")
        ours = {name: weight.grad for name, weight in module.named_parameters()}
        assert set(ours) == set(theirs)
        for name, gradient in theirs.items():
            grad = ours[name]
            assert grad is not None
            self.check(f"gradient of {name}", grad, gradient)


def our_name(upstream: str) -> str:
    ending = next(ending for ending in PARAMETER_NAMES if ("." + upstream).endswith("." + ending))
    ours = PARAMETER_NAMES[ending]
    if not upstream.startswith("sequential."):
        # A case of an operator alone has no `mixer` in its names; a block's are those of its mixer (see `Prefixed`).
        return ours.removeprefix("operator.") if "mixer." not in upstream else ours
    if ours in ("embedding.weight", "norm.scale"):
        return {"embedding.weight": ours, "norm.scale": "stack.norm.scale"}[ours]
    _, layer, part, *_ = upstream.split(".")
    return f"stack.blocks.{int(layer) - 2}." + ("mixer." if part == "mixer" else "") + ours


def our_layout(name: str, tensor: Tensor, config: StackConfig) -> Tensor:
    if name.endswith("short_conv_weight"):
        return tensor.reshape(tensor.shape[0], tensor.shape[-1]).flip(1)
    if name.endswith("filter.h"):
        if name.startswith("grad."):
            assert not tensor[:, config.hyena.mr_taps :].any(), "upstream reads no taps beyond these"
        return tensor[:, : config.hyena.mr_taps]
    return tensor


@pytest.mark.parametrize("kind", ["se", "mr", "li"])
@pytest.mark.parametrize("size", ["L256", "L1000"])
def test_operator(kind: str, size: str) -> None:
    golden = Golden(f"op_{kind}_{size}")
    operator = OPERATORS[golden.config.blocks[0]](golden.config.width, golden.config.hyena)
    operator.load_state_dict(golden.weights("param."), strict=False)
    inputs = {name: channels_first(golden.tensors[f"input.{name}"]).requires_grad_() for name in ("x1", "x2", "v")}

    output = operator(**inputs)
    golden.check("output", output.permute(1, 2, 0), golden.tensors["output"])
    filters = operator.filters(output.shape[-1])
    theirs = golden.tensors["filter_effective"]
    golden.check("filter", filters.flip(1) if kind == "se" else filters, theirs)

    (output.permute(1, 2, 0) * golden.tensors["loss_weight"]).sum().backward()
    golden.check_gradients(operator)
    for name, given in inputs.items():
        assert given.grad is not None
        golden.check(f"gradient of {name}", given.grad, channels_first(golden.tensors[f"grad.input.{name}"]))


def channels_first(x: Tensor) -> Tensor:
    """[B, L, G, D / G] to [D, B, L]."""
    return x.flatten(2).permute(2, 0, 1).contiguous()


def test_decay_grid_is_upstreams_table() -> None:
    golden = Golden("op_mr_L1000")
    operator = HyenaMR(golden.config.width, golden.config.hyena)
    golden.check("decay", operator.decay, golden.tensors["buffer.filter.decay"][:, :128])


@pytest.mark.parametrize("case", ["mixer_se_L256", "mixer_mr_L256", "mixer_li_L256", "mixer_attn_L256",
                                  "mixer_attn_ropelin_L256"])  # fmt: skip
def test_mixer(case: str) -> None:
    golden = Golden(case)
    mixer = build_mixer(golden.config.blocks[0], golden.config)
    run(golden, mixer)
    if "inter.rotary_cos" in golden.tensors:
        head_width = golden.config.width // golden.config.num_heads
        tables = rotary_tables(256, head_width, golden.config.attention.rotary, torch.device("cpu"))
        for ours, name in zip(tables, ("cos", "sin"), strict=True):
            golden.check(name, ours, golden.tensors[f"inter.rotary_{name}"][:, : head_width // 2])


@pytest.mark.parametrize("case", [*(f"block_{kind}_{size}" for kind in ("se", "mr", "li", "attn")
                                    for size in ("L256", "L1000")), "block_mr_identity_act_L256"])  # fmt: skip
def test_block(case: str) -> None:
    golden = Golden(case)
    config = golden.config
    block = Block(config.blocks[0], config.mlp.activations(config.blocks)[0], config)
    assert block.mlp.activation == golden.facts["mlp_activation"]
    assert block.mlp.gate.weight.shape[0] == golden.facts["ff_dim"]
    run(golden, Prefixed(block))
    if "inter.prenorm" in golden.tensors:
        golden.check("norm", block.mixer_norm(golden.tensors["input"]), golden.tensors["inter.prenorm"])


class Prefixed(nn.Module):
    """Renames a block's mixer weights to those of a mixer alone, as the recorded cases name them."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)

    def load_state_dict(self, state: dict[str, Tensor], **options: Any) -> Any:
        own = {name.removeprefix("mixer."): name for name in self.block.state_dict()}
        return self.block.load_state_dict({own[name]: tensor for name, tensor in state.items()}, **options)

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return ((name.removeprefix("mixer."), weight) for name, weight in self.block.named_parameters())


def run(golden: Golden, module: nn.Module) -> None:
    missing = module.load_state_dict(golden.weights("param."), strict=False)
    assert not missing.unexpected_keys
    x = golden.tensors["input"].clone().requires_grad_()
    output = module(x)
    golden.check("output", output, golden.tensors["output"])
    (output * golden.tensors["loss_weight"]).sum().backward()
    assert x.grad is not None
    golden.check("gradient of the input", x.grad, golden.tensors["grad.input"])
    golden.check_gradients(module)


def backbone(golden: Golden) -> Isotropic:
    """The model of a case, with its weights."""
    model = IsotropicConfig(stack=golden.config).build()
    assert [block.mlp.activation for block in model.stack.blocks] == golden.facts["mlp_activation_per_layer"]
    missing = model.load_state_dict(golden.weights("param."), strict=False)
    assert not missing.unexpected_keys
    assert all(name.endswith(("decay", "head.weight")) for name in missing.missing_keys)
    return model


def masked_mean(golden: Golden, logits: Tensor) -> Tensor:
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), golden.tensors["labels"].flatten(), reduction="none")
    mask = golden.tensors["loss_mask"].flatten()
    return (losses * mask).sum() / mask.sum()


def test_backbone() -> None:
    golden = Golden("backbone_4layer_L256")
    model = backbone(golden)
    states = []
    for block in model.stack.blocks:
        block.register_forward_hook(lambda module, args, output: states.append(output))
    logits = model(golden.tensors["tokens"])
    for index, state in enumerate(states):
        golden.check(f"block {index}", state, golden.tensors[f"inter.block{index}_output"])
    golden.check("logits", logits, golden.tensors["logits"])

    loss = masked_mean(golden, logits)
    golden.check("loss", loss[None], golden.tensors["loss"])
    loss.backward()
    golden.check_gradients(model)


@torch.no_grad()
def test_backbone_with_gelu_in_every_layer() -> None:
    golden = Golden("backbone_4layer_gelu_L256")
    logits = backbone(golden)(golden.tensors["tokens"])
    golden.check("logits", logits, golden.tensors["logits"])
    golden.check("loss", masked_mean(golden, logits)[None], golden.tensors["loss"])


@torch.no_grad()
def test_the_inference_model_says_the_same() -> None:
    """Vortex, with the weights of a Savanna model that its own tool has converted."""
    source = Golden("backbone_4layer_L256")
    vortex = load_file(FOLDER / "vortex_backbone_4layer_L256.safetensors")
    model = backbone(source)
    source.check("logits", model(vortex["tokens"]), vortex["logits"])

    # Base by base behind the first 200. Each path in fp32, Vortex's too, is some 1.5e-5 away from the same in fp64.
    for dtype, bound in ((torch.float32, TOLERANCE * float(vortex["logits"].abs().max())), (torch.float64, 2e-5)):
        decoder = Decoder(model.to(dtype))
        logits = [decoder.prefill(vortex["tokens"][:, :200])]
        logits += [decoder.step(base) for base in vortex["tokens"][:, 200:].unbind(1)]
        source.check("logit behind the prompt", logits[0], vortex["logits"][:, 199])
        difference = torch.stack(logits[1:], 1) - vortex["logits_incremental_from_200"]
        assert float(difference.abs().max()) <= bound

    # Beside a row that is 120 positions behind, and twice.
    tokens = vortex["tokens"][:1]
    behind, before = Decoder(model), Decoder(model)
    behind.prefill(tokens[:, :80])
    before.prefill(tokens[:, :200])
    behind.join([before])
    behind.select(torch.tensor([1, 0, 1]))
    steps = [behind.step(tokens[0, [t, t - 120, t]]) for t in range(200, 256)]
    golden = vortex["logits_incremental_from_200"][0], source.tensors["logits"][0, 80:136]
    for row, theirs in zip(torch.stack(steps, 1), (golden[0], golden[1], golden[0]), strict=True):
        assert float((row - theirs).abs().max()) <= TOLERANCE * float(vortex["logits"].abs().max())


def test_two_context_parallel_ranks() -> None:
    """Upstream's ranks hold zigzag pairs of chunks, and ours halves: what they compute is compared in the whole."""
    kinds = ("se", "mr", "li")
    recorded = load_file(FOLDER / "cp2_hyena_blocks_L256.safetensors")
    goldens = {kind: Golden(f"block_{kind}_L256") for kind in kinds}
    cases = {kind: context_case(golden) for kind, golden in goldens.items()}
    first, second = run_ranks(run_cases, 2, 2, cases)
    for kind, golden in goldens.items():
        parts = [outcome.modules[kind] for outcome in (first, second)]
        golden.check("output", torch.cat([part.output for part in parts], 1), unzigzag(recorded, f"{kind}.output"))
        assert torch.equal(cases[kind].x, unzigzag(recorded, f"{kind}.input"))
        gradient = torch.cat([part.input_gradient for part in parts], 1)
        golden.check("gradient of the input", gradient, unzigzag(recorded, f"{kind}.grad.input"))
        summed = {name: sum(part.gradients[name] for part in parts) for name in first.modules[kind].gradients}
        for name, theirs in golden.weights("grad.param.").items():
            golden.check(f"gradient of {name}", summed[block_name(name)], theirs)
        locals_of_first = [name for name in recorded if name.startswith(f"rank0.{kind}.grad_local.")]
        assert locals_of_first
        for local in locals_of_first:
            upstream = local.split("grad_local.")[1]
            theirs = our_layout(upstream, recorded[local] + recorded[local.replace("rank0", "rank1")], golden.config)
            golden.check(f"sum of {local}", summed[block_name(our_name(upstream))], theirs)


def block_name(name: str) -> str:
    """The name in a block of what `Golden.weights` names as in a mixer alone."""
    return name if name.startswith(("mixer_norm", "mlp")) else f"mixer.{name}"


def context_case(golden: Golden) -> ModuleCase:
    block = Block(golden.config.blocks[0], golden.config.mlp.activations(golden.config.blocks)[0], golden.config)
    given = {block_name(name): tensor for name, tensor in golden.weights("param.").items()}
    block.load_state_dict(given, strict=False)
    state = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    return ModuleCase("block", golden.config.to_dict(), state, golden.tensors["input"], golden.tensors["loss_weight"])


def unzigzag(recorded: dict[str, Tensor], name: str) -> Tensor:
    """Rank 0 holds chunks 0 and 3 of four along the sequence, rank 1 chunks 1 and 2."""
    (first, last), (second, third) = (recorded[f"rank{rank}.{name}"].chunk(2, 1) for rank in (0, 1))
    return torch.cat([first, second, third, last], 1)
