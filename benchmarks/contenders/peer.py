"""What the peers share: they promise no durability, so the benchmark syncs their trees and counts it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from benchmarks.contenders.base import Contender, Pending
from benchmarks.files import fsync_tree
from benchmarks.workload import State


class SyncedAfterwards(Pending):
    """A save that is done when the library says so, and durable once its tree has been synced."""

    def __init__(
        self, path: Path, wait_safe: Callable[[], object] | None = None, wait_done: Callable[[], object] | None = None
    ) -> None:
        self._path = path
        self._wait_safe = wait_safe
        self._wait_done = wait_done
        self._lock = threading.Lock()
        self._synced = False

    def wait_safe(self) -> None:
        """As the library defines it; at once for a save that has already ended."""
        if self._wait_safe is not None:
            self._wait_safe()

    def wait_durable(self) -> None:
        """Wait for the library, then sync what it wrote; only the first caller syncs."""
        if self._wait_done is not None:
            self._wait_done()
        with self._lock:
            if not self._synced:
                fsync_tree(self._path)
                self._synced = True


class Peer(Contender):
    """A library that takes a state dict of the live tensors.

    The dict is built once, outside the clocks: no peer pays for naming its tensors.
    """

    def __init__(self, state: State, root: Path, arena_mb: int | None = None) -> None:
        super().__init__(state, root, arena_mb)
        self.state_dict = state.state_dict()

    def open(self) -> None:
        """Nothing to set up."""

    def path_of(self, step: int) -> Path:
        """One directory per step below the contender's own."""
        return self.root / f"step-{step:08d}"

    def close(self) -> None:
        """Nothing to release."""
