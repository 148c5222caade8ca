"""What travels with an export: flattened modules, and the packages that they need."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hyena_blt_savanna.conversion.huggingface import REQUIREMENT
from hyena_blt_savanna.conversion.huggingface.flat_sources import flatten

ROOT = Path(__file__).parents[2]


def test_a_module_that_is_imported_whole_is_named_as_transformers_reads_it(tmp_path: Path) -> None:
    from transformers.dynamic_module_utils import get_relative_imports

    text = flatten(["hyena_blt_savanna.model.operators"]).files["hyena_blt_savanna_model_operators.py"]
    assert "from . import hyena_blt_savanna_model_flops as flops" in text
    (tmp_path / "operators.py").write_text(text)
    assert "hyena_blt_savanna_model_flops" in get_relative_imports(tmp_path / "operators.py")


def test_the_requirement_is_the_one_of_the_project() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert REQUIREMENT in [line.split(" ")[0] for line in lines]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["transformers"] == [REQUIREMENT]
