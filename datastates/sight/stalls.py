"""Stalls: how long training waited at gates, and why.

A gate waits for a checkpoint's bytes to be copied. Until the engine has the checkpoint, the wait is for whatever the
planning lane does; after that for storage, while the arena is full of bytes that it has not taken, and else for the
copy threads. So every wait divides, without rest, into shares with one cause each:

    gate reached          submitted to the engine              copied
      |--- planning lane's timeline ---|--- storage | copying ---|
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from datastates.sight.bus import emit, sinks
from datastates.sight.events import GateWaited, Origin
from datastates.sight.spans import record, recorders
from datastates.sight.timeline import Activity, Cause, Timeline

logger = logging.getLogger("datastates")
MB = 10**6
THRESHOLD_S = 0.001
"""Shorter waits are passed gates."""
WARNING_WINDOW_S = 30.0
"""Time over which the share of waiting is taken before it is warned of, seconds; doubles with every warning."""
MAX_WARNING_WINDOW_S = 3600.0


@dataclass(frozen=True)
class ChainReading:
    """The engine's clocks and counters at one moment; what matters is the difference of two."""

    copying_s: float = 0.0
    starved_s: float = 0.0
    bytes_copied: int = 0
    bytes_stored: int = 0

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> ChainReading:
        return cls(stats["copying_s"], stats["starved_s"], stats["bytes_copied"], stats["bytes_stored"])


@dataclass(frozen=True, kw_only=True)
class Share:
    """A part of waiting that has one cause."""

    cause: Cause
    seconds: float
    rank: int | None = None
    """Whom an agreement waited for."""
    size_bytes: int = 0
    """What storage took (which goes on while others copy: in proportion), or copying moved, in that time."""
    left_bytes: int = 0
    """What copying had left when the wait began."""

    @property
    def mb_s(self) -> float:
        return self.size_bytes / MB / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        match self.cause:
            case Cause.AGREEMENT:
                return "waiting for agreement" + ("" if self.rank is None else f" with rank {self.rank}")
            case Cause.ARENA:
                return "arena being allocated"
            case Cause.PYTHON_STATE:
                return "Python state of an earlier checkpoint being written"
            case Cause.STORAGE:
                return f"arena full: waiting for write (storage {self.mb_s:.0f} MB/s)"
            case Cause.COPYING:
                left = f"{self.left_bytes / MB:.1f} MB left, " if self.left_bytes else ""
                return f"copying was behind ({left}{self.mb_s:.0f} MB/s)"
        return "planning"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "cause": self.cause.value}


@dataclass(frozen=True, kw_only=True)
class GateWait:
    """One wait of one gate for one checkpoint; the shares add up to it."""

    step: int
    """Of the checkpoint waited for."""
    unix_s: float
    """When it ended."""
    waited_s: float
    shares: tuple[Share, ...]

    def __str__(self) -> str:
        parts = sorted(self.shares, key=lambda share: -share.seconds)
        return "; ".join(f"{share.seconds:.3f} s {share}" for share in parts)


@dataclass(frozen=True, kw_only=True)
class StallReport:
    """How long training waited, and why. ``str()`` of it is the report."""

    num_checkpoints: int
    elapsed_s: float
    """Since the first checkpoint was begun."""
    call_s: float
    """Inside ``checkpoint()``."""
    waited_s: float
    """At gates, passed gates included."""
    shares: tuple[Share, ...]
    """Summed by cause and rank, the longest first."""
    waits: tuple[GateWait, ...]
    """The last thousand, oldest first."""

    def by_step(self) -> dict[int, tuple[Share, ...]]:
        """The shares of each checkpoint that somebody waited for, among the last thousand waits."""
        steps: dict[int, list[Share]] = {}
        for wait in self.waits:
            steps.setdefault(wait.step, []).extend(wait.shares)
        return {step: summed(shares) for step, shares in steps.items()}

    def __str__(self) -> str:
        share = (self.waited_s / self.elapsed_s if self.elapsed_s else 0.0) * 100
        lines = [
            f"{self.num_checkpoints} checkpoints in {self.elapsed_s:.1f} s: {self.call_s:.3f} s inside checkpoint(), "
            f"{self.waited_s:.3f} s at gates ({share:.1f} %)"
        ]
        total_s = sum(share.seconds for share in self.shares) or 1.0
        lines += [f"{s.seconds / total_s * 100:6.1f} % {s.seconds:10.3f} s  {s}" for s in self.shares]
        worst = sorted(self.by_step().items(), key=lambda item: -sum(s.seconds for s in item[1]))[:5]
        if worst:
            lines.append("longest:")
        for step, shares in worst:
            told = "; ".join(f"{s.seconds:.3f} s {s}" for s in shares)
            lines.append(f"  step {step}: {sum(s.seconds for s in shares):.3f} s: {told}")
        return "\n".join(lines)


class Gated(Protocol):
    """What of a checkpoint in flight a gate looks at."""

    step: int
    submitted_s: float | None
    chain_at_submission: ChainReading | None
    size_bytes: int
    snapshot: Any


@dataclass(frozen=True, kw_only=True)
class Waited:
    """Everything that explains one wait. Times are monotonic seconds."""

    begin_s: float
    end_s: float
    submitted_s: float | None
    """``None``: the engine never had it."""
    chain_before: ChainReading
    """At ``begin_s``, or when submitted, whichever is later."""
    chain_after: ChainReading
    left_bytes: int


