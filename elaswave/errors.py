"""Everything this package raises, apart from ``ValueError`` and ``TypeError`` for bad arguments."""

from __future__ import annotations


class ElasWaveError(Exception):
    """Base of all errors of this package."""


class LaunchError(ElasWaveError):
    """A job could not be started or joined; the message names what is missing or who did not come."""


class ViewError(ElasWaveError):
    """The members of a group could not agree on a view, or not take it up."""


class NoQuorumError(ViewError):
    """Too few members are left on this side: the others may go on without it, so it must not."""


class FencedError(ViewError):
    """The others have gone on without this process."""
