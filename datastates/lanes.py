"""Lane: a named thread that does one kind of work, one item after the other, in the order given."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
logger = logging.getLogger("datastates")


class Lane(Generic[T]):
    """Owns its thread from the first item to :meth:`close`.

    ``work`` accounts for the failures it knows of; what it raises all the same goes to ``failed``, and the lane goes
    on: a dead lane would leave every later item, and whoever waits for it, without an end.
    """

    def __init__(self, name: str, work: Callable[[T], None], failed: Callable[[T, Exception], None]) -> None:
        self._name = name
        self._work = work
        self._failed = failed
        self._items: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def put(self, item: T) -> None:
        if self._thread is None:
            # A daemon: an interpreter that exits without close() must not wait for a dead peer for ever.
            self._ended.clear()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._items.put(item)

    def close(self, timeout_s: float | None = None) -> bool:
        """Finish what was put and end the thread; returns whether ``timeout_s`` was enough. Idempotent."""
        if self._thread is not None:
            self._items.put(None)
            # Python 3.11 takes a thread for ended when Ctrl-C interrupts join(); an event it does not.
            if not self._ended.wait(timeout_s):
                return False
            self._thread.join()
            self._thread = None
        return True

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            try:
                self._work(item)
            except Exception as error:  # noqa: BLE001  (told to whoever waits for the item)
                self._account(item, error)
            del item  # or the last checkpoint would be kept alive by this frame until the next one
        self._ended.set()

    def _account(self, item: T, error: Exception) -> None:
        try:
            self._failed(item, error)
        except Exception:
            logger.exception("%s could not say that this failed: %r", self._name, error)
