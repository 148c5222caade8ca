"""A benchmark small enough to be trained: two contenders on a toy genome."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from hyena_blt_savanna.quality.config import Benchmark
from hyena_blt_savanna.testing.toy_genomes import random_genome, write_fasta

MODEL = {
    "hybrid": {
        "kind": "hyena_blt",
        "local_width": 8,
        "max_patch_bases": 8,
        "kmers": {"sizes": [2]},
        "global_model": {"width": 16, "num_heads": 2, "blocks": ["hyena_se"]},
    },
    "plain": {"kind": "isotropic", "stack": {"width": 16, "num_heads": 2, "blocks": ["hyena_se"]}},
}
TREE = {
    "name": "toy",
    "budget_flops": 1.2e9,
    "multiples": [1],
    "rates": [1e-3, 1e-2],
    "rates_beyond": 0,
    "validations": 4,
    "checkpoints": 4,
    "genomes": {"toy": {"split": {"by": "stretch", "validation": 0.1, "test": 0.2}}},
    "groups": [{"title": "All", "contenders": ["hybrid", "plain"], "seeds": [1]}],
    "held_out": {"validation_bases": 1000, "test_bases": 2000, "duplicate_bases": 50, "skipped_bases": 8},
    "baseline": "plain",
    "pairs": [["hybrid", "plain"]],
    "ngram_orders": [1, 2],
}


def write_yaml(path: Path, tree: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def make_benchmark(tmp_path: Path) -> Callable[..., Path]:
    """Writes a benchmark; keys given replace those of the toy one. Returns its path."""

    def make(**changes: object) -> Path:
        folder = tmp_path / "configs"
        fasta = folder / "toy.fa"
        folder.mkdir(exist_ok=True)
        write_fasta(fasta, {"toy": random_genome(12_000, seed=3, repeat_fraction=0.02)})
        training = {
            "training": {
                "stages": [{"steps": 1, "window_bases": 128, "batch_windows": 2}],
                "logging": {"every_steps": 1},
            },
            "deepspeed": {"zero_optimization": {"stage": 0}},
        }
        write_yaml(folder / "training.yaml", training)
        static = {"entropy_model": None, "rule": {"kind": "static", "patch_bases": 4, "max_patch_bases": 8}}
        write_yaml(folder / "static.yaml", static)
        for name, model in MODEL.items():
            write_yaml(folder / f"{name}.yaml", {"model": model})
            contender = {"title": f"the {name} one", "recipe": [str(folder / f"{name}.yaml")]}
            if name == "hybrid":
                contender["annotation"] = {"name": "static4", "recipe": [str(folder / "static.yaml")]}
            write_yaml(folder / "contenders" / f"{name}.yaml", contender)
        tree = {**TREE, "recipe": [str(folder / "training.yaml")], **changes}
        genomes = tree["genomes"]
        assert isinstance(genomes, dict)
        tree["genomes"] = {name: {"fasta": str(fasta), **genome} for name, genome in genomes.items()}
        return write_yaml(folder / "toy.yaml", tree)

    return make


@pytest.fixture
def benchmark_of(make_benchmark: Callable[..., Path]) -> Callable[..., Benchmark]:
    """Loads a benchmark; keys given replace those of the toy one."""
    return lambda **changes: Benchmark.load(make_benchmark(**changes))
