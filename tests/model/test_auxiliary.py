"""The hybrid's losses besides the one of the bases: against plain loops, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.model.flops import count_flops
from hyena_blt_savanna.model.hyena_blt import HyenaBLT, HyenaBLTConfig
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.model.prediction import Prediction

# The first row leaves an unfinished patch and padded patches behind, the second is full.
LENGTHS = torch.tensor([[1, 3, 6, 2, 5, 6, 4, 0, 0], [1, 6, 6, 6, 6, 6, 6, 2, 1]])
NUM_BASES, LONGEST = 40, 6
NAMES = ("patch_length", "entropy", "reconstruction")


def config_of(**coefficients: float) -> HyenaBLTConfig:
    return HyenaBLTConfig.parse(
        {
            "local_width": 16,
            "max_patch_bases": LONGEST,
            "kmers": {"sizes": [1, 3]},
            "global_model": {"width": 32, "num_heads": 2, "blocks": ["hyena_se", "attention"]},
            "auxiliary": coefficients,
        }
    )


def build(**coefficients: float) -> HyenaBLT:
    torch.manual_seed(0)
    model = config_of(**coefficients).build().double()
    torch.manual_seed(1)
    for parameter in model.parameters():
        # Some weights start at zero, behind which nothing would be seen.
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    torch.manual_seed(2)
    bases = torch.tensor(list(b"ACGTN"))[torch.randint(0, 5, (2, NUM_BASES))]
    bases[:, 0] = 0
    weights = torch.rand(2, NUM_BASES, dtype=torch.double) * torch.tensor([[1.0], [5.0]])
    weights[(bases == ord("N")) | (bases == 0)] = 0
    return {"bases": bases, "loss_weights": weights, "entropies": 1.386 * torch.rand(2, NUM_BASES, dtype=torch.double)}


def run(model: HyenaBLT, batch: dict[str, Tensor], **changes: Tensor) -> Prediction:
    given = model(
        {**batch, **changes}["bases"], LENGTHS, **{k: v for k, v in (batch | changes).items() if k != "bases"}
    )
    assert isinstance(given, Prediction)
    return given


def hidden(model: HyenaBLT, bases: Tensor) -> tuple[Tensor, Tensor]:
    """What the global model made of the patches, and the states that the logits are made of."""
    seen: list[Tensor] = []
    handle = model.decoder.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(bases, LENGTHS)
    handle.remove()
    _, patches = model.encoder(bases, lay_out(LENGTHS, NUM_BASES, LONGEST))
    return model.global_model(patches), seen[0]


def nats_of(scores: Tensor, column: int) -> float:
    return math.log(sum(math.exp(score) for score in scores.tolist())) - float(scores[column])


@torch.no_grad()
def test_patch_length_by_a_loop(batch: dict[str, Tensor]) -> None:
    model = build(patch_length=0.7)
    after, _ = hidden(model, batch["bases"])
    wanted, num_targets = 0.0, 0
    for row, lengths in enumerate(LENGTHS.tolist()):
        start = lengths[0]
        for patch in range(1, len(lengths)):
            length = lengths[patch]
            if length == 0:
                break
            scores = model.auxiliary.patch_length.weight @ after[row, patch - 1] + model.auxiliary.patch_length.bias
            assert len(scores) == LONGEST
            weight = sum(batch["loss_weights"][row, start : start + length].tolist()) / length
            wanted += 0.7 * weight * nats_of(scores, length - 1)
            start += length
            num_targets += 1
    # Neither the unfinished patch of the first row nor the two padded ones are a target.
    assert num_targets == 6 + 8
    assert float(run(model, batch).auxiliary_nats) == pytest.approx(wanted, rel=1e-6)


@torch.no_grad()
def test_entropy_by_a_loop(batch: dict[str, Tensor]) -> None:
    model = build(entropy=0.3)
    _, states = hidden(model, batch["bases"])
    wanted = 0.0
    for row in range(2):
        for t in range(NUM_BASES - 1):
            guess = 1.3 + 0.1 * float(model.auxiliary.entropy(states[row, t]))
            error = guess - float(batch["entropies"][row, t + 1])
            # Nats of a normal distribution with a standard deviation of 0.1 nats, less those of its mean.
            wanted += 0.3 * float(batch["loss_weights"][row, t + 1]) * error**2 / (2 * 0.1**2)
    assert float(run(model, batch).auxiliary_nats) == pytest.approx(wanted, rel=1e-6)


@torch.no_grad()
def test_reconstruction_by_a_loop(batch: dict[str, Tensor]) -> None:
    model = build(reconstruction=0.5)
    logits = model.reconstruct(batch["bases"], LENGTHS)
    assert isinstance(logits, Tensor)
    wanted = 0.0
    for row in range(2):
        for t in range(1, NUM_BASES):
            column = int(model.class_of_byte[batch["bases"][row, t]])
            if column >= 0:
                wanted += 0.5 * float(batch["loss_weights"][row, t]) * nats_of(logits[row, t - 1], column)
    assert float(run(model, batch).auxiliary_nats) == pytest.approx(wanted, rel=1e-6)


@torch.no_grad()
def test_losses_add_up(batch: dict[str, Tensor]) -> None:
    coefficients = dict(zip(NAMES, (0.7, 0.3, 0.5), strict=True))
    model = build(**coefficients)
    together = float(run(model, batch).auxiliary_nats)
    alone = 0.0
    for name, coefficient in coefficients.items():
        single = config_of(**{name: coefficient}).build().double()
        single.load_state_dict({key: model.state_dict()[key] for key in single.state_dict()})
        alone += float(run(single, batch).auxiliary_nats)
    assert together == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "reached", "unreached"),
    [
        (
            "patch_length",
            ("encoder.", "global_model.", "auxiliary.patch_length."),
            ("decoder.",),
        ),
        (
            "entropy",
            ("encoder.", "global_model.", "decoder.blocks.", "decoder.norm.", "auxiliary.entropy."),
            ("decoder.head.",),
        ),
        ("reconstruction", ("encoder.", "decoder.blocks.", "decoder.head."), ("global_model.", "decoder.start")),
    ],
)
def test_where_gradients_flow(
    batch: dict[str, Tensor], name: str, reached: tuple[str, ...], unreached: tuple[str, ...]
) -> None:
    model = build(**{name: 0.5})
    run(model, batch).auxiliary_nats.backward()
    for key, parameter in model.named_parameters():
        size = 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
        assert math.isfinite(size), key
        assert not (key.startswith(reached) and size == 0), key
        assert not (key.startswith(unreached) and size > 0), key
    for prefix in (*reached, *unreached):
        assert any(key.startswith(prefix) for key, _ in model.named_parameters()), prefix


@torch.no_grad()
def test_logits_and_nats_are_those_without(batch: dict[str, Tensor]) -> None:
    model, without = build(**dict.fromkeys(NAMES, 1.0)), build()
    without.load_state_dict({key: model.state_dict()[key] for key in without.state_dict()})
    wanted, wanted_nats = without(batch["bases"], LENGTHS), run(without, batch).nats
    assert run(without, batch).auxiliary_nats is None
    assert torch.equal(run(model, batch).nats, wanted_nats)
    assert torch.equal(model(batch["bases"], LENGTHS), wanted)
    model.eval()
    assert torch.equal(model(batch["bases"], LENGTHS), wanted)
    assert run(model, batch) == (wanted_nats, None, None)


@torch.no_grad()
def test_targets_are_no_input(batch: dict[str, Tensor]) -> None:
    """Other entropies change no nats of bases; where nothing weighs, an entropy may be anything."""
    model = build(**dict.fromkeys(NAMES, 1.0))
    before = run(model, batch)
    after = run(model, batch, entropies=batch["entropies"].flip(1))
    assert torch.equal(after.nats, before.nats)
    assert after.auxiliary_nats != before.auxiliary_nats
    unknown = batch["entropies"].masked_fill(batch["loss_weights"] == 0, math.nan)
    assert unknown.isnan().any()
    assert run(model, batch, entropies=unknown).auxiliary_nats == before.auxiliary_nats


def test_entropies_that_nothing_weighs_give_no_gradient(batch: dict[str, Tensor]) -> None:
    unknown = batch["entropies"].masked_fill(batch["loss_weights"] == 0, math.nan)
    gradients = []
    for entropies in (batch["entropies"], unknown):
        model = build(entropy=1.0)
        run(model, batch, entropies=entropies).auxiliary_nats.backward()
        gradients.append(model.decoder.norm.weight.grad)
    assert torch.equal(*gradients)


def test_a_batch_is_the_sum_of_its_rows(batch: dict[str, Tensor]) -> None:
    """With other padding too: what a micro batch is padded to is an accident."""
    model = build(**dict.fromkeys(NAMES, 1.0))
    whole = run(model, batch).auxiliary_nats
    padded = {key: nn.functional.pad(value, (0, 7), value=key == "bases") for key, value in batch.items()}
    lengths = nn.functional.pad(LENGTHS, (0, 3))
    parts = [
        model(padded["bases"][row], lengths[row], "next_base", padded["loss_weights"][row], padded["entropies"][row])
        for row in (slice(0, 1), slice(1, 2))
    ]
    assert float(sum(part.auxiliary_nats for part in parts).detach()) == pytest.approx(float(whole.detach()), rel=1e-9)


def test_a_model_without_losses_is_the_model_that_it_was() -> None:
    """Heads exist where a coefficient is above zero, and the other weights are drawn as without them."""
    torch.manual_seed(5)
    plain = config_of().build()
    assert not [key for key in plain.state_dict() if key.startswith("auxiliary")]
    assert plain.auxiliary_inputs == ()
    assert config_of() == config_of(**dict.fromkeys(NAMES, 0.0))
    assert isinstance(plain(torch.full((1, 6), ord("A")), torch.tensor([[6]])), Tensor)
    for names in (NAMES, *((name,) for name in NAMES)):
        torch.manual_seed(5)
        model = config_of(**dict.fromkeys(names, 0.1)).build()
        heads = {f"auxiliary.{name}.{kind}" for name in names for kind in ("weight", "bias") if name != NAMES[2]}
        assert model.state_dict().keys() - plain.state_dict().keys() == heads
        assert all(torch.equal(model.state_dict()[key], value) for key, value in plain.state_dict().items())
        assert model.auxiliary_inputs == (("entropies",) if "entropy" in names else ())


def test_losses_are_computed_in_training_only() -> None:
    """Their operations are counted where they are computed."""
    plain = config_of()
    for objective, training in (("next_base", False), ("autoencoder", False), ("autoencoder", True)):
        wanted = count_flops(plain, 640, 128, objective)
        assert count_flops(config_of(**dict.fromkeys(NAMES, 1.0)), 640, 128, objective, training) == wanted
    without = count_flops(plain, 640, 128, training=True)
    assert without == count_flops(plain, 640, 128)
    wanted_parts = {
        "patch_length": 127 * 2 * 32 * LONGEST,
        "entropy": 640 * 2 * 16,
        "reconstruction": without["local_decoder"] + without["head"],
    }
    for name, wanted_part in wanted_parts.items():
        found = count_flops(config_of(**{name: 0.1}), 640, 128, training=True)
        assert found.pop("auxiliary") == wanted_part
        assert found.pop("total") == without["total"] + wanted_part
        assert found == {part: count for part, count in without.items() if part != "total"}
    found = count_flops(config_of(**dict.fromkeys(NAMES, 0.1)), 640, 128, training=True)
    assert found["auxiliary"] == sum(wanted_parts.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_coefficient_is_not_negative(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"auxiliary\.{name}: .*greater than or equal to 0"):
        config_of(**{name: -0.1})
