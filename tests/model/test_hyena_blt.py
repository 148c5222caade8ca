"""Laws of the hybrid model: causality, the one-patch delay, padding, and memory linear in length."""

import subprocess
import sys

import pytest
import torch

from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.patches import lay_out
from hyena_blt_savanna.nucleotides import SCORED

LENGTHS = torch.tensor([[1, 3, 6, 2, 5, 6, 4, 0, 0], [1, 6, 6, 6, 6, 6, 6, 3, 0]])
NUM_BASES = 40


def tiny_config(**changes):
    return HyenaBLTConfig.parse(
        {
            "local_width": 16,
            "max_patch_bases": 6,
            "kmers": {"sizes": [1, 3]},
            "encoder": {"blocks": ["gated_convolution"], "hidden_width": 24},
            "decoder": {"blocks": ["gated_convolution"], "hidden_width": 24},
            "global_model": {
                "width": 32,
                "num_heads": 2,
                "blocks": ["hyena_se", "hyena_mr", "hyena_li", "attention"],
            },
        }
        | changes
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = tiny_config().build()
    # The head starts at zero, which would hide every dependence.
    torch.nn.init.normal_(model.decoder.head.weight)
    return model.double()


@pytest.fixture
def bases():
    torch.manual_seed(1)
    return torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (2, NUM_BASES))]


def test_logits_have_a_column_for_each_scored_byte(model, bases):
    assert model(bases, LENGTHS).shape == (2, NUM_BASES, len(SCORED))
    assert model.class_of_byte[list(SCORED)].tolist() == list(range(len(SCORED)))
    assert (model.class_of_byte >= 0).sum() == len(SCORED)


def test_changing_a_base_changes_no_logit_before_it(model, bases):
    before = model(bases, LENGTHS)
    for t in range(NUM_BASES):
        changed = bases.clone()
        changed[:, t] = torch.where(bases[:, t] == ord("A"), ord("C"), ord("A"))
        difference = (model(changed, LENGTHS) - before).abs().amax((0, 2))
        assert difference[:t].sum() < 1e-9
        assert difference[t] > 1e-6


def test_moving_a_boundary_changes_no_logit_before_the_earlier_place(model, bases):
    """A patch that ends at 24 or at 26: bases up to the 24th are predicted without knowing which."""
    long_one, short_one = torch.tensor([[6, 6, 6, 6, 6, 6]]), torch.tensor([[6, 6, 6, 4, 6, 6]])
    difference = (model(bases[:1], long_one) - model(bases[:1], short_one)).abs().amax((0, 2))
    # Base 22 opens a patch in one case only, so that the logits at 21 are the first that may differ.
    assert difference[:21].sum() < 1e-9
    assert difference[21] > 1e-9


def test_logits_read_the_last_finished_patch_and_the_start_vector_before_it(model, bases):
    lengths = torch.tensor([[6] * 6])
    inputs = bases[:1]

    def gradient_of_start(t):
        model.zero_grad()
        model(inputs, lengths)[0, t].sum().backward()
        return model.decoder.start.grad.abs().sum()

    # Base t + 1 = 6 is the first that has a finished patch before it; the decoder's four taps look back to t - 3.
    assert gradient_of_start(4) > 0
    assert gradient_of_start(8 + 3) == 0


def test_padding_changes_nothing(model, bases):
    short = model(bases[:, :30], torch.tensor([[6, 6, 6, 6, 6], [1, 2, 3, 4, 5]]))
    padded = torch.nn.functional.pad(bases[:, :30], (0, 9), value=1)
    long = model(padded, torch.tensor([[6, 6, 6, 6, 6, 0, 0], [1, 2, 3, 4, 5, 0, 0]]))
    torch.testing.assert_close(long[:, :29], short[:, :29])


def test_an_unfinished_patch_is_scored_as_the_whole_one_will_be(model, bases):
    """Generation: logits for the bases so far don't wait for the patch to end."""
    whole = model(bases[:1], torch.tensor([[6, 6, 6, 6, 6, 6]]))
    partial = model(bases[:1, :21], torch.tensor([[6, 6, 6]]))
    torch.testing.assert_close(partial, whole[:, :21])


def test_a_slice_that_knows_the_patch_before_it_scores_like_the_whole(model, bases):
    """What slices and prompts rely on: the local modules read `local_reach_bases` back and no more."""
    lengths = torch.tensor([[6, 6, 6, 6, 6, 6]])
    whole = model(bases[:1], lengths)
    _, patches = model.encoder(bases[:1, :36], lay_out(lengths, 36, 6))
    out = model.global_model(patches)
    assert model.config.local_reach_bases == (3 - 1) + 3 + 3
    start = 18
    states, _ = model.encoder(bases[:1, start:36], lay_out(lengths[:, 3:], 18, 6))
    logits = model.decoder(states, out[:, 3:], lengths[:, 3:], before_BM=out[:, 2])
    reach = model.config.local_reach_bases
    torch.testing.assert_close(logits[:, reach:], whole[:, start + reach : 36])


def test_gradients_are_finite_where_rows_are_padded_patches(bases):
    torch.manual_seed(0)
    model = tiny_config().build()
    torch.nn.init.normal_(model.decoder.head.weight)
    model(bases, LENGTHS).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("block", ["gated_convolution", "hyena_se", "hyena_mr", "attention"])
def test_computing_activations_again_changes_nothing_and_keeps_less(bases, block):
    local = {"blocks": [block, block], "hidden_width": 24, "attention": {"window": 5}}
    found = []
    for saving in (False, True):
        asked = {**local, "activation_checkpointing": saving}
        config = tiny_config(encoder=asked, decoder=asked)
        config = config.model_copy(
            update={"global_model": config.global_model.model_copy(update={"activation_checkpointing": saving})}
        )
        torch.manual_seed(0)
        model = config.build().double()
        torch.nn.init.normal_(model.decoder.head.weight)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            logits = model(bases, LENGTHS)
        logits.square().sum().backward()
        found.append((logits, {name: weight.grad for name, weight in model.named_parameters()}, sum(kept)))
    torch.testing.assert_close(found[1][:2], found[0][:2])
    assert found[1][2] < found[0][2] / 2


MEMORY_SCRIPT = """
import resource, torch
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
config = HyenaBLTConfig.parse({"local_width": 64, "max_patch_bases": 8, "kmers": {"sizes": [2, 4, 6]},
    "encoder": {"hidden_width": 128}, "decoder": {"hidden_width": 128},
    "global_model": {"width": 128, "num_heads": 4, "blocks": ["hyena_se", "hyena_mr", "hyena_li"]}})
model = config.build()
bases = torch.tensor(list(b"ACGT"))[torch.randint(0, 4, (1, 262144))]
logits = model(bases, torch.full((1, 32768), 8))
torch.nn.functional.cross_entropy(logits[0, :-1], model.class_of_byte[bases[0, 1:]]).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_quarter_million_bases_fit_in_eight_gigabytes():
    done = subprocess.run([sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True)
    peak_kilobytes = int(done.stdout)
    assert peak_kilobytes < 8e6
