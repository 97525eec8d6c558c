"""Elastic training: ranks die, the others go on.

run = elaswave.join()                  # under elastates run, torchrun, srun or mpirun
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elaswave.errors import ElasWaveError, LaunchError
    from elaswave.join import join
    from elaswave.run import Run

# Imported when used: the launcher's processes and the command line need no torch.
_HOMES = {
    "ElasWaveError": "elaswave.errors",
    "LaunchError": "elaswave.errors",
    "Run": "elaswave.run",
    "join": "elaswave.join",
}

__all__ = ["ElasWaveError", "LaunchError", "Run", "join"]


def __getattr__(name: str) -> object:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
