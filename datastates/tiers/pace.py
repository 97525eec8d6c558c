"""How fast, how often again, and how long: the bandwidth cap, retries, and the end of all waiting."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger("datastates")
T = TypeVar("T")

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
PERMANENT = (PermissionError, FileNotFoundError, NotADirectoryError, ImportError, ValueError, TypeError, AssertionError)
"""What does not get better by trying again: no access, no bucket, no such file, a bad argument, our own bug."""
PERMANENT_NAMES = {"NoCredentialsError", "ParamValidationError", "StorageFullError", "DamagedCheckpointError"}


class Stopped(Exception):
    """The job is ending: what was under way is left as it is, for the next job to take up."""


class TokenBucket:
    """A cap on bytes over time, shared by threads.

    In any stretch of ``t`` seconds at most ``bytes_s * t`` bytes plus one ``take`` go through: what was not used is not
    saved up.
    """

    def __init__(
        self,
        bytes_s: float | None,
        clock_s: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._bytes_s = bytes_s
        self._clock_s = clock_s
        self._wait = wait
        self._free_at_s = clock_s()
        self._lock = threading.Lock()

    def take(self, size_bytes: int) -> None:
        """Wait until ``size_bytes`` may be sent."""
        if self._bytes_s is None:
            return
        with self._lock:
            now_s = self._clock_s()
            begin_s = max(now_s, self._free_at_s)
            self._free_at_s = begin_s + size_bytes / self._bytes_s
        if begin_s > now_s:
            self._wait(begin_s - now_s)


class Pace:
    """What everything that a tier sends and asks goes through; thread-safe."""

    def __init__(self, bandwidth_mb_s: float | None, retry_for_s: float) -> None:
        self._stop = threading.Event()
        self._bucket = TokenBucket(None if bandwidth_mb_s is None else bandwidth_mb_s * 1e6, wait=self._sleep)
        self._retry_for_s = retry_for_s
        self._lock = threading.Lock()
        self.num_retries = 0

    def stop(self) -> None:
        """End every wait, now and later, with :class:`Stopped`."""
        self._stop.set()

    def check(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def take(self, size_bytes: int) -> None:
        """Wait until the bandwidth cap lets ``size_bytes`` through."""
        self.check()
        self._bucket.take(size_bytes)

    def retried(self, act: Callable[[], T], what: str) -> T:
        """``act()``, tried again with growing pauses while it fails for reasons that may pass.

        Raises:
            Exception: its last error, once ``retry_for_s`` is over or trying again would not help.
        """
        end_s = time.monotonic() + self._retry_for_s
        pause_s = FIRST_PAUSE_S
        while True:
            self.check()
            try:
                return act()
            except Exception as error:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                if not may_pass(error) or time.monotonic() + pause_s > end_s:
                    raise
                with self._lock:
                    self.num_retries += 1
                logger.info("%s: %s: %s; trying again", what, type(error).__name__, error)
            self._sleep(pause_s * random.uniform(0.5, 1.0))  # many jobs shall not come back at the same moment

    def _sleep(self, wait_s: float) -> None:
        if self._stop.wait(wait_s):
            raise Stopped


def may_pass(error: BaseException) -> bool:
    """Whether the same operation may succeed later."""
    return not isinstance(error, (*PERMANENT, Stopped)) and type(error).__name__ not in PERMANENT_NAMES
