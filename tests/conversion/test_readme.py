"""The commands of README's section on Evo 2 and Savanna, line by line, on made-up checkpoints."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from hyena_blt_savanna.conversion.huggingface import why_missing
from hyena_blt_savanna.evaluation.pretrained import HyenaBLTModel
from hyena_blt_savanna.testing.foreign_checkpoints import write_savanna
from hyena_blt_savanna.training.run_config import RunConfig

ROOT = Path(__file__).parents[2]


def commands() -> list[list[str]]:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## Coming from Evo 2 or Savanna") :]
    block = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines() if not line.startswith("#")]


def test_the_commands_work_line_by_line(
    tmp_path: Path,
    vortex_folder: Path,
    vortex_settings: dict[str, Any],
    savanna_module: dict[str, Tensor],
    savanna_settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(vortex_folder / "tiny.pt", tmp_path / "evo2_7b.pt")
    (tmp_path / "evo2-7b-1m.yml").write_text(yaml.safe_dump(vortex_settings))
    write_savanna(tmp_path / "savanna" / "global_step12500", [savanna_module], savanna_settings)
    specification = importlib.util.spec_from_file_location("convert", ROOT / "tools" / "convert_checkpoint.py")
    assert specification is not None
    assert specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    monkeypatch.chdir(tmp_path)
    done = []
    for program, *arguments in commands():
        if program == "launch/train.sh":
            stages = "training.stages=[{steps: 1, window_bases: 512, batch_windows: 1}]"
            files = [ROOT / argument if argument.startswith("configs/") else argument for argument in arguments]
            config = RunConfig.load([*files, stages])
            assert config.model.kind == "hyena_blt"
            done.append(str(config.start_from))
            continue
        assert arguments[0] == "tools/convert_checkpoint.py"
        if "transformers" in arguments and why_missing() is not None:
            continue
        monkeypatch.setattr(sys, "argv", arguments)
        assert tool.main() == 0, capsys.readouterr().err
        check = json.loads(capsys.readouterr().out)["check"]
        assert check["largest_difference"] <= 1e-5 * check["largest_logit"]
    assert done == ["runs/blt", "runs/blt-local"]
    for folder in ("runs/evo2", "runs/savanna"):
        assert HyenaBLTModel.load_from_checkpoint(folder).score("ACGTTGCA").bits_per_base > 0
