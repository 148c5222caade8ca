"""Runs through the real code of Savanna, where it is checked out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyena_blt_savanna.savanna_plugin import checkout
from hyena_blt_savanna.savanna_plugin.versions import missing_packages
from hyena_blt_savanna.testing.ranks import run_ranks
from hyena_blt_savanna.testing.toy_genomes import write_toy_data


def needs_savanna() -> None:
    """Skips a test where upstream's code, or what it imports, is missing; says how to get it."""
    if not checkout.is_there():
        pytest.skip(f"the submodule savanna/ is not checked out: {checkout.HOW_TO_GET_IT}")
    if missing := missing_packages():
        pytest.skip(f"Savanna imports {', '.join(missing)}: install requirements-savanna.txt")


@pytest.fixture(scope="session")
def upstream() -> Path:
    """The folder of the submodule."""
    needs_savanna()
    return checkout.FOLDER


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a dataset: 20,000 bases to train on and 4,000 to validate on, with random patches."""
    return write_toy_data(tmp_path_factory.mktemp("data"), train=20_000, validation=4_000)


@pytest.fixture(scope="session")
def runs(upstream: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all runs of one rank, and what they found."""
    # Imported here: it imports what only training needs.
    from hyena_blt_savanna.testing.savanna_runs import one_rank

    folder = tmp_path_factory.mktemp("runs")
    [found] = run_ranks(one_rank, 1, toy_data, folder, timeout_seconds=3600)
    return folder, found


@pytest.fixture(scope="session")
def probed(upstream: Path, toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What Savanna's own code makes of models and data, and the folder of the latter."""
    from hyena_blt_savanna.testing.savanna_probes import probe

    folder = tmp_path_factory.mktemp("probes")
    [found] = run_ranks(probe, 1, toy_data, folder, timeout_seconds=3600)
    return folder, found


@pytest.fixture(scope="session")
def runs_of_two(runs: tuple[Path, dict[str, Any]], toy_data: Path) -> dict[str, Any]:
    """What the runs of two ranks found, on the first of them."""
    from hyena_blt_savanna.testing.savanna_runs import two_ranks

    folder, _ = runs
    return run_ranks(two_ranks, 2, toy_data, folder, folder / "native", timeout_seconds=3600)[0]
