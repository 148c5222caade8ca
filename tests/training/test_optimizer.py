"""Which parameters decay."""

from __future__ import annotations

import torch
from torch import nn

from hyena_blt_savanna.testing.toy_training import ToyModel
from hyena_blt_savanna.training.optimizer import OptimizerConfig, parameter_groups


def names_that_decay(model: nn.Module, no_decay: tuple[str, ...] = ()) -> set[str]:
    decaying = {id(parameter) for parameter in parameter_groups(model, 0.1, no_decay)[0]["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in decaying}


def test_matrices_decay_and_tables_vectors_and_named_ones_do_not():
    model = ToyModel()
    assert names_that_decay(model) == {"convolutions.0.weight", "convolutions.1.weight", "head.weight"}
    assert names_that_decay(model, ("convolutions.?.*",)) == {"head.weight"}
    groups = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = ToyModel()
    model.head.weight.requires_grad_(False)
    assert "head.weight" not in names_that_decay(model)
    model.requires_grad_(False)
    assert parameter_groups(model, 0.1) == []


def test_decay_shrinks_only_what_decays():
    model = ToyModel()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = OptimizerConfig(lr=0.5, weight_decay=0.2).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 0.9 if name in names_that_decay(model) else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
