"""The entropy model of Byte Latent Transformer, built from our blocks, against values recorded from upstream.

Our layers express all of it but one thing: upstream masks attention at document ends (`local_block_causal`), where our
windows run on. Documents are therefore read one by one here, as our entropy model reads them; rotary angles depend
on distances only, so that this is the same arithmetic. Token ids are upstream's: byte + 4, and EOS 2 closes a document.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hyena_blt_savanna.model.isotropic import Isotropic, IsotropicConfig

GOLDEN = Path(__file__).parents[1] / "golden" / "blt"
VALUES = load_file(GOLDEN / "entropy_model.safetensors")
UPSTREAM = json.loads((GOLDEN / "entropy_model.json").read_text())["config"]
HEADS = UPSTREAM["n_heads"]
EOS = UPSTREAM["eos_id"]


def halves(rows: Tensor) -> Tensor:
    """Rows of a query or key projection for rotary pairs (i, i + half), from pairs (2 i, 2 i + 1)."""
    return rows.view(HEADS, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def weight_of(name: str) -> Tensor:
    return VALUES["w/" + name + ".weight"]


@pytest.fixture(scope="module")
def model() -> Isotropic:
    config = IsotropicConfig.parse(
        {
            "head": "untied",
            "stack": {
                "width": UPSTREAM["dim"],
                "num_heads": HEADS,
                "blocks": ["attention"] * UPSTREAM["n_layers"],
                "attention": {
                    "window": UPSTREAM["sliding_window"],
                    "output_bias": False,
                    "rotary": {"base": UPSTREAM["rope_theta"]},
                },
                "mlp": {"activation": "silu", "width": len(weight_of("layers.0.feed_forward.w1"))},
                "norm": {"epsilon": UPSTREAM["norm_eps"]},
            },
        }
    )
    module = config.build()
    weights = module.state_dict()
    weights["embedding.weight"][: UPSTREAM["vocab_size"]] = weight_of("tok_embeddings")
    weights["head.weight"][: UPSTREAM["vocab_size"]] = weight_of("output")
    weights["stack.norm.scale"] = weight_of("norm")
    for layer in range(UPSTREAM["n_layers"]):
        theirs, ours = f"layers.{layer}.", f"stack.blocks.{layer}."
        query, key = (halves(weight_of(f"{theirs}attention.{name}")) for name in ("wq", "wk"))
        value = weight_of(theirs + "attention.wv")
        by_head = [part.unflatten(0, (HEADS, -1)) for part in (query, key, value)]
        weights[ours + "mixer.in_projection.weight"] = torch.stack(by_head, 1).flatten(0, 2)
        weights[ours + "mixer.out_projection.weight"] = weight_of(theirs + "attention.wo")
        weights[ours + "mixer_norm.scale"] = weight_of(theirs + "attention_norm")
        weights[ours + "mlp_norm.scale"] = weight_of(theirs + "ffn_norm")
        for one, other in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            weights[f"{ours}mlp.{one}.weight"] = weight_of(f"{theirs}feed_forward.{other}")
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def read_documents(model: Isotropic, tokens: Tensor) -> Tensor:
    """[B, L] to logits [B, L, 260], each document of a row by itself; an EOS belongs to the document that it ends."""
    rows = []
    for row in tokens:
        ends = (row == EOS).nonzero().flatten().tolist()
        borders = sorted({0, *(end + 1 for end in ends), len(row)})
        rows.append(torch.cat([model(row[None, a:b])[0] for a, b in itertools.pairwise(borders)]))
    return torch.stack(rows)[..., : UPSTREAM["vocab_size"]]


def entropies(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def test_logits_and_entropies(model: Isotropic) -> None:
    logits = read_documents(model, VALUES["in/tokens"])
    torch.testing.assert_close(logits, VALUES["out/logits"], rtol=0, atol=1e-4)
    torch.testing.assert_close(entropies(logits), VALUES["out/entropy_direct"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("window", "rows"), [(64, 1), (64, 2), (128, 1), (8192, 1)])
def test_windows_that_start_blind(model: Isotropic, window: int, rows: int) -> None:
    """Upstream flattens the batch and cuts it into windows: rows run into each other, and windows know nothing."""
    tokens = VALUES["in/tokens"]
    found = []
    for piece in tokens.flatten().split(window * rows):
        padded = torch.nn.functional.pad(piece, (0, -len(piece) % window)).view(-1, window)
        found.append(entropies(read_documents(model, padded)).flatten()[: len(piece)])
    expected = VALUES[f"out/entropies_maxlen{window}_bs{rows}"]
    torch.testing.assert_close(torch.cat(found).view(tokens.shape), expected, rtol=0, atol=1e-4)
    # It is not what reading each row by itself gives.
    assert (expected - VALUES["out/entropy_direct"]).abs().max() > 0.1
