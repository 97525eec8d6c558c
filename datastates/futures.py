"""Futures with a timeout in seconds, callbacks and ``await``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

T = TypeVar("T")
logger = logging.getLogger("datastates")


class CheckpointFuture(Generic[T]):
    """A milestone of one checkpoint: it will have a result, or the error that kept it from being reached.

    Thread-safe. Only the checkpointer resolves it; the first resolution stands.
    """

    def __init__(self, on_wait: Callable[[], None] = lambda: None) -> None:
        self._on_wait = on_wait  # called before anybody waits
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._future.set_running_or_notify_cancel()  # cannot be cancelled: the bytes are on their way

    def result(self, timeout_s: float | None = None) -> T:
        """Wait for the milestone.

        Raises:
            TimeoutError: not reached within ``timeout_s`` seconds.
            CheckpointError: the checkpoint failed.
        """
        self._on_wait()
        try:
            return self._future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            if self._future.done():
                raise
            raise _timeout(timeout_s) from None

    def exception(self, timeout_s: float | None = None) -> BaseException | None:
        """Like :meth:`result`, but returns the checkpoint's error, ``None`` if it succeeded."""
        self._on_wait()
        try:
            return self._future.exception(timeout_s)
        except concurrent.futures.TimeoutError:
            raise _timeout(timeout_s) from None

    def done(self) -> bool:
        return self._future.done()

    def add_done_callback(self, callback: Callable[[CheckpointFuture[T]], object]) -> None:
        """Call ``callback(self)`` once resolved, on a background thread, or at once if it already is.

        What it raises there is logged; ``sys.exit()`` too, for it would end that thread and nothing else.
        """

        def call(_: object) -> None:
            try:
                callback(self)
            except SystemExit:
                if threading.current_thread() is threading.main_thread():
                    raise
                logger.exception("a callback of a checkpoint's future called for an exit; only the main thread can")

        self._future.add_done_callback(call)

    def __await__(self) -> Generator[object, None, T]:
        self._on_wait()
        return asyncio.wrap_future(self._future).__await__()

    def _resolve(self, value: T) -> None:
        if not self._future.done():
            self._future.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if not self._future.done():
            self._future.set_exception(error)


def _timeout(timeout_s: float | None) -> TimeoutError:
    return TimeoutError(f"the checkpoint did not reach this point within {timeout_s} s")