def explain(waited: Waited, activities: Sequence[Activity]) -> tuple[Share, ...]:
    """Pure: divide a wait into shares; ``activities`` are those of the planning lane in that time."""
    handed_s = (
        waited.end_s if waited.submitted_s is None else min(max(waited.submitted_s, waited.begin_s), waited.end_s)
    )
    shares = [Share(cause=a.cause, seconds=a.end_s - a.begin_s, rank=a.rank) for a in activities]
    rest_s = handed_s - waited.begin_s - sum(share.seconds for share in shares)
    shares.append(Share(cause=Cause.PLANNING, seconds=rest_s))
    before, after = waited.chain_before, waited.chain_after
    chain_s = waited.end_s - handed_s
    starved_s = min(max(after.starved_s - before.starved_s, 0.0), chain_s)
    stored_bytes = (after.bytes_stored - before.bytes_stored) * starved_s / chain_s if chain_s > 0 else 0
    copied_bytes = after.bytes_copied - before.bytes_copied
    copying = Share(cause=Cause.COPYING, seconds=chain_s - starved_s, size_bytes=copied_bytes)
    shares.append(Share(cause=Cause.STORAGE, seconds=starved_s, size_bytes=int(stored_bytes)))
    shares.append(replace(copying, left_bytes=waited.left_bytes))
    return summed(share for share in shares if share.seconds > 1e-6)


def summed(shares: Iterator[Share] | Sequence[Share]) -> tuple[Share, ...]:
    """One share for every cause and rank, the longest first."""
    sums: dict[tuple[Cause, int | None], Share] = {}
    for share in shares:
        key = (share.cause, share.rank)
        so_far = sums.get(key)
        sums[key] = share if so_far is None else _sum(so_far, share)
    return tuple(sorted(sums.values(), key=lambda share: -share.seconds))


def _sum(one: Share, other: Share) -> Share:
    return replace(
        one,
        seconds=one.seconds + other.seconds,
        size_bytes=one.size_bytes + other.size_bytes,
        left_bytes=0,  # of several waits, it is nobody's
    )


class StallLog:
    """The waits of one checkpointer's gates. Thread-safe.

    Args:
        origin: for events.
        read_chain: the engine's clocks; ``None`` while there is no engine.
        timeline: of the planning lane.
        warning_share: warn when waiting takes more of the time than this; ``None``: never.
    """

    def __init__(
        self,
        origin: Origin,
        read_chain: Callable[[], ChainReading | None],
        timeline: Timeline,
        warning_share: float | None,
    ) -> None:
        self._origin = origin
        self._read_chain = read_chain
        self._timeline = timeline
        self._warning_share = warning_share
        self._lock = threading.Lock()
        self._waits: collections.deque[GateWait] = collections.deque(maxlen=1000)  # guarded by _lock, as all below
        self._shares: tuple[Share, ...] = ()
        self._window_s = WARNING_WINDOW_S
        self._window_begun_s = time.monotonic()
        self._in_window: tuple[Share, ...] = ()

    @contextmanager
    def watching(self, checkpoint: Gated) -> Iterator[None]:
        """Around a wait for ``checkpoint`` to be copied."""
        begin_s = time.monotonic()
        snapshot = checkpoint.snapshot
        before = self._read_chain() if snapshot is not None else None
        left_bytes = snapshot.uncopied_bytes() if snapshot is not None else 0
        try:
            yield
        finally:
            end_s = time.monotonic()
            if end_s - begin_s >= THRESHOLD_S:
                if before is None and checkpoint.snapshot is not None:
                    before, left_bytes = checkpoint.chain_at_submission, checkpoint.size_bytes
                waited = Waited(
                    begin_s=begin_s,
                    end_s=end_s,
                    submitted_s=checkpoint.submitted_s,
                    chain_before=before or ChainReading(),
                    chain_after=self._read_chain() or before or ChainReading(),
                    left_bytes=left_bytes,
                )
                self._add(checkpoint.step, waited)

    def _add(self, step: int, waited: Waited) -> None:
        handed_s = waited.end_s if waited.submitted_s is None else min(waited.submitted_s, waited.end_s)
        shares = explain(waited, self._timeline.within(waited.begin_s, handed_s))
        wait = GateWait(step=step, unix_s=time.time(), waited_s=waited.end_s - waited.begin_s, shares=shares)
        with self._lock:
            self._waits.append(wait)
            self._shares = summed([*self._shares, *shares])
            self._in_window = summed([*self._in_window, *shares])
            self._warn_if_much(waited.end_s)
        if recorders:
            record("gate", int(waited.begin_s * 1e9), step, why=str(wait))
        if sinks:
            causes = tuple(share.to_dict() for share in shares)
            emit(GateWaited(self._origin, step=step, waited_s=wait.waited_s, causes=causes, summary=str(wait)))

    def _warn_if_much(self, now_s: float) -> None:
        elapsed_s = now_s - self._window_begun_s
        if self._warning_share is None or elapsed_s < self._window_s:
            return
        waited_s = sum(share.seconds for share in self._in_window)
        if waited_s > self._warning_share * elapsed_s:
            logger.warning(
                "training waited %.0f %% of the last %.0f s for checkpoints: %s",
                waited_s / elapsed_s * 100,
                elapsed_s,
                "; ".join(f"{share.seconds / waited_s * 100:.0f} % {share}" for share in self._in_window),
            )
            self._window_s = min(2 * self._window_s, MAX_WARNING_WINDOW_S)
        self._window_begun_s, self._in_window = now_s, ()

    def report(self, *, num_checkpoints: int, elapsed_s: float, call_s: float, waited_s: float) -> StallReport:
        """What is known so far."""
        with self._lock:
            return StallReport(
                num_checkpoints=num_checkpoints,
                elapsed_s=elapsed_s,
                call_s=call_s,
                waited_s=waited_s,
                shares=self._shares,
                waits=tuple(self._waits),
            )
