import pytest
from torch import nn

from hyena_blt_savanna.config import ConfigError
from hyena_blt_savanna.training.first_weights import check_patterns, freeze


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.decoder = nn.Linear(2, 2)


def test_frozen_weights_are_those_of_the_patterns() -> None:
    model = Model()
    check_patterns(model, ["encoder.*", "*.bias"])
    freeze(model, ["encoder.*", "*.bias"])
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["decoder.weight"]


def test_patterns_that_name_nothing_or_everything_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"training.frozen: no weight is called 'global_model.\*'; .* decoder.\*, encoder"
    ):
        check_patterns(Model(), ["encoder.*", "global_model.*"])
    with pytest.raises(ConfigError, match=r"encoder.\*, \*coder.\* leaves nothing to train"):
        check_patterns(Model(), ["encoder.*", "*coder.*"])
