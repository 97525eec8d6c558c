"""Waiting for what another thread or process brings about, where nothing can be waited on."""

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Return once ``condition()`` holds; fails the test after ``timeout_s``."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {timeout_s:g} s"
        time.sleep(0.001)
