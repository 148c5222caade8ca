"""What holds for all tests: the longest files come first, and no test finds the kernels that another one has put in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hyena_blt_savanna.model.fused import without_kernels

LONGEST_FIRST = [
    "test_slurm_jobs.py",
    "test_pretrain.py",
    "test_mesh_laws.py",
    "test_autoencoder.py",
    "test_entropy_model.py",
    "test_context.py",
    "test_engine.py",
    "test_quickstart.py",
    "test_resharding.py",
    "test_running.py",
    "test_stages.py",
    "test_fp8.py",
    "test_random_slices.py",
    "test_auxiliary.py",
    "test_soak.py",
    "test_annotate_source.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves them to the front, so that none of them is alone at the end; the others stay as they were."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def _own_kernels() -> Iterator[None]:
    """A training in the process puts in a CPU's kernels, whose operations torch's counter doesn't see."""
    with without_kernels():
        yield
