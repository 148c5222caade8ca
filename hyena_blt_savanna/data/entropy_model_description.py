"""What manifests and patchers say of an entropy model."""

from __future__ import annotations

from hyena_blt_savanna.config import Config


class EntropyModelDescription(Config):
    """The entropy model behind a set of boundaries."""

    kind: str
    digest: str
    context_bases: int
