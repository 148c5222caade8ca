"""The models as classes of Hugging Face transformers: what an export holds as code. See `transformers_export`."""

from __future__ import annotations

import importlib.util

REQUIREMENT = "transformers==5.23.0"
"""What these classes are written for and tested with."""


def why_missing() -> str | None:
    """Why there is no transformers here, and what to do; None where it is installed."""
    if importlib.util.find_spec("transformers") is not None:
        return None
    return f"transformers is not installed: pip install {REQUIREMENT}"
