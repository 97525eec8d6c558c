"""Whose arenas are looked at when metrics are asked for."""

from __future__ import annotations

import threading
import weakref
from typing import Any, Protocol

from datastates.sight.events import Origin


class Observed(Protocol):
    """A checkpointer, as metrics see it."""

    origin: Origin

    def arena_use(self) -> tuple[int, int]:
        """Bytes in use, and bytes in all."""


_lock = threading.Lock()
_observed: weakref.WeakSet[Any] = weakref.WeakSet()  # guarded by _lock


def observe(one: Observed) -> None:
    """Look at ``one`` for as long as it lives."""
    with _lock:
        _observed.add(one)


def observed() -> list[Observed]:
    """Those alive now."""
    with _lock:
        return list(_observed)
