"""Elastic training: ranks die, the others go on.

run = elaswave.join()                  # under elastates run, torchrun, srun or mpirun

Importing it makes ``torch.distributed`` know the backend "elastic", as soon as torch is there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from elaswave import _registration

if TYPE_CHECKING:
    from elaswave.errors import ElasWaveError, FencedError, LaunchError, NoQuorumError, ViewError
    from elaswave.group import ElasticGroup, View
    from elaswave.join import join
    from elaswave.losses import PeerLost, lost
    from elaswave.run import Run

# Imported when used: the launcher's processes and the command line need no torch.
_HOMES = {
    "ElasWaveError": "elaswave.errors",
    "ElasticGroup": "elaswave.group",
    "FencedError": "elaswave.errors",
    "LaunchError": "elaswave.errors",
    "NoQuorumError": "elaswave.errors",
    "PeerLost": "elaswave.losses",
    "Run": "elaswave.run",
    "View": "elaswave.group",
    "ViewError": "elaswave.errors",
    "join": "elaswave.join",
    "lost": "elaswave.losses",
}

__all__ = [
    "ElasWaveError",
    "ElasticGroup",
    "FencedError",
    "LaunchError",
    "NoQuorumError",
    "PeerLost",
    "Run",
    "View",
    "ViewError",
    "join",
    "lost",
]

_registration.register_with_torch()


def __getattr__(name: str) -> object:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
