"""Replication: what a checkpointer holds, on every rank. Rank 0 copies, for the directory is one; the others listen.

Copying is no part of saving: what fails here fails the handle's ``replicated`` alone.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from datastates.coordination import Channel
from datastates.directory import CheckpointDirectory
from datastates.errors import CheckpointError, DirectoryBusyError, ReplicationError
from datastates.handle import Checkpoint
from datastates.lanes import Lane
from datastates.sight.bus import emit, sinks
from datastates.sight.events import Event, Origin, Replicated, ReplicationFailed
from datastates.tiers.config import Tier
from datastates.tiers.replicator import Offer, Outcome, TierLane
from datastates.tiers.stores import Store

logger = logging.getLogger("datastates")

HEAR_S = 5.0
"""Between two looks at whether rank 0 is still there, seconds."""


@dataclass(frozen=True)
class Report:
    """What became of one checkpoint in all tiers."""

    step: int
    url: str | None = None
    """In the last tier that took it."""
    error: str | None = None
    num_copied: int = 0
    num_failed: int = 0
    num_passed_over: int = 0
    sent_bytes: int = 0


Finished = Callable[[Report], None]
"""Called once for every durable checkpoint, before its ``replicated`` is resolved."""


class Replication:
    """Hands published checkpoints to the lanes of the tiers."""

    def __init__(
        self,
        tiers: Sequence[Tier],
        store: Callable[[int], Store],
        channel: Channel,
        origin: Origin,
        finished: Finished,
    ) -> None:
        self._channel = channel
        self._origin = origin
        self._finished = finished
        self._lock = threading.Lock()  # of the channel: every lane tells
        self.lanes = [TierLane(tier, store(n)) for n, tier in enumerate(tiers)] if channel.rank == 0 else []
        self._hearing: Lane[Checkpoint] = Lane("ds-replicated", self._hear, self._hear_failed)

    def published(self, checkpoint: Checkpoint, path: Path) -> None:
        """On the commit lane of every rank, before anything is pruned: every tier may take this checkpoint."""
        if self._channel.rank == 0:
            self._offer(checkpoint.step, path, lambda report: self._tell(checkpoint, report))
        else:
            self._hearing.put(checkpoint)

    def restored(self, directory: CheckpointDirectory, step: int, damaged: Collection[int]) -> None:
        """Rank 0: after a restore, go on with what the job before this one may not have finished copying.

        Args:
            directory: of the checkpoints.
            step: what was restored; -1: nothing.
            damaged: steps of which no whole copy was found: theirs in the tiers make way when they are taken again.
        """
        for lane in self.lanes:
            lane.damaged.update(damaged)
        if not self.lanes or step < 0:
            return
        try:
            directory.lock()  # only who writes here copies from here
        except (
            DirectoryBusyError,
            OSError,
        ) as error:  # somebody else writes here, or nobody can: it is restored anyway
            logger.warning("nothing is copied to tiers before the first checkpoint: %s", error)
            return
        self._offer(step, directory.of_step(step), self._account)

    def pinned(self) -> set[int]:
        """Steps that are not to be pruned, because they are being copied or are next."""
        return set().union(*(lane.pinned() for lane in self.lanes))

    def close(self, timeout_s: float | None) -> bool:
        """Finish what is under way, and end the threads; returns whether ``timeout_s`` was enough. Idempotent."""
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        closing: list[TierLane | Lane[Checkpoint]] = [*self.lanes, self._hearing]
        done = True
        for one in closing:  # each, also when there is no time left: it stops what is under way
            done = one.close(None if end_s is None else max(0.0, end_s - time.monotonic())) and done
        return done

    def num_retries(self) -> int:
        return sum(lane.pace.num_retries for lane in self.lanes)

    # ---- rank 0

    def _offer(self, step: int, path: Path, told: Callable[[Report], None]) -> None:
        outcomes: list[Outcome] = []

        def hear(outcome: Outcome) -> None:
            if sinks and (event := event_of(outcome, self._origin)):
                emit(event)
            with self._lock:
                outcomes.append(outcome)
                complete = len(outcomes) == len(self.lanes)
            if complete:
                told(report_of(step, outcomes, [lane.tier for lane in self.lanes]))

        for lane in self.lanes:
            lane.offer(Offer(step, path, hear))

    def _tell(self, checkpoint: Checkpoint, report: Report) -> None:
        self._account(report)
        if self._channel.num_ranks > 1:
            try:
                with self._lock:
                    self._channel.tell(_key(checkpoint), json.dumps(asdict(report)).encode())
            except CheckpointError as error:
                logger.warning("the other ranks do not hear of the copy of step %d: %s", checkpoint.step, error)
        _resolve(checkpoint, report)

    def _account(self, report: Report) -> None:
        if report.error is not None:
            logger.warning("%s", report.error)
        self._finished(report)

    # ---- the other ranks

    def _hear(self, checkpoint: Checkpoint) -> None:
        raw = None
        while raw is None:
            raw = self._channel.hear(_key(checkpoint), HEAR_S)
        report = Report(**json.loads(raw))
        self._finished(report)
        _resolve(checkpoint, report)

    def _hear_failed(self, checkpoint: Checkpoint, error: Exception) -> None:
        text = f"whether the checkpoint of step {checkpoint.step} was copied is unknown: {error}"
        report = Report(checkpoint.step, error=text, num_failed=1)
        self._account(report)
        _resolve(checkpoint, report)


def report_of(step: int, outcomes: Sequence[Outcome], tiers: Sequence[Tier]) -> Report:
    """All tiers' outcomes in one; pure."""
    copied = {outcome.tier.url: outcome.uploaded for outcome in outcomes if outcome.uploaded is not None}
    urls = [copied[tier.url].url for tier in tiers if tier.url in copied]
    failed = [outcome.error for outcome in outcomes if outcome.error is not None]
    return Report(
        step=step,
        url=urls[-1] if urls else None,
        error="; ".join(map(str, failed)) or None,
        num_copied=len(copied),
        num_failed=len(failed),
        num_passed_over=len(outcomes) - len(copied) - len(failed),
        sent_bytes=sum(uploaded.sent_bytes for uploaded in copied.values()),
    )


def event_of(outcome: Outcome, origin: Origin) -> Event | None:
    """What sinks hear of an outcome; nothing, if the tier does not take the checkpoint."""
    if outcome.uploaded is not None:
        url, size_bytes = outcome.uploaded.url, outcome.uploaded.size_bytes
        return Replicated(origin, step=outcome.step, url=url, size_bytes=size_bytes, seconds=outcome.seconds)
    if outcome.error is not None:
        kind = type(outcome.error.__cause__ or outcome.error).__name__
        error = str(outcome.error)
        return ReplicationFailed(origin, step=outcome.step, url=outcome.tier.url, error=error, error_type=kind)
    return None


def _resolve(checkpoint: Checkpoint, report: Report) -> None:
    if report.error is not None:
        checkpoint.replicated._fail(ReplicationError(report.error))
    else:
        checkpoint.replicated._resolve(report.url)


def _key(checkpoint: Checkpoint) -> str:
    return f"replicated/{checkpoint.ordinal}"
