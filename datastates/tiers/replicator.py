"""The lanes that copy published checkpoints to tiers, one thread per tier, behind training. Rank 0 only.

While one checkpoint is under way to a tier, at most one waits: the newest. A slow tier takes fewer checkpoints; it
never delays one, nor keeps more than two from being pruned locally.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datastates.errors import CheckpointError, ReplicationError
from datastates.save_job import forget_frames
from datastates.tiers.config import Tier
from datastates.tiers.pace import Pace, Stopped
from datastates.tiers.retention import prune
from datastates.tiers.shelf import Shelf
from datastates.tiers.stores import Store
from datastates.tiers.upload import Uploaded, upload
from datastates.tiers.writer import Writer

logger = logging.getLogger("datastates")


@dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint in one tier."""

    tier: Tier
    step: int
    uploaded: Uploaded | None = None
    error: CheckpointError | None = None
    """Neither: the tier does not take this one."""
    seconds: float = 0.0
    """What it took."""


Told = Callable[[Outcome], None]


@dataclass(frozen=True)
class Offer:
    """A published checkpoint that a tier may take."""

    step: int
    path: Path
    told: Told


class TierLane:
    """Copies to one tier. Thread-safe; owns its thread from the first offer to :meth:`close`."""

    def __init__(self, tier: Tier, store: Store) -> None:
        self.tier = tier
        self.damaged: set[int] = set()
        """Steps whose copy in the store is damaged: it makes way when the step is taken again."""
        self.store = store
        self.pace = Pace(tier.bandwidth_mb_s, tier.retry_for_s)
        self._shelf = Shelf(self.store, self._get, tier.part_bytes)
        self._writer = Writer(self.store, self.pace)
        self._changed = threading.Condition()
        self._last_taken: int | None = None  # guarded by _changed, as all below
        self._waiting: Offer | None = None
        self._active: Offer | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    def offer(self, offer: Offer) -> None:
        """Take a checkpoint now, later, or not at all; ``offer.told`` hears what came of it, on some thread."""
        with self._changed:
            if self._closing or not due(offer.step, self._last_taken, self.tier.every):
                dropped: Offer | None = offer
            else:
                dropped, self._waiting = self._waiting, offer
                self._last_taken = offer.step
                self._start()
                self._changed.notify_all()
        if dropped is not None:
            dropped.told(Outcome(self.tier, dropped.step))

    def pinned(self) -> set[int]:
        """Steps whose local files are still needed."""
        with self._changed:
            return {offer.step for offer in (self._waiting, self._active) if offer is not None}

    def close(self, timeout_s: float | None) -> bool:
        """Finish what was taken, then end the thread; returns whether ``timeout_s`` was enough. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is None:
            return True
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._thread is not None:
                if not self._changed.wait(None if end_s is None else max(0.0, end_s - time.monotonic())):
                    self.pace.stop()  # what was sent stays, for the next job to go on with
                    return False
        thread.join()
        return True

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: an interpreter that exits without close() must not wait for a dead server for ever.
            self._thread = threading.Thread(target=self._run, name="ds-upload", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None:
                    if self._closing:
                        self._thread = None
                        self._changed.notify_all()
                        return
                    self._changed.wait()
                self._active, self._waiting = self._waiting, None
                offer = self._active
            outcome = self._take(offer)
            with self._changed:
                self._active = None
                if outcome.error is not None and self._last_taken == offer.step:
                    self._last_taken = None  # the next one is due, whatever ``every`` says
            self._tell(offer, outcome)
            if outcome.uploaded is not None:
                self._prune(offer.step)

    @staticmethod
    def _tell(offer: Offer, outcome: Outcome) -> None:
        try:
            offer.told(outcome)
        except Exception:  # a dead lane would leave close() without an end
            logger.exception("what became of the copy of step %d to %s was not heard", offer.step, outcome.tier.url)

    def _take(self, offer: Offer) -> Outcome:
        begun_s = time.monotonic()
        try:
            self._writer.check()
            uploaded = upload(
                self.store,
                offer.path,
                offer.step,
                shelf=self._shelf,
                pace=self.pace,
                threads=self.tier.threads,
                part_bytes=self.tier.part_bytes,
                damaged=frozenset(self.damaged),
                check_writer=self._writer.check,
            )
            self.damaged.discard(offer.step)
            return Outcome(self.tier, offer.step, uploaded, seconds=time.monotonic() - begun_s)
        except Exception as error:  # noqa: BLE001  (a lane accounts for everything)
            return Outcome(self.tier, offer.step, error=as_replication_error(offer.step, self.tier, error))

    def _get(self, name: str) -> bytes:
        return self.pace.retried(lambda: self.store.get(name), f"reading {name} of {self.tier.url}")

    def _prune(self, verified: int) -> None:
        try:
            self._writer.check()
            prune(self.store, self._shelf, self.tier, verified, self.damaged, self.pace)
        except Stopped:
            return
        except Exception:
            logger.exception("retention could not remove old checkpoints of %s", self.tier.url)


def due(step: int, last_taken: int | None, every: int | None) -> bool:
    """Whether a tier that copied ``last_taken`` last takes ``step``; going back to an older step begins anew."""
    return every is None or last_taken is None or step < last_taken or step - last_taken >= every


def as_replication_error(step: int, tier: Tier, error: Exception) -> ReplicationError:
    """``error`` as one that says which checkpoint was not copied where, and what becomes of it."""
    if isinstance(error, Stopped):
        text = "the job ended first; the next one goes on with it, or with a newer one"
    else:
        text = str(error) if isinstance(error, ReplicationError) else f"{type(error).__name__}: {error}"
    wrapped = ReplicationError(f"checkpoint of step {step} was not copied to {tier.url}: {text}")
    wrapped.__cause__ = error
    forget_frames(error)
    return wrapped
