"""Tiny models with patchers of each rule, of weights that make every base different."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hyena_blt_savanna.config import Config
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.patching.ngram import NgramConfig
from hyena_blt_savanna.patching.patcher import Patcher
from hyena_blt_savanna.patching.rules import BudgetRule, EntropyRule, PatchRuleConfig, StaticRule
from hyena_blt_savanna.testing.toy_genomes import random_genome

RULES: dict[str, PatchRuleConfig] = {
    "static": StaticRule(patch_bases=4, max_patch_bases=8),
    "entropy": EntropyRule(threshold_nats=1.375, max_patch_bases=8),
    "budget": BudgetRule(budget_nats=6.0, max_patch_bases=8),
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hybrid_config() -> HyenaBLTConfig:
    return HyenaBLTConfig.parse(
        {
            "local_width": 12,
            "max_patch_bases": 8,
            "kmers": {"sizes": [2, 3, 4]},
            "encoder": {"blocks": ["gated_convolution"], "num_taps": 3, "hidden_width": 16},
            "global_model": {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "hyena_li", "attention"]},
            "decoder": {"blocks": ["gated_convolution"] * 2, "num_taps": 4, "hidden_width": 16},
        }
    )


@pytest.fixture(scope="session")
def isotropic_config() -> IsotropicConfig:
    return IsotropicConfig.parse({"stack": {"width": 16, "num_heads": 2, "blocks": ["hyena_se", "attention"]}})


def build(config: Config, seed: int = 0) -> nn.Module:
    """A model none of whose weights is zero, and whose logits differ a lot."""
    torch.manual_seed(seed)
    module = config.build()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "head" in name or "start" in name or parameter.abs().max() == 0:
                parameter.normal_(std=0.5)
    return module.eval()


@pytest.fixture(scope="session")
def patchers() -> dict[str, Patcher]:
    """One of each rule, with entropies from counts of a toy genome."""
    ngram = NgramConfig(order=3).fit(random_genome(20_000, seed=5))
    return {name: Patcher(ngram if rule.needs_entropies else None, rule) for name, rule in RULES.items()}


@pytest.fixture(scope="session")
def model_of(
    hybrid_config: HyenaBLTConfig, isotropic_config: IsotropicConfig, patchers: dict[str, Patcher]
) -> Callable[[str], HyenaBLTModel]:
    """Makes the hybrid with the patcher of a rule, or the isotropic model."""
    hybrid, isotropic = build(hybrid_config), build(isotropic_config)

    def make(name: str) -> HyenaBLTModel:
        if name == "isotropic":
            return HyenaBLTModel(isotropic, isotropic_config, None)
        return HyenaBLTModel(hybrid, hybrid_config, patchers[name])

    return make


@pytest.fixture(params=[*RULES, "isotropic"])
def model(request: pytest.FixtureRequest, model_of: Callable[[str], HyenaBLTModel]) -> HyenaBLTModel:
    """Every rule, and the model without one."""
    return model_of(request.param)
