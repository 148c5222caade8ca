"""The local block against torch's own convolution."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional

from hyena_blt_savanna.model.gated_convolution import GatedConvolution, causal_linear


def plain_causal_convolution(x, weight, num_taps):
    """conv1d with zeros in front; weight [E, K * D] becomes [E, D, K]."""
    taps = weight.view(weight.shape[0], num_taps, -1).transpose(1, 2)
    return functional.conv1d(functional.pad(x.transpose(1, 2), (num_taps - 1, 0)), taps).transpose(1, 2)


@pytest.mark.parametrize(("length", "num_taps"), [(1, 1), (9, 3), (3, 7), (1, 4)])
def test_causal_linear_is_a_causal_convolution(length, num_taps):
    torch.manual_seed(0)
    x = torch.randn(2, length, 3, dtype=torch.double, requires_grad=True)
    weight = torch.randn(5, num_taps * 3, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(causal_linear(x, weight, num_taps), plain_causal_convolution(x, weight, num_taps))
    assert gradcheck(lambda x, weight: causal_linear(x, weight, num_taps), (x, weight))


def test_autocast_computes_in_bfloat16_and_leaves_gradients_in_float32():
    torch.manual_seed(0)
    block = GatedConvolution(width=16, hidden_width=32, num_taps=3)
    block.reset_parameters(num_layers=1)
    x = torch.randn(2, 50, 16)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        close = block(x)
    close.sum().backward()
    assert block.widen.weight.grad.dtype == torch.float32
    assert (close.float() - exact).abs().max() < 0.05
    assert not torch.equal(close.float(), exact)


def test_a_position_reads_as_many_bases_as_there_are_taps():
    torch.manual_seed(0)
    block = GatedConvolution(width=4, hidden_width=8, num_taps=3)
    x = torch.randn(1, 12, 4, requires_grad=True)
    block(x)[0, 7].sum().backward()
    assert x.grad.abs().sum(-1)[0].nonzero().flatten().tolist() == [5, 6, 7]


@pytest.mark.parametrize("length", [2, 10, 33])
def test_computing_activations_again_changes_nothing(monkeypatch, length):
    monkeypatch.setattr("hyena_blt_savanna.model.gated_convolution.CHUNK_BASES", 10)
    torch.manual_seed(0)
    plain, saving = (GatedConvolution(4, 8, 3, checkpointing).double() for checkpointing in (False, True))
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, length, 4, dtype=torch.double, requires_grad=True)
    direction = torch.randn_like(x)
    found = []
    for block in (plain, saving):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = block(x)
        gradients = torch.autograd.grad(y, [x, *block.parameters()], direction)
        found.append((y, gradients, [each.shape for each in kept if each.shape[:2] == (2, length)]))
    torch.testing.assert_close(found[1][:2], found[0][:2])
    assert (2, length, 16) in found[0][2]
    assert found[1][2] == [x.shape]
    torch.testing.assert_close(saving.eval()(x), found[0][0])
