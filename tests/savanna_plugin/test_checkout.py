from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from hyena_blt_savanna.savanna_plugin import checkout
from hyena_blt_savanna.savanna_plugin import cpu_mode as cpu_mode_module
from hyena_blt_savanna.savanna_plugin.checkout import SavannaError, add_to_path, import_savanna
from hyena_blt_savanna.savanna_plugin.cpu_mode import attention, cpu_mode
from hyena_blt_savanna.savanna_plugin.replacements import Replacements


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a clone has in the place of the submodule."""
    folder = tmp_path / "savanna"
    folder.mkdir()
    monkeypatch.setattr(checkout, "FOLDER", folder)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if not path.endswith("savanna"))])
    for name in [name for name in sys.modules if name.split(".")[0] == "savanna"]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def test_an_empty_folder_is_no_savanna(empty_folder: Path) -> None:
    import savanna  # type: ignore[import-not-found,unused-ignore]

    assert savanna.__file__ is None
    assert not checkout.is_there()
    with pytest.raises(SavannaError, match=f"not in {empty_folder}: run `git submodule update --init savanna`"):
        add_to_path()


def test_the_real_package_wins_over_the_empty_one(empty_folder: Path) -> None:
    import savanna  # type: ignore[import-not-found,unused-ignore]

    assert savanna.__file__ is None
    package = empty_folder / "savanna"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "training.py").write_text("import a_package_that_nobody_has")
    (empty_folder / "tests").mkdir()
    with pytest.raises(SavannaError, match="Savanna imports a_package_that_nobody_has, which is not installed"):
        import_savanna("savanna.training")
    assert sys.modules["savanna"].__file__ == str(package / "__init__.py")
    # Its own tests and tuner stay behind ours.
    assert sys.path[-1] == str(empty_folder)


def test_replacements_are_undone_last_one_first() -> None:
    class Owner:
        kept = 1

    mapping = {"a": 1}
    with Replacements() as replaced:
        replaced.set(Owner, "kept", 2)
        replaced.set(Owner, "kept", 3)
        replaced.set(Owner, "new", 4)
        replaced.set_item(mapping, "a", 5)
        replaced.set_item(mapping, "b", 6)
        assert (Owner.kept, Owner.new, mapping) == (3, 4, {"a": 5, "b": 6})  # type: ignore[attr-defined]
    assert (Owner.kept, hasattr(Owner, "new"), mapping) == (1, False, {"a": 1})


def test_the_cpu_mode_is_for_machines_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SavannaError, match="for machines without CUDA"), cpu_mode():
        pass


def test_what_the_cpu_mode_has_not_is_refused() -> None:
    with pytest.raises(ImportError, match=r"transformer_engine\.Linear needs CUDA, and this is the CPU mode"):
        cpu_mode_module._missing_in("transformer_engine")("Linear")
    # Only what is asked for: Python's own questions are answered as everywhere.
    with pytest.raises(AttributeError):
        cpu_mode_module._missing_in("transformer_engine")("__wrapped__")
    with pytest.raises(SavannaError, match="in the CPU mode use the operator flash_v2"):
        cpu_mode_module._refuse()


def test_attention_of_the_cpu_mode_is_softmax_of_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2 * 5, 3, 2, 4, generator=generator)
    z = attention(qkv, torch.tensor([0, 5, 10]), 5, causal=True)
    for row in range(2):
        for head in range(2):
            q, k, v = (qkv[row * 5 : row * 5 + 5, part, head] for part in range(3))
            scores = (q @ k.t() / 2).masked_fill(torch.triu(torch.ones(5, 5), 1).bool(), -torch.inf)
            torch.testing.assert_close(z[row * 5 : row * 5 + 5, head], scores.softmax(1) @ v)
