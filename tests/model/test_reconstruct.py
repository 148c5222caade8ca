"""The autoencoder of patches: which vector each logit reads, what a base can change, and what learns."""

from fnmatch import fnmatchcase

import pytest
import torch

from hyena_blt_savanna.model.flops import count_flops
from hyena_blt_savanna.model.hyena_blt import UNREAD_WEIGHTS, HyenaBLT, HyenaBLTConfig
from hyena_blt_savanna.model.patches import lay_out

# The first row leaves an unfinished patch and padded patches behind, the second is full.
LENGTHS = [[1, 3, 6, 2, 5, 6, 4, 0, 0], [1, 6, 6, 6, 6, 6, 6, 2, 1]]
NUM_BASES = 40
LONGEST = 6


def build() -> HyenaBLT:
    torch.manual_seed(0)
    model = HyenaBLTConfig.parse(
        {
            "local_width": 16,
            "max_patch_bases": LONGEST,
            "kmers": {"sizes": [1, 3]},
            "encoder": {"blocks": ["gated_convolution"], "hidden_width": 24},
            "decoder": {"blocks": ["gated_convolution"], "hidden_width": 24},
            "global_model": {"width": 32, "num_heads": 2, "blocks": ["hyena_se", "attention"]},
        }
    ).build()
    # The head starts at zero, which would hide every dependence.
    torch.nn.init.normal_(model.decoder.head.weight)
    torch.nn.init.normal_(model.decoder.start)
    torch.nn.init.normal_(model.decoder.from_patches.bias)
    return model.double()


@pytest.fixture(scope="module")
def model() -> HyenaBLT:
    return build()


@pytest.fixture
def bases() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (2, NUM_BASES))]


def patch_and_place(lengths: list[int], base: int) -> tuple[int | None, int]:
    """By counting: the finished patch that a base is in, or None, and how many bases of its patch precede it."""
    end = 0
    for patch, length in enumerate(lengths):
        if base < end + length:
            return patch, base - end
        end += length
    return None, base - end


def test_each_logit_reads_the_vector_of_the_patch_that_it_scores(model, bases):
    lengths = torch.tensor(LENGTHS)
    with torch.no_grad():
        states, vectors = model.encoder(bases, lay_out(lengths, NUM_BASES, LONGEST))
        wanted = states.clone()
        weight, bias = model.decoder.from_patches.weight, model.decoder.from_patches.bias
        for row in range(2):
            for t in range(NUM_BASES):
                patch, place = patch_and_place(LENGTHS[row], t + 1)
                # The unfinished patch of the first row grows longer than the model has places for.
                if place >= LONGEST:
                    continue
                vector = torch.zeros(32).double() if patch is None else vectors[row, patch]
                rows = slice(16 * place, 16 * (place + 1))
                wanted[row, t] += weight[rows] @ vector + bias[rows]
        for block in model.decoder.blocks:
            wanted = block(wanted)
        wanted = model.decoder.head(model.decoder.norm(wanted))
        torch.testing.assert_close(model.reconstruct(bases, lengths), wanted)


def test_a_base_changes_before_it_the_logits_of_its_own_patch_and_no_others(model, bases):
    before = model.reconstruct(bases, torch.tensor(LENGTHS))
    for t in range(NUM_BASES):
        changed = bases.clone()
        changed[:, t] = torch.where(bases[:, t] == ord("A"), ord("C"), ord("A"))
        difference = (model.reconstruct(changed, torch.tensor(LENGTHS)) - before).abs().amax(2)
        for row, lengths in enumerate(LENGTHS):
            patch, place = patch_and_place(lengths, t)
            found = set((difference[row, :t] > 1e-9).nonzero().flatten().tolist())
            # The logits at s score base s + 1: from the one before the patch's first base on.
            first = max(t - place - 1, 0)
            assert found == (set() if patch is None else set(range(first, t)))
            assert difference[row, t] > 1e-9


def test_nothing_beyond_the_reach_of_the_local_modules_is_read(model, bases):
    """A base is forgotten: there is no global model."""
    t = 2
    changed = bases.clone()
    changed[:, t] = torch.where(bases[:, t] == ord("A"), ord("C"), ord("A"))
    lengths = torch.tensor(LENGTHS)
    difference = (model.reconstruct(changed, lengths) - model.reconstruct(bases, lengths)).abs().amax((0, 2))
    # Vectors of patches that start within the encoder's reach know the base, and so do their last bases' logits
    # and those that the decoder's taps reach from there.
    assert difference[t + model.config.local_reach_bases + LONGEST + 1 :].sum() < 1e-9


def test_padding_changes_nothing(model, bases):
    short = model.reconstruct(bases[:, :30], torch.tensor([[6, 6, 6, 6, 6], [1, 2, 3, 4, 5]]))
    padded = torch.nn.functional.pad(bases[:, :30], (0, 9), value=1)
    long = model.reconstruct(padded, torch.tensor([[6, 6, 6, 6, 6, 0, 0], [1, 2, 3, 4, 5, 0, 0]]))
    torch.testing.assert_close(long[:, :30], short)


def test_gradients_reach_encoder_and_decoder_only(bases):
    model = build()
    model.reconstruct(bases, torch.tensor(LENGTHS)).square().mean().backward()
    for name, parameter in model.named_parameters():
        unread = any(fnmatchcase(name, pattern) for pattern in UNREAD_WEIGHTS["autoencoder"])
        assert unread == (parameter.grad is None), name
        assert unread or parameter.grad.abs().sum() > 0, name
    assert any(name.startswith("global_model.") for name, _ in model.named_parameters())


def test_the_autoencoder_costs_what_the_model_costs_without_its_stack(model):
    whole, alone = count_flops(model, 1024, 128), count_flops(model, 1024, 128, "autoencoder")
    local = ("local_encoder", "local_decoder", "head")
    assert alone["total"] == sum(whole[part] for part in local) < whole["total"]
    assert set(alone) == {*local, "total"}
