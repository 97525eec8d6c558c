"""Timeline: what the planning lane was busy with, so that whoever waited for it can be told."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """What a gate waits for."""

    AGREEMENT = "agreement"
    """Another rank had not begun the checkpoint yet, or its answer was under way."""
    PLANNING = "planning"
    """Checking the answers, making the plan, checking for space."""
    ARENA = "arena"
    """The arena was being allocated: once, for the first checkpoint."""
    PYTHON_STATE = "python state"
    """The Python state of an earlier checkpoint was being written and synced."""
    STORAGE = "storage"
    """Every block of the arena held bytes that storage had not taken yet."""
    COPYING = "copying"
    """The copy threads had not come that far."""


@dataclass(frozen=True)
class Activity:
    """A stretch of monotonic time; those of one timeline do not overlap."""

    cause: Cause
    begin_s: float
    end_s: float
    rank: int | None = None
    """Whom an agreement waited for."""


class Timeline:
    """The activities of one lane, the last few hundred of them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._activities: collections.deque[Activity] = collections.deque(maxlen=512)  # guarded by _lock

    @contextmanager
    def doing(self, cause: Cause) -> Iterator[None]:
        """What happens inside is an activity, however it ends."""
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self.add([Activity(cause, begin_s, time.monotonic())])

    def add(self, activities: Iterable[Activity]) -> None:
        with self._lock:
            self._activities.extend(activities)

    def within(self, begin_s: float, end_s: float) -> list[Activity]:
        """The parts of activities that lie in [begin_s, end_s)."""
        with self._lock:
            found = list(self._activities)
        clipped = (Activity(a.cause, max(a.begin_s, begin_s), min(a.end_s, end_s), a.rank) for a in found)
        return [a for a in clipped if a.begin_s < a.end_s]
