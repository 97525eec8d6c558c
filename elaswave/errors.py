"""Everything this package raises, apart from ``ValueError`` and ``TypeError`` for bad arguments."""

from __future__ import annotations


class ElasWaveError(Exception):
    """Base of all errors of this package."""


class LaunchError(ElasWaveError):
    """A job could not be started or joined; the message names what is missing or who did not come."""
