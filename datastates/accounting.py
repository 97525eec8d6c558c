"""Accounting: what became of a checkpointer's checkpoints: its counters, its events, and the failures that are due."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

from datastates.config import MB, CheckpointerConfig, CheckpointStats
from datastates.directory import CheckpointDirectory
from datastates.errors import CheckpointError, CheckpointSkipped
from datastates.handle import Checkpoint
from datastates.publishing import Volume
from datastates.sight import events
from datastates.sight.bus import emit, sinks
from datastates.sight.events import Event, Origin
from datastates.tiers.replication import Report

logger = logging.getLogger("datastates")


class Accounts:
    """The books of one checkpointer. Thread-safe: lanes write what the training thread asks for."""

    def __init__(self, config: CheckpointerConfig, directory: CheckpointDirectory, origin: Origin) -> None:
        self._config = config
        self._directory = directory
        self._origin = origin
        self._lock = threading.Lock()
        self._stats = CheckpointStats()  # guarded by _lock, as all below
        self._failures: list[CheckpointError] = []
        self._consecutive_failures = 0

    def stats(self) -> CheckpointStats:
        """Counters since construction; those of the arena and of retries are not kept here."""
        with self._lock:
            return self._stats

    # ---- what happened

    def begun(self, call_s: float) -> None:
        """A checkpoint was taken, by a call that took so many seconds."""
        with self._lock:
            stats = self._stats
            self._stats = replace(stats, num_begun=stats.num_begun + 1, call_s_total=stats.call_s_total + call_s)

    def waited(self, wait_s: float) -> None:
        """A gate held training up for so many seconds."""
        with self._lock:
            self._stats = replace(self._stats, gate_wait_s_total=self._stats.gate_wait_s_total + wait_s)

    def finished(self, checkpoint: Checkpoint, error: CheckpointError | None, volume: Volume) -> None:
        """A checkpoint was published, or never will be. On the commit lane, or the plan lane if it got no further."""
        elapsed_s = time.monotonic() - checkpoint.begun_s
        with self._lock:
            if error is None:
                self._count_published(checkpoint.step, volume, elapsed_s)
            elif isinstance(error, CheckpointSkipped):
                self._stats = replace(self._stats, num_skipped=self._stats.num_skipped + 1)
            else:
                self._consecutive_failures += 1
                self._failures.append(error)
                self._stats = replace(self._stats, num_failed=self._stats.num_failed + 1)
        if error is not None and not isinstance(error, CheckpointSkipped):
            logger.warning("%s (%s)", error, type(error).__name__)
        if sinks:
            emit(self._outcome(checkpoint.step, error, volume.size_bytes, elapsed_s))

    def _count_published(self, step: int, volume: Volume, elapsed_s: float) -> None:
        """REQUIRES: the lock is held."""
        stats = self._stats
        self._consecutive_failures = 0
        self._stats = replace(
            stats,
            num_durable=stats.num_durable + 1,
            last_durable_step=step,
            last_durable_mb_s=volume.size_bytes / MB / elapsed_s,
            bytes_published_total=stats.bytes_published_total + volume.size_bytes,
            bytes_written_total=stats.bytes_written_total + volume.written_bytes,
            num_deltas=stats.num_deltas + volume.is_delta,
        )

    def _outcome(self, step: int, error: CheckpointError | None, size_bytes: int, elapsed_s: float) -> Event:
        if error is None:
            path = str(self._directory.of_step(step))
            return events.Published(self._origin, step=step, path=path, size_bytes=size_bytes, since_begun_s=elapsed_s)
        if isinstance(error, CheckpointSkipped):
            return events.Skipped(self._origin, step=step, reason=str(error))
        kind = type(error).__name__
        return events.Failed(self._origin, step=step, error=str(error), error_type=kind, since_begun_s=elapsed_s)

    def replicated(self, report: Report) -> None:
        """Every tier has said what became of a checkpoint there. On a tier's lane."""
        with self._lock:
            stats = self._stats
            self._stats = replace(
                stats,
                num_replicated=stats.num_replicated + report.num_copied,
                num_replications_failed=stats.num_replications_failed + report.num_failed,
                num_replications_passed_over=stats.num_replications_passed_over + report.num_passed_over,
                bytes_replicated_total=stats.bytes_replicated_total + report.sent_bytes,
                last_replicated_step=report.step if report.num_copied else stats.last_replicated_step,
            )

    # ---- what is due

    def raise_due(self) -> None:
        """Raise what ``on_failure`` and ``max_consecutive_failures`` say must be raised now."""
        with self._lock:
            if not self._failures:
                return
            num_failed = self._consecutive_failures
            always = num_failed >= self._config.max_consecutive_failures
            last = self._failures[-1]
            if not always:
                self._failures.clear()
        if always:
            raise CheckpointError(f"{num_failed} checkpoints failed in a row; the last one: {last}") from last
        if self._config.on_failure == "raise":
            raise last

    def begin_anew(self) -> None:
        """After going back: failures of the past are nobody's any more."""
        with self._lock:
            self._failures.clear()
            self._consecutive_failures = 0
