"""What a user's data can do wrong."""

from __future__ import annotations


class DataError(ValueError):
    """Data that can't be used: the message names the file and says what to change."""


class DiskFullError(DataError):
    """A file could not be written whole for want of space: nothing of it is left behind."""
