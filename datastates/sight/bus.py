"""The bus: brings events to whoever has asked for them, on a thread of its own.

    if sinks:
        emit(Published(origin, step=step, ...))

Without sinks an emitter pays that truth test and nothing else. With them it pays for the event and for one queue; a
slow sink delays other sinks, never training, and what no sink has taken beyond ``MAX_WAITING`` events is dropped and
counted. A sink that raises is reported once and dropped. Forked children have no sinks.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from datastates.lanes import Lane
from datastates.sight.events import Event

logger = logging.getLogger("datastates")
Sink = Callable[[Event], None]
MAX_WAITING = 10_000
"""Events that may wait for delivery."""


class Bus:
    """Thread-safe."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._num_emitted = 0  # guarded by _changed, as all below
        self._num_delivered = 0
        self._num_dropped = 0
        self._lane: Lane[Event] = Lane("ds-sight", self._deliver, self._lost)
        self._thread_id: int | None = None

    def emit(self, event: Event) -> None:
        """Queue ``event`` for every sink; never waits for one."""
        with self._changed:
            if self._num_emitted - self._num_delivered >= MAX_WAITING:
                self._num_dropped += 1
                if self._num_dropped == 1:
                    logger.warning("event sinks are too slow: more than %d events wait, the rest is lost", MAX_WAITING)
                return
            self._num_emitted += 1
            self._lane.put(event)

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until all that was emitted has been delivered; returns whether ``timeout_s`` was enough."""
        if threading.get_ident() == self._thread_id:
            return False  # a sink that asks for itself would wait for ever
        end_s = time.monotonic() + timeout_s
        with self._changed:
            wanted = self._num_emitted
            while self._num_delivered < wanted:
                left_s = end_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return False
        return True

    def num_dropped(self) -> int:
        """Events lost because sinks were too slow."""
        with self._changed:
            return self._num_dropped

    def close(self, timeout_s: float) -> None:
        """Deliver what was emitted and end the thread; a later event starts it again."""
        if self.flush(timeout_s):
            with self._changed:
                if self._num_delivered == self._num_emitted:  # else the lane needs the lock that we hold
                    self._lane.close(timeout_s)

    def drop(self, sink: Sink) -> None:
        """Take ``sink`` off. Idempotent."""
        if sink in self.sinks:
            self.sinks.remove(sink)

    def _deliver(self, event: Event) -> None:
        self._thread_id = threading.get_ident()
        try:
            for sink in list(self.sinks):
                self._offer(sink, event)
        finally:
            with self._changed:
                self._num_delivered += 1
                self._changed.notify_all()

    def _offer(self, sink: Sink, event: Event) -> None:
        try:
            sink(event)
        except Exception:
            self.drop(sink)
            logger.exception("the event sink %r raised and gets no more events", sink)

    def _lost(self, event: Event, error: Exception) -> None:
        logger.error("%s could not be delivered: %s", event.name(), error)

    def forget(self) -> None:
        """In a forked child, which has no delivering thread; its parent's locks may be held for ever."""
        self.sinks.clear()
        self._begin()


_bus = Bus()
sinks = _bus.sinks
"""Those who listen. Empty: nobody does, and nothing need be made or emitted. One list for ever; look, do not touch."""
emit = _bus.emit
flush = _bus.flush
num_dropped = _bus.num_dropped
close = _bus.close


def add_sink(sink: Sink) -> Sink:
    """Have ``sink`` called with every event from now on, one at a time, on the bus's thread; returns it."""
    sinks.append(sink)
    return sink


def remove_sink(sink: Sink) -> None:
    """The inverse of :func:`add_sink`; what was emitted before reaches it first. Idempotent."""
    flush()
    _bus.drop(sink)


os.register_at_fork(after_in_child=_bus.forget)
