"""A dataset for the tests of this room, whose property tests run without a deadline: the first compiles kernels."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from hyena_blt_savanna.testing.toy_genomes import toy_documents, write_dataset, write_random_boundaries

settings.register_profile("data", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("data")


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> Path:
    """Prefix of a dataset of several blocks, with tags, joins, masks and N, annotated on both strands."""
    prefix = tmp_path_factory.mktemp("toy") / "train"
    documents = [*toy_documents(1, 12, 30_000), (b"", np.frombuffer(b"A", dtype=np.uint8)), *toy_documents(2, 30, 50)]
    write_dataset(prefix, documents)
    write_random_boundaries(prefix, longest_patch_bases=16)
    return prefix
