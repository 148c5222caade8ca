"""Durations as people write them."""

from __future__ import annotations


def readable_seconds(seconds: float) -> str:
    """A duration, such as 1:02:03 or 4:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
