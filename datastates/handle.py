"""Checkpoint: what ``checkpoint()`` returns, the handle of one checkpoint on its way to storage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datastates.capture import Captured
from datastates.errors import CheckpointError
from datastates.futures import CheckpointFuture
from datastates.sight.stalls import ChainReading

import _elastates

SIGNAL_CHECK_S = 0.5
"""Longest native wait of the training thread, seconds."""


class Checkpoint:
    """One checkpoint in flight.

    Attributes:
        step: the step it was taken after.
        safe_to_mutate: every byte this rank stores has been copied; the state may be written to.
        written: this rank's files are complete and fsynced.
        durable: the checkpoint is published, on every rank; the result is its path.
        replicated: every tier that takes it has a whole, verified copy; the result is the URL of the one in the last
            of them, or ``None`` if no tier takes it: there is none, it is not due, or a newer one came first.
    """

    def __init__(
        self, step: int, ordinal: int, captured: Captured | None, metadata: dict[str, Any], refusal: str = ""
    ) -> None:
        self.step = step
        self.safe_to_mutate: CheckpointFuture[None] = CheckpointFuture(on_wait=self._hurry)
        self.written: CheckpointFuture[None] = CheckpointFuture()
        self.durable: CheckpointFuture[Path] = CheckpointFuture()
        self.replicated: CheckpointFuture[str | None] = CheckpointFuture()
        self.ordinal = ordinal
        self.metadata = metadata
        self.refusal = refusal  # why this rank could not capture its state, for the other ranks to hear
        self.begun_s = time.monotonic()
        self.captured = captured
        self.snapshot: Any = None  # _elastates.Snapshot, once submitted
        self.submitted_s: float | None = None
        self.size_bytes = 0  # of this rank's data file, once submitted
        self.chain_at_submission: ChainReading | None = None
        self._submitted = threading.Event()
        self._hurried = False

    def submitted(self, snapshot: Any, size_bytes: int = 0, chain: ChainReading | None = None) -> None:
        """The engine has it, or never will."""
        self.submitted_s = time.monotonic() if snapshot is not None else None
        self.size_bytes = size_bytes
        self.chain_at_submission = chain
        self.snapshot = snapshot
        self._submitted.set()
        if self._hurried:
            self._hurry()

    def _hurry(self) -> None:
        """Somebody waits for the copies: from now on they are made as fast as they can be."""
        self._hurried = True
        if self.snapshot is not None:
            self.snapshot.hurry()

    def let_go(self) -> None:
        """The live state is no longer needed: it was copied, or never will be. Idempotent."""
        captured, self.captured = self.captured, None
        if captured is not None:
            captured.let_go()

    def fail(self, error: CheckpointError) -> None:
        """It will not be published. The futures not yet reached raise ``error``."""
        self._submitted.set()
        for future in (self.safe_to_mutate, self.written, self.durable, self.replicated):
            future._fail(error)

    def groups_written_by(self, optimizer: torch.optim.Optimizer) -> set[int]:
        """Native groups with memory of this checkpoint that ``optimizer`` writes; none once all has been copied."""
        captured = self.captured
        return captured.writers.groups_of(optimizer) if captured is not None else set()

    def wait_groups_copied(self, groups: Collection[int]) -> None:
        """Wait until the state that belongs to ``groups`` may be written to, because it was copied or never will be."""
        if not groups:
            return  # not even for the other ranks' agreement
        self._submitted.wait()
        if self.snapshot is None:
            return
        for group in groups:
            if not self._wait_natively(partial(self.snapshot.wait_group_copied, group)):
                return

    def wait_copied(self) -> None:
        """Like :meth:`wait_groups_copied` for everything; the Python state, encoded at the call, is not waited for."""
        self._submitted.wait()
        if self.snapshot is not None:
            self._wait_natively(self.snapshot.wait_copied)

    def _wait_natively(self, wait: Callable[[float], None]) -> bool:
        """In short native waits, between which Python handles signals: Ctrl-C ends a wait for storage that hangs.

        Returns whether what was waited for has been copied; if not, the checkpoint failed, so its sources are free. Its
        own lane reports the failure: that is waited for too, so that whoever waits here sees it.
        """
        while True:
            try:
                wait(SIGNAL_CHECK_S)
            except TimeoutError:
                continue
            except _elastates.StatusError:
                self.safe_to_mutate.exception()
                return False
            return True
