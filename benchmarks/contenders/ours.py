"""Ours: ``datastates.Checkpointer`` with its defaults but for the arena's size and retention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datastates
from benchmarks.contenders.base import Contender, Pending
from benchmarks.machine import MB


class OursPending(Pending):
    """The futures of one checkpoint; durable means published: nothing is left for the benchmark to sync."""

    def __init__(self, handle: datastates.Checkpoint) -> None:
        self._handle = handle

    def wait_safe(self) -> None:
        """Every byte has been copied."""
        self._handle.safe_to_mutate.result()

    def wait_durable(self) -> None:
        """The manifest is committed and the parent directory synced."""
        self._handle.durable.result()


class Ours(Contender):
    """Takes the module and the optimizer themselves: what the optimizer writes is copied lazily."""

    name = "ours"
    arena_bytes = 0

    def open(self) -> None:
        """Allocate the arena and start the engine's threads."""
        # The benchmark deletes checkpoints itself, outside the clocks, as it does for every contender.
        self._checkpoints = datastates.Checkpointer(self.root, arena_mb=self.arena_mb, keep_last=None)

    def save(self, step: int) -> Pending:
        """Register the state; copies happen behind the caller."""
        return OursPending(self._checkpoints.checkpoint(step, self.state.live()))

    def restore(self, step: int) -> dict[str, Any]:
        """Newest checkpoint, in place, every extent verified; the benchmark keeps only the one it wants."""
        resumed_at = self._checkpoints.restore(self.state.live())
        if resumed_at != step + 1:
            raise RuntimeError(f"{self.root}: restored step {resumed_at - 1}, expected {step}")
        return self.state.progress

    def path_of(self, step: int) -> Path:
        """As docs/format.md names it."""
        return self.root / f"step-{step:08d}"

    def close(self) -> None:
        """Drain and free the arena."""
        self.arena_bytes = self._checkpoints.stats().arena_bytes
        self._checkpoints.close()

    def settings(self) -> dict[str, Any]:
        """The arena that was used, also where the library chose it."""
        return {"arena_mb": self.arena_bytes / MB}
