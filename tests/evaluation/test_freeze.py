from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyena_blt_savanna.evaluation.freeze import freeze_entropy_model
from hyena_blt_savanna.evaluation.native_checkpoint import PretrainedError, save_pretrained
from hyena_blt_savanna.model.hyena_blt import HyenaBLTConfig
from hyena_blt_savanna.model.isotropic import IsotropicConfig
from hyena_blt_savanna.patching.entropy_models import load_entropy_model, read_about

ROOT = Path(__file__).parents[2]
TRAINED_ON = {"data_sha256": "ab", "left_out": {"fold": 0, "folds": 2}}


def checkpoint(folder: Path, *blocks: str, **changes: Any) -> IsotropicConfig:
    stack = {"width": 8, "num_heads": 2, "blocks": list(blocks), "hyena": {"mr_taps": 20}} | changes
    config = IsotropicConfig.parse({"stack": stack, "kmers": {"sizes": [2]}})
    save_pretrained(folder, config.build().state_dict(), config, None, trained_on=TRAINED_ON)
    return config


def test_the_frozen_model_gives_the_entropies_of_the_trained_one(tmp_path: Path) -> None:
    config = checkpoint(tmp_path / "native", "hyena_se", "hyena_mr")
    path = tmp_path / "model.safetensors"
    command = [sys.executable, str(ROOT / "tools" / "freeze_entropy_model.py"), str(tmp_path / "native")]
    subprocess.run(
        [*command, "--to", str(path)],
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    model = load_entropy_model(path)
    assert read_about(path) == {"trained_on": TRAINED_ON}
    assert model.config.to_dict()["model"] == config.to_dict()
    network = config.build()
    network.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in model.tensors().items()})
    bases = np.frombuffer(b"ACGTTGCAAC" * 5, dtype=np.uint8)
    with torch.no_grad():
        log_p = network(torch.tensor([[0, *bases[:-1].tolist()]]))[0, :, list(b"ACGT")].log_softmax(-1)
    np.testing.assert_allclose(model.entropies(bases), -(log_p.exp() * log_p).sum(-1), atol=1e-4)


@pytest.mark.parametrize(
    ("block", "message"), [("hyena_li", "use hyena_se or hyena_mr"), ("attention", "set stack.attention.window")]
)
def test_a_model_that_reads_without_end_is_refused(tmp_path: Path, block: str, message: str) -> None:
    checkpoint(tmp_path / "native", "hyena_se", block)
    with pytest.raises(PretrainedError, match=message):
        freeze_entropy_model(tmp_path / "native", tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_model_of_patches_is_refused(tmp_path: Path) -> None:
    config = HyenaBLTConfig.parse(
        {"local_width": 8, "max_patch_bases": 4, "global_model": {"width": 8, "blocks": ["hyena_se"]}}
    )
    save_pretrained(tmp_path / "native", config.build().state_dict(), config, None)
    with pytest.raises(PretrainedError, match=r"kind 'hyena_blt'.*configs/model/entropy\.yaml"):
        freeze_entropy_model(tmp_path / "native", tmp_path / "model.safetensors")


def test_the_tool_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "freeze_entropy_model.py"), str(tmp_path / "none"), "--to", "x"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not exist" in done.stderr
